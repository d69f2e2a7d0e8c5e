"""Texts of a test set that occur in a corpus: n-grams of both compared as 64-bit hashes.

A text is a sequence of units: words, and single characters of scripts written without spaces, all
lower-cased, without accents and punctuation, so that what a tokenizer or an editor changes of
these does not hide a copy. An n-gram is N units in a row. The test set's n-grams are kept as a
sorted array, the corpus is read once in blocks, so that memory depends on the test set alone.

A unit is *covered* if an n-gram that holds it occurs in the corpus (as with the tokens of Touvron
et al. 2023, Llama 2). An example is flagged if a quarter of its units are, and at least TOGETHER or
all of them: one stock phrase of N words is no copy. A part of it that is shorter than N units
counts as covered if it is, as a whole, a sentence of the corpus; an example of fewer than SHORTEST
units is not judged.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.progress import ByteProgress

N = 8
SHORTEST = 4
FLAGGED = 0.25  # share of an example's units
TOGETHER = N + 2
BLOCK = 2**19  # tokens of the corpus looked at in one go
SLOTS = 2**24  # of the table that sorts out most n-grams before they are searched for
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: a polynomial in it modulo 2^64 mixes random words
BETWEEN, SENTENCE = np.uint64(0), np.uint64(1)

# Kana, Chinese, Thai, Lao, Burmese, Khmer: each character is a unit.
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
UNITS = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+|[.!?;\n。]|\0")
Hashes = npt.NDArray[np.uint64]
Index = npt.NDArray[np.int64]


def plain(text: str) -> str:
    """Lower case, compatibility forms, no accents."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in text if unicodedata.category(c) != "Mn")
    return text.casefold()


class _Words(dict[str, int]):
    """Units -> 64-bit hashes; remembers those it met."""

    def __missing__(self, unit: str) -> int:
        digest = hashlib.blake2b(unit.encode(errors="replace"), digest_size=8).digest()
        value = max(int.from_bytes(digest, "little"), 2)
        if len(self) < 2**21:
            self[unit] = value
        return value


WORDS = _Words({"\0": int(BETWEEN), **dict.fromkeys(".!?;\n。", int(SENTENCE))})


def hash_units(text: str) -> Hashes:
    """The units of a plain text, with BETWEEN and SENTENCE where documents and sentences end."""
    found = UNITS.findall(text)
    return np.fromiter(map(WORDS.__getitem__, found), np.uint64, len(found))


