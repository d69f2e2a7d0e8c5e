"""Rows of pairs of sentences by sample number, and batches of them; knows no objective by name."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from ptft_lightning.data.batch import Batch, build_batch, hash_rows
from ptft_lightning.data.module import say
from ptft_lightning.data.packing import Ids, Index
from ptft_lightning.data.pair_packing import FRAME, SHORTEST, PairRuns, Sentences, pack_pairs
from ptft_lightning.data.row_batches import RowDataset, RowMaker
from ptft_lightning.data.row_counts import ALONE, PAIRS
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.sample_order import Numbers, random_words
from ptft_lightning.data.steps import Slots
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

Pairs = Literal["next", "order"]
TRIES = 8  # places in other documents of which the one that fills its room best is taken
WORDS = 2 + TRIES  # random ones for each pair
KEPT = 16  # shards whose packing is kept, or two windows


class PairArrays(NamedTuple):
    """Rows of pairs, each (B, T + 1)."""

    tokens: Ids
    documents: Ids
    """Pairs of a row are numbered from 1."""
    segments: Ids
    """0 in `[CLS] A [SEP]`, 1 in `B [SEP]`."""
    labels: Ids
    """At the first token of a pair, 1 where B follows A in the text and 2 where it does not (or,
    of pairs in order, where the two were swapped); 0 elsewhere."""


class Half(NamedTuple):
    """A stretch of a shard's tokens."""

    start: int
    stop: int


class PairRows(Rows):
    """The rows of one split in layout `sentence_pairs`.

    Every other pair, by chance, is a negative one. Kind `next`: B is replaced by sentences from
    another document of the same shard, not longer than it. Kind `order`: A and B change places.
    The chance is a function of (seed, sample number).
    """

    def __init__(
        self,
        store: TokenStore,
        kind: Pairs | None,
        length: int,
        tokenizer: Tokenizer,
        seed: int,
        window: int,
        shuffle: bool,
    ) -> None:
        assert kind is not None, "preflight comes before"
        self.kind, self.seed, self.tokenizer = kind, seed, tokenizer
        self._runs: dict[int, PairRuns] = {}  # the last one is the one used last
        self.alone = 0
        super().__init__(store, "sentence_pairs", length, tokenizer.pad, seed, window, shuffle)

    def _rows_in(self, number: int) -> int:
        known = self.store.shards[number].rows or {}
        if (rows := known.get(f"{PAIRS} {self.length}")) is not None:
            self.alone += known[f"{ALONE} {self.length}"]
            return rows
        if self.store.cache is not None:
            raise UserError(
                f"token store '{self.store.place}' does not say how many rows of {self.length} "
                f"tokens its pairs make: prepare it with --lengths [{self.length}] and --sentences "
                "true"
            )
        runs = self._find(number)
        self.alone += runs.alone
        return len(runs.rows) - 1

    def _find(self, shard: int) -> PairRuns:
        runs = self._runs.pop(shard, None)
        if runs is None:
            starts = self.store.marks(shard, "sentences")[0 : self.store.shards[shard].tokens]
            runs = pack_pairs(starts > 0, np.asarray(self.store.ends(shard)), self.length)
        self._runs[shard] = runs
        if len(self._runs) > max(KEPT, 2 * self.window):
            del self._runs[next(iter(self._runs))]
        return runs

    def read(self, numbers: Numbers) -> tuple[Ids, Ids]:
        """See `Rows`; the extra column is padding."""
        pairs = self.read_pairs(numbers)
        return pairs.tokens, pairs.documents

    def read_words(self, numbers: Numbers) -> Ids:
        """See `Rows`; the tokens around A and B are words of their own."""
        return self._fill(numbers, words=True).tokens

    def read_pairs(self, numbers: Numbers) -> PairArrays:
        """Rows with what a pair adds to them; all padding where a number is -1."""
        return self._fill(numbers, words=False)

    def _fill(self, numbers: Numbers, words: bool) -> PairArrays:
        """Rows of tokens or, in their place, of the flags of words."""
        shape = len(numbers), self.length + 1
        out = PairArrays(
            np.full(shape, 1 if words else self.pad), *(np.zeros(shape, np.int64) for _ in range(3))
        )
        frame = (
            (1, 1) if words else (cast(int, self.tokenizer.begin), cast(int, self.tokenizer.end))
        )
        stream = self.store.words if words else self.store.tokens
        real = np.flatnonzero(numbers >= 0)
        shards, rows = self.order.place(numbers[real])
        found = [self._find(shard) for shard in shards.tolist()]
        spans = [
            r.rows[row : row + 2].tolist() for r, row in zip(found, rows.tolist(), strict=True)
        ]
        most = max((stop - first for first, stop in spans), default=0)
        drawn = random_words(self.seed, "pairs", numbers[real], WORDS * most)
        for n, at in enumerate(real.tolist()):
            ids, start = stream(int(shards[n])), 0
            for pair, run in enumerate(range(*spans[n])):
                chance = drawn[n, WORDS * pair : WORDS * (pair + 1)]
                first, second, negative = choose_pair(found[n], run, self.kind, chance)
                halves = [ids[slice(*half)] for half in (first, second)]
                row = np.concatenate([frame[:1], halves[0], frame[1:], halves[1], frame[1:]])
                here = slice(start, start + len(row))
                out.tokens[at, here], out.documents[at, here] = row, pair + 1
                out.segments[at, start + len(halves[0]) + 2 : here.stop] = 1
                out.labels[at, start] = 1 + negative
                start = here.stop
        return out


