"""Vocabularies as others keep them -> the text of a `tokenizer.json`; knows no encoding.

Read are `tokenizer.json`, BERT's `vocab.txt`, GPT-2's `vocab.json` with `merges.txt` and
SentencePiece's `.model`, with the `tokenizer_config.json`, `special_tokens_map.json` and
`added_tokens.json` beside them, as Hugging Face folders have them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from ptft_lightning.data.tokenizer import OWN, PARTS
from ptft_lightning.errors import UserError

# The names in Hugging Face's files for each part, the most specific first.
SETTINGS = {
    "pad": ("pad_token",),
    "mask": ("mask_token",),
    "begin": ("cls_token", "bos_token"),
    "end": ("sep_token", "eos_token"),
}
SPACE = "▁"


def read_tokenizer(path: Path) -> tuple[Path, str]:
    """The file that was read, and its vocabulary as the text of a `tokenizer.json`.

    Raises:
        UserError: nothing of the kind is there, or it is damaged.
    """
    file = _find(path)
    settings = _settings(file.parent)
    reader = READERS.get("*.model" if file.suffix == ".model" else file.name, _read_json)
    try:
        return file, _with_parts(reader(file, settings), file.parent, settings)
    except UserError:
        raise
    except Exception as error:  # what `tokenizers` and protobuf raise has no common class
        name = "tokenizer.json" if reader is _read_json else f"vocabulary ({file.name})"
        raise UserError(f"'{file}' is not a {name}: {error}") from error


def _find(path: Path) -> Path:
    places = [path]
    if path.is_dir():
        models_there = sorted(path.glob("*.model"))
        places = [path / name for name in READERS if "*" not in name] + models_there[:1]
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"tokenizer not found: '{path}' (make one with `ptft_lightning tokenizer`)")


def _settings(folder: Path) -> dict[str, Any]:
    """What the files beside the vocabulary say; the later file is the one that decides."""
    found: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            found |= _object(folder / name)
    return found


def _object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{file}' is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{file}' is not a JSON object")
    return content


def _with_parts(text: str, folder: Path, settings: dict[str, Any]) -> str:
    """Note the names of special tokens that the settings give where they are not the usual ones."""
    raw: RawTokenizer | None = None
    parts: dict[str, str | None] = {}
    for part, keys in SETTINGS.items():
        values = [settings[key] for key in keys if settings.get(key)]
        if not values:
            continue
        name = values[0]["content"] if isinstance(values[0], dict) else values[0]
        raw = raw or RawTokenizer.from_str(text)
        if raw.token_to_id(name) is None:
            raise UserError(
                f"'{folder}' names '{name}' as its {part} token, and its vocabulary has no such "
                "token: correct tokenizer_config.json or special_tokens_map.json"
            )
        parts[part] = name
    if parts.get("begin") is not None and parts.get("begin") == parts.get("end"):
        parts["begin"] = None  # one token between documents, as GPT-2 was trained
    usual = {part: _usual(raw, part) for part in parts}
    if other := {part: name for part, name in parts.items() if name != usual[part]}:
        return json.dumps({**json.loads(text), OWN: {"parts": other}}, ensure_ascii=False)
    return text


def _usual(raw: RawTokenizer | None, part: str) -> str | None:
    names = (name for name in PARTS[part] if raw and raw.token_to_id(name) is not None)
    return next(names, None)


def _read_json(file: Path, settings: dict[str, Any]) -> str:
    return file.read_text(encoding="utf-8")


def _read_wordpiece(file: Path, settings: dict[str, Any]) -> str:
    """BERT's: a piece a line, its id the number of the line."""
    pieces = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocabulary = {piece.rstrip("\r"): i for i, piece in enumerate(pieces)}
    unknown = _name(settings.get("unk_token"), "[UNK]")
    if unknown not in vocabulary:
        raise ValueError(f"it has no line '{unknown}'")
    lower = settings.get("do_lower_case")
    if lower is None:
        lower = not all(letter in vocabulary for letter in ascii_uppercase)
        how = "lower-cased, A-Z are not in it" if lower else "cased, A-Z are in it"
        _say(f"'{file}' comes without do_lower_case: read as {how}")
    raw = RawTokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    raw.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=lower,
    )
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    return _finish(raw, file.parent)


