"""Text to token ids and back: train, load, encode; knows no file formats and no models.

A thin skin over `tokenizers`. Any `tokenizer.json` is accepted: the parts its special tokens play
(padding, mask, begin, end) are found by their usual names. Text never becomes a control token: a
literal `[MASK]` in a document is encoded as ordinary text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from ptft_lightning.errors import UserError

Kind = Literal["bpe", "wordpiece"]

# The usual names of each part, the most specific first.
PARTS: dict[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
    "begin": ("[CLS]", "<s>", "<|begin_of_text|>", "<|bos|>"),
    "end": ("[SEP]", "</s>", "<|end_of_text|>", "<|endoftext|>", "<|eos|>"),
}
OWN_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# White space, case, accents, other scripts and emoji: what a lossy tokenizer would change.
PROBE = "Two  spaces,\ta tab\nand a line. Été, ŝ, 模型, модель, 🙂"


class Tokenizer:
    """A loaded tokenizer with the parts its special tokens play.

    Attributes:
        pad, mask, begin, end: token ids, None where the vocabulary has none.
        size: number of ids, added tokens included.
        fingerprint: hash of all that decides how text is encoded.
        round_trips: whether decoding gives the text back, so that loss per byte means something.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.raw = _load(text)
        parts = {part: self._find(names) for part, names in PARTS.items()}
        self.pad = parts["pad"] if parts["pad"] is not None else 0
        self.mask, self.begin, self.end = parts["mask"], parts["begin"], parts["end"]
        # The largest id decides, not the count: ids may have holes.
        self.size = max(self.raw.get_vocab(with_added_tokens=True).values()) + 1
        self.fingerprint = _fingerprint(text)
        special = {
            token.content: i
            for i, token in sorted(self.raw.get_added_tokens_decoder().items())
            if token.special
        }
        self.specials = np.array([*special.values()], np.int64)
        unknown = ("[UNK]", "<unk>", getattr(self.raw.model, "unk_token", None))
        self._controls = {name: i for name, i in special.items() if name not in unknown}
        named = self.raw.encode_batch_fast([*self._controls], add_special_tokens=False)
        # True of models such as Unigram, whose own vocabulary holds the names.
        self._takes_names = any(not set(self._controls.values()).isdisjoint(e.ids) for e in named)
        self.round_trips = self.decode(self.encode([PROBE])[0]) == PROBE

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load `tokenizer.json`, or the directory that holds one.

        Raises:
            UserError: missing or not a tokenizer.
        """
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise UserError(
                f"tokenizer not found: '{path}' (make one with `ptft_lightning tokenizer`)"
            )
        try:
            return cls(file.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f"'{file}' is not a tokenizer.json: {error}") from error

    @cached_property
    def ordinary(self) -> npt.NDArray[np.int64]:
        """All ids but the special ones."""
        return np.setdiff1d(np.arange(self.size), self.specials)

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` into `directory`."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / "tokenizer.json").write_text(self.text, encoding="utf-8")

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str]]:
        """Copied and pickled by its text: `tokenizers` forgets that text is never control."""
        return Tokenizer, (self.text,)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        encoded = [e.ids for e in self.raw.encode_batch_fast(texts, add_special_tokens=False)]
        if not self._takes_names:
            return encoded
        controls = set(self._controls.values())
        return [
            ids if controls.isdisjoint(ids) else self._encode_apart(text)
            for text, ids in zip(texts, encoded, strict=True)
        ]

    def _encode_apart(self, text: str) -> list[int]:
        """Ids of a text in which the model took a written name such as `<mask>` for the token: cut
        inside each name; what still gives the token is left out."""
        inside = (f"(?<={re.escape(n[:1])})(?={re.escape(n[1:])})" for n in self._controls)
        pieces = re.split("|".join(inside), text)
        encoded = self.raw.encode_batch_fast(pieces, add_special_tokens=False)
        controls = set(self._controls.values())
        return [i for e in encoded for i in e.ids if i not in controls]

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self.raw.decode(ids, skip_special_tokens=True)
        return text

    def frame(self, ids: list[int]) -> list[int]:
        """A whole document: begin + ids + end, as far as the vocabulary has them."""
        begin = [] if self.begin is None else [self.begin]
        end = [] if self.end is None else [self.end]
        return begin + ids + end

    def _find(self, names: tuple[str, ...]) -> int | None:
        ids = (self.raw.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)


def _load(text: str) -> RawTokenizer:
    try:
        raw = RawTokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(str(error)) from error
    raw.no_padding()
    raw.no_truncation()
    names = sorted({name for part in PARTS.values() for name in part})
    raw.add_special_tokens([name for name in names if raw.token_to_id(name) is not None])
    # Text is never control. Not saved with the file, so it is set at every load.
    raw.encode_special_tokens = True
    return raw


def _fingerprint(text: str) -> str:
    """Hash of the tokenizer without what does not change ids (padding, truncation, layout)."""
    content = json.loads(text)
    for key in ("padding", "truncation", "version"):
        content.pop(key, None)
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def train_tokenizer(
    documents: Iterator[str], kind: Kind, vocab_size: int, lowercase: bool
) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` ids from documents.

    `bpe` is byte-level (no unknown token, gives the text back; Radford et al. 2019), `wordpiece`
    splits as BERT does (Chinese by character; Devlin et al. 2019).
    """
    if kind == "bpe":
        raw, trainer = _byte_level_bpe(vocab_size, lowercase)
    else:
        raw, trainer = _wordpiece(vocab_size, lowercase)
    raw.train_from_iterator(documents, trainer)
    return Tokenizer(raw.to_str())


def _byte_level_bpe(size: int, lowercase: bool) -> tuple[RawTokenizer, trainers.Trainer]:
    raw = RawTokenizer(models.BPE())
    if lowercase:
        raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[t for t in OWN_SPECIALS if t != "[UNK]"],  # bytes are never unknown
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return raw, trainer


def _wordpiece(size: int, lowercase: bool) -> tuple[RawTokenizer, trainers.Trainer]:
    raw = RawTokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=OWN_SPECIALS,
        # A character takes up to two ids (first, later in a word): more than half as many
        # characters, as Chinese has, would overrun the size. The rarest become [UNK].
        limit_alphabet=size // 2,
        show_progress=False,
    )
    return raw, trainer
