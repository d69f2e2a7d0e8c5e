"""Learning a vocabulary from documents: byte-level BPE, WordPiece, Unigram; knows no files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Literal

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RawTokenizer

from ptft_lightning.data.tokenizer import OWN, Tokenizer
from ptft_lightning.errors import UserError

SENTINEL = "<extra_id_{}>"  # T5's names
Kind = Literal["bpe", "wordpiece", "unigram"]
OWN_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ALWAYS = ["▁", *(chr(code) for code in range(33, 127))]  # pieces of every Unigram: ASCII
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Chinese, other letters with their marks, digits, anything else: each with the space before it.
STRETCHES = r" ?\p{Han}+| ?[\p{L}\p{M}&&[^\p{Han}]]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
NEVER = -1e6  # the score of pieces that text must not reach by their written names


def train_tokenizer(
    documents: Iterator[str],
    kind: Kind,
    vocab_size: int,
    lowercase: bool,
    steps: Sequence[str] = (),
    sentinels: int = 0,
) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` ids from documents.

    `bpe` is byte-level (no unknown token, gives the text back; Radford et al. 2019), `wordpiece`
    splits as BERT does (Chinese by character; Devlin et al. 2019), `unigram` is SentencePiece's
    language model over pieces (Kudo 2018), with bytes for what it has no piece of: it gives all
    text back but U+2581, which stands for a space.

    `steps` of normalisation are taken in their order, lower case after them. `sentinels` special
    tokens, named as T5's, mark what span corruption cuts out.

    Raises:
        UserError: a step that is unknown or named twice.
    """
    from ptft_lightning.data.normalization import check_steps, normalize

    try:
        check_steps(steps)
    except ValueError as error:
        raise UserError(f"--normalize: {error}") from error
    cut = steps.index("t2s") + 1 if "t2s" in steps else 0
    ours, theirs = steps[:cut], steps[cut:]  # NFKC after t2s or alone `tokenizers` does itself
    specials = [*OWN_SPECIALS, *(SENTINEL.format(n) for n in range(sentinels))]
    raw, trainer = _STARTS[kind](vocab_size, lowercase, specials)
    if theirs:
        own = [raw.normalizer] if raw.normalizer is not None else []
        raw.normalizer = normalizers.Sequence([normalizers.NFKC(), *own])
    texts = (normalize(text, ours) for text in documents) if ours else documents
    raw.train_from_iterator(texts, trainer)
    text = _with_bytes(raw.to_str(), vocab_size, specials) if kind == "unigram" else raw.to_str()
    return Tokenizer(_with_first(text, ours))


def _with_first(text: str, steps: Sequence[str]) -> str:
    if not steps:
        return text
    return json.dumps({**json.loads(text), OWN: {"first": list(steps)}}, ensure_ascii=False)


def _byte_level_bpe(
    size: int, lowercase: bool, specials: list[str]
) -> tuple[RawTokenizer, trainers.Trainer]:
    raw = RawTokenizer(models.BPE())
    if lowercase:
        raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[t for t in specials if t != "[UNK]"],  # bytes are never unknown
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return raw, trainer


def _wordpiece(
    size: int, lowercase: bool, specials: list[str]
) -> tuple[RawTokenizer, trainers.Trainer]:
    raw = RawTokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=specials,
        # A character takes up to two ids (first, later in a word): more than half as many
        # characters, as Chinese has, would overrun the size. The rarest become [UNK].
        limit_alphabet=size // 2,
        show_progress=False,
    )
    return raw, trainer


def _unigram(
    size: int, lowercase: bool, specials: list[str]
) -> tuple[RawTokenizer, trainers.Trainer]:
    raw = RawTokenizer(models.Unigram())
    if lowercase:
        raw.normalizer = normalizers.Lowercase()
    # As SentencePiece, no piece reaches into the next word or from Chinese into other letters. No
    # space is put before a text, so that it comes back as it was.
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(STRETCHES), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
        ]
    )
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=size - len(BYTES),
        special_tokens=specials,
        unk_token="[UNK]",
        initial_alphabet=ALWAYS,
        show_progress=False,
    )
    return raw, trainer


def _with_bytes(text: str, size: int, specials: list[str]) -> str:
    """A trained Unigram with a piece for each byte, cut to `size` ids: the rarest go.

    `tokenizers` reads special tokens and bytes out of text by their written names; with ASCII in
    the vocabulary and a score this low, the characters are always the better reading.
    """
    content = json.loads(text)
    learned = dict(map(tuple, content["model"]["vocab"]))
    named = [*specials, *BYTES]
    rest = sorted(learned.keys() - {*named, *ALWAYS}, key=lambda piece: (-learned[piece], piece))
    pieces = [*ALWAYS, *rest[: size - len(named) - len(ALWAYS)]]
    scores = [[name, NEVER] for name in named] + [[piece, learned[piece]] for piece in pieces]
    content["model"] |= {"vocab": scores, "byte_fallback": True}
    return json.dumps(content, ensure_ascii=False)


_STARTS = {"bpe": _byte_level_bpe, "wordpiece": _wordpiece, "unigram": _unigram}
