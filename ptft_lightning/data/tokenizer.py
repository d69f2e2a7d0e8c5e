"""Text to token ids and back: load, encode, decode; knows no models and not how to learn one.

A thin skin over `tokenizers`. Any `tokenizer.json` is accepted: the parts its special tokens play
(padding, mask, begin, end) are found by their usual names. Text never becomes a control token: a
literal `[MASK]` in a document is encoded as ordinary text.

What `tokenizers` has no place for stands in the same text under the key `ptft_lightning`: `parts`,
the names of special tokens where they are not the usual ones, and `first`, the steps of
normalisation that come before everything else. So whatever carries the text carries them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from tokenizers import Tokenizer as RawTokenizer

from ptft_lightning.errors import UserError

OWN = "ptft_lightning"
# The usual names of each part, the most specific first.
PARTS: dict[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
    "begin": ("[CLS]", "<s>", "<|begin_of_text|>", "<|bos|>"),
    "end": ("[SEP]", "</s>", "<|end_of_text|>", "<|endoftext|>", "<|eos|>"),
}
# White space, case, accents, wide forms, other scripts and emoji: what a lossy tokenizer changes.
PROBE = "Two  spaces,\ta tab\nand a line. Été, ŝ, Ａ, 漢字, 模型, модель, 🙂"
# Ideographs, kana and the punctuation written with them.
CHARACTER = r"[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]"
BETWEEN_CHARACTERS = re.compile(rf"(?<={CHARACTER}) (?={CHARACTER})")
Index = npt.NDArray[np.int64]


class Traced(NamedTuple):
    """One text's tokens and where each comes from."""

    text: str
    """As the model got it: after the first steps of normalisation."""
    ids: list[int]
    spans: Index
    """(n, 2): the first character in `text` and the one after the last."""
    words: Index
    """(n,): which word of the pre-tokenizer a token belongs to, ascending."""