def choose_pair(
    runs: PairRuns, run: int, kind: Pairs, chance: npt.NDArray[np.uint64]
) -> tuple[Half, Half, bool]:
    """A, B and whether they are a negative pair, by (WORDS,) random words."""
    first, stop = int(runs.first[run]), int(runs.stop[run])
    negative = bool(chance[0] >> np.uint64(63))
    cut = first + 1 + int(chance[1] % np.uint64(stop - first - 1))
    begins, stops, _ = runs.sentences
    a = Half(int(begins[first]), int(stops[cut - 1]))
    b = Half(int(begins[cut]), int(stops[stop - 1]))
    if not negative:
        return a, b, False
    if kind == "order":
        return b, a, True
    other = _elsewhere(runs.sentences, first, b.stop - b.start, chance[2:])
    return (a, b, False) if other is None else (a, other, True)


def _elsewhere(
    sentences: Sentences, own: int, room: int, chance: npt.NDArray[np.uint64]
) -> Half | None:
    """Whole sentences in a row from another document than that of sentence `own`, at most `room`
    tokens: of some random places the one that fills the room best, so that the length of B does not
    betray a negative pair. Where no whole sentence fits, the beginning of one; where the shard has
    no other document, None."""
    begins, stops, document = sentences
    low, high = np.searchsorted(document, [document[own], document[own] + 1])
    others = len(document) - int(high - low)
    if not others:
        return None
    at: Index = (chance % np.uint64(others)).astype(np.int64)
    at += np.where(at >= low, high - low, 0)
    last = np.searchsorted(document, document[at], side="right")
    until = np.minimum(np.searchsorted(stops, begins[at] + room, side="right"), last)
    filled = np.where(until > at, stops[until - 1] - begins[at], 0)
    best = int(filled.argmax())
    start = int(begins[at[best]])
    return Half(start, start + int(filled[best] or room))


class PairMaker(RowMaker, Protocol):
    """The numpy half of an objective that learns from pairs."""

    def judge(self, labels: Ids, places: int) -> dict[str, Ids]:
        """Targets from (B, T) `PairArrays.labels`, of which a row has at most `places`."""
        ...


class PairDataset(RowDataset):
    """Sample numbers -> batches of pairs."""

    def __getitem__(self, slots: Slots) -> Batch:
        rows, maker = cast(Any, self.rows), cast(PairMaker, self.maker)
        pairs = PairArrays(*rows.read_pairs(slots.numbers))
        words = rows.read_words(slots.numbers) if maker.whole_words else None
        given = slots.numbers, self.seed, self.tokenizer, words
        tokens, targets = maker.make(pairs.tokens, pairs.documents, *given)
        documents, segments = pairs.documents[:, :-1], pairs.segments[:, :-1]
        targets |= maker.judge(pairs.labels[:, :-1], max(1, tokens.shape[1] // SHORTEST))
        hashes = None
        if self.audit:
            hashes = hash_rows(
                [tokens, documents, segments, *(targets[k] for k in sorted(targets))]
            )
        return build_batch(
            tokens,
            documents,
            slots.numbers,
            targets,
            slots.step_samples,
            segments,
            hashes,
            sources=rows.sources_of(slots.numbers),
        )


def tell_alone(*splits: Rows) -> None:
    """Say how many documents make no pair."""
    alone = sum(cast(PairRows, rows).alone for rows in splits)
    total = sum(shard.documents for rows in splits for shard in rows.store.shards)
    if alone:
        say(
            f"layout sentence_pairs: {alone} of {total} documents have one sentence, make no pair "
            "and are left out"
        )


def check_length(length: int) -> None:
    """Refuse rows in which there is no room for a pair."""
    if length < SHORTEST:
        raise UserError(
            f"data.length is {length}: a pair of sentences takes {SHORTEST} tokens or more "
            f"({FRAME} of them around it)"
        )