def grams(units: Hashes, starts: Index, n: int) -> Hashes:
    """Hashes of the n units from each start on."""
    out = np.zeros(len(starts), np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(n):
            out = out * BASE + units[starts + offset]
    return out ^ (out >> np.uint64(29))


@dataclass(frozen=True)
class Hit:
    """An example that occurs in the corpus."""

    example: int
    covered: float
    """Share of its units."""
    shard: str
    document: int
    """Where the first of its n-grams was met."""
    shared: str
    """Its longest run of covered units."""


class Needles:
    """What is looked for: the n-grams of the parts (texts) of each example."""

    def __init__(self, examples: Sequence[Sequence[str]]) -> None:
        self.parts: list[tuple[int, list[str], Hashes]] = []
        wanted, short = [np.empty(0, np.uint64)], {}
        self.units = np.zeros(len(examples), np.int64)
        for number, texts in enumerate(examples):
            for text in texts:
                words = [w for w in UNITS.findall(plain(text)) if WORDS[w] > SENTENCE]
                hashes = np.array([WORDS[w] for w in words], np.uint64)
                n = min(N, len(words))
                self.units[number] += len(words)
                keys = grams(hashes, np.arange(len(words) - n + 1), n) if n >= SHORTEST else None
                keys = wanted[0] if keys is None else keys
                self.parts.append((number, words, keys))
                wanted.append(keys)
                if SHORTEST <= len(words) < N:
                    short[len(words)] = True
        self.short = sorted(short)
        self.keys = np.unique(np.concatenate(wanted))
        self.places = np.full((len(self.keys), 2), -1, np.int64)  # shard and document
        self.table = np.zeros(SLOTS, np.bool_)
        self.table[self.keys % np.uint64(SLOTS)] = True

    @property
    def unjudged(self) -> int:
        """Examples too short to be judged."""
        return int((self.units < SHORTEST).sum())

    def look(self, found: Hashes, shard: int, documents: Index) -> None:
        """Note those n-grams of a block of the corpus that are wanted, and their documents."""
        maybe = np.flatnonzero(self.table[found % np.uint64(SLOTS)])
        if not len(maybe):
            return
        at = np.minimum(np.searchsorted(self.keys, found[maybe]), len(self.keys) - 1)
        same = self.keys[at] == found[maybe]
        at, where = at[same], documents[maybe[same]]
        fresh = self.places[at, 0] < 0
        # Of several places of one n-gram the first stays: it is written last.
        self.places[at[fresh][::-1], 1] = where[fresh][::-1]
        self.places[at[fresh], 0] = shard

    def hits(self, shards: Sequence[str]) -> list[Hit]:
        """The flagged examples, in their order."""
        covered = np.zeros(len(self.units), np.int64)
        best: dict[int, tuple[int, str]] = {}
        first: dict[int, tuple[int, int]] = {}
        for number, words, keys in self.parts:
            at = np.searchsorted(self.keys, keys)
            there = self.places[at, 0] >= 0 if len(keys) else np.zeros(0, np.bool_)
            if not there.any():
                continue
            marks = np.zeros(len(words), np.bool_)
            for start in np.flatnonzero(there):
                marks[start : start + N] = True
            covered[number] += marks.sum()
            run = max(_runs(marks), key=lambda ab: ab[1] - ab[0])
            if run[1] - run[0] > best.get(number, (0, ""))[0]:
                best[number] = (run[1] - run[0], " ".join(words[slice(*run)]))
            place = self.places[at[there][0]]
            first.setdefault(number, (int(place[0]), int(place[1])))
        share = covered / np.maximum(self.units, 1)
        enough = covered >= np.minimum(self.units, TOGETHER)
        flagged = np.flatnonzero((share >= FLAGGED) & enough & (self.units >= SHORTEST))
        return [
            Hit(n, float(share[n]), shards[first[n][0]], first[n][1], best[n][1])
            for n in flagged.tolist()
        ]


def _runs(marks: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last-but-one of each stretch of true marks."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def scan(store: TokenStore, tokenizer: Tokenizer, needles: Needles) -> None:
    """Look for the needles in every document of one split of a store; shows progress."""
    total = sum(shard.text_bytes for shard in store.shards)
    per_token = total / max(1, store.total_tokens)
    with ByteProgress("overlap", total) as progress:
        for shard in range(len(store.shards)):
            for first, texts, tokens in _blocks(store, shard, tokenizer):
                look_in(texts, shard, first, needles)
                progress.advance(int(tokens * per_token))


def _blocks(
    store: TokenStore, shard: int, tokenizer: Tokenizer
) -> Iterator[tuple[int, list[str], int]]:
    """Number of the first document, the texts of some, and how many tokens they were."""
    tokens, ends = store.tokens(shard), np.asarray(store.ends(shard))
    first = start = 0
    while first < len(ends):
        # At least one document, however long.
        last = max(first + 1, int(np.searchsorted(ends, start + BLOCK, side="right")))
        stop = int(ends[last - 1])
        block = np.asarray(tokens[start:stop])
        cuts = (ends[first : last - 1] - start).tolist()
        ids = [part.tolist() for part in np.split(block, cuts)]
        yield first, tokenizer.raw.decode_batch(ids, skip_special_tokens=True), stop - start
        first, start = last, stop


def look_in(texts: Sequence[str], shard: int, first: int, needles: Needles) -> None:
    """Look for the needles in documents, the first of which has number `first` in its shard."""
    marked = hash_units(plain("\0".join(texts)))
    is_unit = marked > SENTENCE
    documents = first + np.cumsum(marked == BETWEEN)
    units, of = marked[is_unit], documents[is_unit]
    if len(units) >= N:
        starts = np.flatnonzero(of[: len(of) - N + 1] == of[N - 1 :])
        needles.look(grams(units, starts, N), shard, of[starts])
    if not needles.short:
        return
    # Sentences: from one mark to the next.
    marks = np.flatnonzero(~is_unit)
    bounds = np.concatenate([[0], np.cumsum(is_unit)[marks], [len(units)]])
    lengths = np.diff(bounds)
    for n in needles.short:
        starts = bounds[:-1][lengths == n]
        needles.look(grams(units, starts, n), shard, of[starts])


def record(hit: Hit, place: str, store: str, said: dict[str, Any]) -> dict[str, Any]:
    """A line about a hit."""
    return {
        "place": place,
        "covered": round(hit.covered, 4),
        "store": store,
        "shard": hit.shard,
        "document": hit.document,
        "shared": hit.shared,
        **said,
    }