class Tokenizer:
    """A loaded tokenizer with the parts its special tokens play.

    Attributes:
        pad, mask, begin, end: token ids, None where the vocabulary has none.
        size: number of ids, added tokens included.
        fingerprint: hash of all that decides how text is encoded.
        extends: fingerprint of the tokenizer that this one adds tokens to, if it does.
        round_trips: whether decoding gives the text back, so that loss per byte means something.
    """

    def __init__(self, text: str) -> None:
        content, own = _content(text)
        if content.get("padding") or content.get("truncation"):  # rows are made elsewhere
            content |= {"padding": None, "truncation": None}
            text = json.dumps(content | ({OWN: own} if own else {}), ensure_ascii=False)
        self.text = text
        self.fingerprint = _fingerprint(content, own)
        self.first: list[str] = own.get("first", [])
        self.extends: str | None = own.get("extends")
        named = {part: (name,) if name else () for part, name in own.get("parts", {}).items()}
        self.raw = _load(json.dumps(content) if own else text, PARTS | named)
        parts = {part: self._find(names) for part, names in (PARTS | named).items()}
        self.pad = parts["pad"] if parts["pad"] is not None else 0
        self.mask, self.begin, self.end = parts["mask"], parts["begin"], parts["end"]
        # The largest id decides, not the count: ids may have holes.
        self.size = max(self.raw.get_vocab(with_added_tokens=True).values()) + 1
        special = {
            token.content: i
            for i, token in sorted(self.raw.get_added_tokens_decoder().items())
            if token.special
        }
        self.specials = np.array([*special.values()], np.int64)
        unknown = ("[UNK]", "<unk>", getattr(self.raw.model, "unk_token", None))
        self._controls = {name: i for name, i in special.items() if name not in unknown}
        self._control_ids = set(self._controls.values())
        written = self.raw.encode_batch_fast([*self._controls], add_special_tokens=False)
        # True of models such as Unigram, whose own vocabulary holds the names.
        self._takes_names = not all(self._control_ids.isdisjoint(e.ids) for e in written)
        # What splits Chinese by character joins the pieces with spaces that no text had.
        decoder = content.get("decoder") or {"type": "WordPiece"}
        self._spaced = decoder["type"] == "WordPiece"
        self.round_trips = self.decode(self.encode([PROBE])[0]) == PROBE

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load a `tokenizer.json`, another kind of vocabulary (see `tokenizer_files`), or the
        directory that holds one.

        Raises:
            UserError: missing or not a tokenizer.
        """
        from ptft_lightning.data.tokenizer_files import read_tokenizer

        file, text = read_tokenizer(Path(path))
        try:
            return cls(text)
        except ValueError as error:
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
        texts = self.normalized(texts)
        encoded = self.raw.encode_batch_fast(texts, add_special_tokens=False)
        if not self._takes_names:
            return [e.ids for e in encoded]
        return [
            self._trace_apart(text).ids if self._controlled(e) else e.ids
            for text, e in zip(texts, encoded, strict=True)
        ]

    def trace(self, texts: list[str]) -> list[Traced]:
        """The same ids with the word and the span of each token; slower than `encode`."""
        texts = self.normalized(texts)
        encoded = self.raw.encode_batch(texts, add_special_tokens=False)
        return [
            self._trace_apart(text)
            if self._takes_names and self._controlled(e)
            else _join(text, [e], [0])
            for text, e in zip(texts, encoded, strict=True)
        ]

    def encode_spans(self, texts: list[str]) -> list[tuple[list[int], Index]]:
        """The ids of each text and (n, 2) spans of characters in the text as it was given.

        A token that carries the space before its word has it in its span. Tokens that share a
        character, as bytes do, share its span; combining marks go with their letter.
        """
        from ptft_lightning.data.normalization import origins, through, with_marks

        found = []
        for text, traced in zip(texts, self.trace(texts), strict=True):
            spans = through(traced.spans, origins(text, self.first)) if self.first else traced.spans
            found.append((traced.ids, spans if text.isascii() else with_marks(spans, text)))
        return found

    def normalized(self, texts: list[str]) -> list[str]:
        """After the `first` steps of normalisation."""
        if not self.first:
            return texts
        from ptft_lightning.data.normalization import normalize

        return [normalize(text, self.first) for text in texts]

    def _controlled(self, encoding: Encoding) -> bool:
        return self._takes_names and not self._control_ids.isdisjoint(encoding.ids)

    def _trace_apart(self, text: str) -> Traced:
        """Tokens of a text in which the model took a written name such as `<mask>` for the token:
        cut inside each name; what still gives the token is left out."""
        inside = (f"(?<={re.escape(n[:1])})(?={re.escape(n[1:])})" for n in self._controls)
        pieces = re.split("|".join(inside), text)
        encoded = self.raw.encode_batch(pieces, add_special_tokens=False)
        starts = np.cumsum([0, *map(len, pieces)]).tolist()
        traced = _join(text, encoded, starts[:-1])
        kept = np.flatnonzero(~np.isin(traced.ids, [*self._control_ids]))
        ids = [traced.ids[i] for i in kept.tolist()]
        return Traced(text, ids, traced.spans[kept], traced.words[kept])

    def decode(self, ids: list[int], specials: bool = False) -> str:
        """Text of token ids, special tokens left out unless asked for; Chinese without spaces."""
        text: str = self.raw.decode(ids, skip_special_tokens=not specials)
        return BETWEEN_CHARACTERS.sub("", text) if self._spaced else text

    def frame(self, ids: list[int]) -> list[int]:
        """A whole document: begin + ids + end, as far as the vocabulary has them."""
        begin = [] if self.begin is None else [self.begin]
        end = [] if self.end is None else [self.end]
        return begin + ids + end

    def join(self, documents: Iterable[list[int]]) -> list[int]:
        """Whole documents one after another: what `frame` gives of each, without a list of each."""
        begin, end = ([] if i is None else [i] for i in (self.begin, self.end))
        joined: list[int] = []
        for ids in documents:
            joined += begin
            joined += ids
            joined += end
        return joined

    def _find(self, names: tuple[str, ...]) -> int | None:
        ids = (self.raw.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)


def _content(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file without what is ours, and what is ours."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    own = content.pop(OWN, {})
    if own.get("first"):
        from ptft_lightning.data.normalization import check_steps

        check_steps(own["first"])
    return content, own


def _load(text: str, parts: dict[str, tuple[str, ...]]) -> RawTokenizer:
    try:
        raw = RawTokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(str(error)) from error
    names = sorted({name for usual in (PARTS, parts) for part in usual.values() for name in part})
    raw.add_special_tokens([name for name in names if raw.token_to_id(name) is not None])
    # Text is never control. Not saved with the file, so it is set at every load.
    raw.encode_special_tokens = True
    return raw


def _fingerprint(content: dict[str, Any], own: dict[str, Any]) -> str:
    """Hash of the tokenizer without what does not change ids (padding, truncation, layout)."""
    counts = {k: v for k, v in content.items() if k not in ("padding", "truncation", "version")}
    if own:
        counts[OWN] = own
    canonical = json.dumps(counts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _join(text: str, encoded: list[Encoding], starts: list[int]) -> Traced:
    """The tokens of the pieces of a text that begin at `starts`."""
    ids = [i for e in encoded for i in e.ids]
    spans = [np.array(e.offsets, np.int64).reshape(-1, 2) for e in encoded]
    words = [np.array(e.word_ids, np.int64) for e in encoded]
    before = np.cumsum([0, *(w[-1] + 1 if len(w) else 0 for w in words)])
    return Traced(
        text,
        ids,
        np.concatenate([s + start for s, start in zip(spans, starts, strict=True)]),
        np.concatenate([w + n for w, n in zip(words, before, strict=False)]),
    )