def _read_byte_bpe(file: Path, settings: dict[str, Any]) -> str:
    """GPT-2's and RoBERTa's: byte-level BPE."""
    merges = file.with_name("merges.txt")
    if not merges.is_file():
        raise UserError(f"'{file}' has no merges.txt beside it, which byte-level BPE needs")
    lines = merges.read_text(encoding="utf-8").split("\n")
    rules = [line.split() for line in lines if line and not line.startswith("#version")]
    pairs = [(left, right) for left, right in rules]
    vocabulary = _object(file)
    if missing := [c for c in pre_tokenizers.ByteLevel.alphabet() if c not in vocabulary]:
        raise ValueError(f"it is not byte-level BPE, {len(missing)} of 256 bytes are missing")
    raw = RawTokenizer(models.BPE(vocabulary, pairs))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(settings.get("add_prefix_space", False))
    raw.decoder = decoders.ByteLevel()
    return _finish(raw, file.parent)


def _finish(raw: RawTokenizer, folder: Path) -> str:
    """With the tokens that were added after training, at the ids they were given."""
    more = folder / "added_tokens.json"
    for name, i in sorted((_object(more) if more.is_file() else {}).items(), key=lambda x: x[1]):
        raw.add_tokens([AddedToken(name, normalized=False)])
        if raw.token_to_id(name) != i:
            raise UserError(f"'{more}' gives '{name}' the id {i}, which is not the next free one")
    return str(raw.to_str())


def _name(value: Any, usual: str) -> str:
    return str(value["content"] if isinstance(value, dict) else value or usual)


def _say(message: str) -> None:
    print(f"tokenizer: {message}", file=sys.stderr, flush=True)


def _read_sentencepiece(file: Path, settings: dict[str, Any]) -> str:
    """SentencePiece's Unigram and BPE (Kudo & Richardson 2018)."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise UserError(
            f"'{file}' needs sentencepiece: pip install 'ptft-lightning[sentencepiece]'"
        ) from error
    parse: Any = vars(sentencepiece_model_pb2)["ModelProto"].FromString  # made at run time
    model = parse(file.read_bytes())
    spec, rules = model.trainer_spec, model.normalizer_spec
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    kinds = {1: _spm_unigram, 2: _spm_bpe}
    if spec.model_type not in kinds or not pieces:
        raise ValueError("its kind is neither Unigram nor BPE")
    raw = RawTokenizer(kinds[spec.model_type](model, pieces))
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" +"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    raw.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    if not any(SPACE in piece[1:] for piece, _ in pieces):  # words apart give the same, faster
        raw.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    first = [decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else []
    raw.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *first]
    )
    control = [p.piece for p in model.pieces if p.type in (CONTROL, UNKNOWN)]
    raw.add_special_tokens([AddedToken(name, normalized=False) for name in control])
    chosen = [p.piece for p in model.pieces if p.type == USER_DEFINED]
    raw.add_tokens([AddedToken(name, normalized=False) for name in chosen])
    return _finish(raw, file.parent)


UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # types of pieces in SentencePiece's own file


def _spm_unigram(model: Any, pieces: list[tuple[str, float]]) -> models.Model:
    return models.Unigram(
        pieces, unk_id=model.trainer_spec.unk_id, byte_fallback=model.trainer_spec.byte_fallback
    )


def _spm_bpe(model: Any, pieces: list[tuple[str, float]]) -> models.Model:
    """The pair that makes the piece of the best score is merged first."""
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = [
        (-score, ids[piece[:cut]], ids[piece[cut:]], piece[:cut], piece[cut:])
        for piece, score in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return models.BPE(
        ids,
        [(left, right) for *_, left, right in sorted(merges)],
        unk_token=model.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
    )


READERS: dict[str, Callable[[Path, dict[str, Any]], str]] = {
    "tokenizer.json": _read_json,
    "vocab.txt": _read_wordpiece,
    "vocab.json": _read_byte_bpe,
    "*.model": _read_sentencepiece,
}
