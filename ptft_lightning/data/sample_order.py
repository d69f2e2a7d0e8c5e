"""Sample number -> where it is: pure arithmetic, no iterator state; knows no tokens.

Every function here is a pure function of its arguments, so that a resume is arithmetic, and any
rank or worker can ask for any sample without reading those before it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
TABLE = 2**21  # rows of a window whose permutation is kept: 16 MB, a fraction of a second
ROUNDS = 6  # of the Feistel network; four already pass usual tests of a random permutation


def random_key(*words: int | str) -> int:
    """A 64-bit key from numbers and names; the same on every machine."""
    text = "/".join(map(str, words)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def random_words(seed: int, purpose: str, samples: Numbers, count: int) -> Words:
    """`count` random 64-bit words for each sample, shape (B, count).

    Philox is counter-based (Salmon et al. 2011): the words of sample n depend on nothing but
    (seed, purpose, n). `random_raw` is a fixed stream, unlike numpy's Generator methods.
    """
    key = np.array([random_key(seed, purpose), 0], np.uint64)  # a list would become float64
    words = np.empty((len(samples), count), np.uint64)
    for row, sample in enumerate(samples.tolist()):
        key[1] = sample + 1
        words[row] = np.random.Philox(key=key).random_raw(count)
    return words


def mix(x: Words) -> Words:
    """The splitmix64 finaliser (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keyed_permutation(index: Numbers, size: int, key: tuple[int | str, ...]) -> Numbers:
    """Where a keyed random permutation of range(size) sends each index; O(1) memory.

    A balanced Feistel network over the next power of four, walked until the value falls inside
    (Black & Rogaway 2002, "cycle walking").
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64(2**half - 1)
    keys = [np.uint64(random_key(*key, i)) for i in range(ROUNDS)]

    def feistel(x: Words) -> Words:
        left, right = x >> np.uint64(half), x & mask
        with np.errstate(over="ignore"):
            for k in keys:
                left, right = right, left ^ (mix(right + k) & mask)
        return (left << np.uint64(half)) | right

    out = feistel(np.asarray(index).astype(np.uint64))
    while (outside := out >= np.uint64(size)).any():
        out[outside] = feistel(out[outside])
    return out.astype(np.int64)


class Epoch(NamedTuple):
    """How the rows of one epoch lie, one after another."""

    shards: Numbers
    """In the order in which they are read."""
    ends: Numbers
    """Rows up to and with each of them."""
    window_ends: Numbers
    """Rows up to and with each window."""


@dataclass(frozen=True)
class Order:
    """The order of the rows of a store: `place` sends sample numbers to (shard, row).

    Epoch 0 reads shards as stored, later epochs permute them; rows are permuted within windows of
    `window` shards, so that a corpus can be read with `window` shards at hand.
    """

    rows_per_shard: tuple[int, ...]
    seed: int
    window: int = 16
    shuffle: bool = True
    _epochs: dict[int, Epoch] = field(default_factory=dict, compare=False, repr=False)
    _tables: dict[tuple[int, int], Numbers] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def rows(self) -> int:
        """Rows in one epoch."""
        return sum(self.rows_per_shard)

    def place(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Shard and row within it of each sample number (any shape (n,), any order)."""
        shards, rows = np.empty_like(numbers), np.empty_like(numbers)
        epochs, inside = np.divmod(numbers, self.rows)
        for epoch in sorted(set(epochs.tolist())):  # np.unique takes longer on a batch
            at = epochs == epoch
            shards[at], rows[at] = self._place_epoch(epoch, inside[at])
        return shards, rows

    def shards_from(self, number: int) -> list[int]:
        """The shards of a sample's window and of the one after it, in the order of reading."""
        epoch, inside = divmod(number, self.rows)
        layout = self._epoch(epoch)
        first = int(np.searchsorted(layout.window_ends, inside, side="right")) * self.window
        found: list[int] = layout.shards[first : first + 2 * self.window].tolist()
        if len(layout.shards) <= first + self.window:
            found += self._epoch(epoch + 1).shards[: self.window].tolist()
        return found

    def _epoch(self, epoch: int) -> Epoch:
        """Kept for two epochs: with many shards it takes long to make."""
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = self._lay_out(epoch)
        return self._epochs[epoch]

    def _lay_out(self, epoch: int) -> Epoch:
        count = len(self.rows_per_shard)
        shards = np.arange(count)
        if self.shuffle and epoch > 0:
            shards = keyed_permutation(shards, count, (self.seed, "shards", epoch))
        ends = np.cumsum(np.array(self.rows_per_shard, np.int64)[shards])
        last = np.minimum(np.arange(self.window, count + self.window, self.window), count)
        return Epoch(shards, ends, ends[last - 1])

    def _place_epoch(self, epoch: int, inside: Numbers) -> tuple[Numbers, Numbers]:
        layout = self._epoch(epoch)
        mixed = self._mix_windows(epoch, inside, layout.window_ends) if self.shuffle else inside
        position = np.searchsorted(layout.ends, mixed, side="right")
        starts = np.where(position > 0, layout.ends[position - 1], 0)
        return layout.shards[position], mixed - starts

    def _mix_windows(self, epoch: int, inside: Numbers, window_ends: Numbers) -> Numbers:
        window_of = np.searchsorted(window_ends, inside, side="right")
        mixed = np.empty_like(inside)
        for w in sorted(set(window_of.tolist())):
            at, start = window_of == w, int(window_ends[w - 1]) if w else 0
            size = int(window_ends[w]) - start
            mixed[at] = start + self._permuted(inside[at] - start, size, (epoch, w))
        return mixed

    def _permuted(self, index: Numbers, size: int, window: tuple[int, int]) -> Numbers:
        """From a table of the whole window, where that is no burden: ten times as fast."""
        key = (self.seed, "rows", *window)
        if size > TABLE:
            return keyed_permutation(index, size, key)
        if window not in self._tables:
            if len(self._tables) > 1:
                del self._tables[next(iter(self._tables))]
            self._tables[window] = keyed_permutation(np.arange(size), size, key)
        return self._tables[window][index]


@dataclass(frozen=True)
class Segment:
    """From optimizer step `first_step` on, steps take `global_batch` samples each, in order."""

    first_step: int
    first_sample: int
    global_batch: int
    shares: tuple[float, ...] | None = None
    """Of the rows, for each store of a mixture."""


@dataclass(frozen=True)
class Segments:
    """The data state of a run: which samples each optimizer step consumed. Usually one row.

    With a `period` (phase two), no step crosses an epoch of that many samples: the last step of
    an epoch is short.
    """

    table: tuple[Segment, ...]
    period: int | None = None

    def span(self, step: int) -> tuple[int, int]:
        """First sample of optimizer step `step`, and the one after its last."""
        segment = next(s for s in reversed(self.table) if s.first_step <= step)
        steps, size = step - segment.first_step, segment.global_batch
        if self.period is None:
            first = segment.first_sample + steps * size
            return first, first + size
        epoch, offset = divmod(segment.first_sample, self.period)
        rest = -(-(self.period - offset) // size)
        if steps >= rest:
            more, steps = divmod(steps - rest, -(-self.period // size))
            epoch, offset = epoch + 1 + more, 0
        first = epoch * self.period + offset + steps * size
        return first, min(first + size, (epoch + 1) * self.period)

    def change(
        self,
        step: int,
        global_batch: int | None = None,
        shares: tuple[float, ...] | None = None,
        skip: int = 0,
    ) -> Segments:
        """The same past; from `step` on other values, where given, after `skip` samples."""
        kept = tuple(s for s in self.table if s.first_step < step)
        last = next(s for s in reversed(self.table) if s.first_step <= step)
        first, size = self.span(step)[0] + skip, global_batch or last.global_batch
        segment = Segment(step, first, size, shares or last.shares)
        return Segments((*kept, segment), self.period)

    def leave_out(self, skips: Iterable[tuple[int, int]], since: int) -> Segments:
        """Without samples [first, after) of each skip, by whole steps from step `since` on."""
        segments = Segments(tuple(s for s in self.table if s.first_step <= since), self.period)
        for first, after in sorted(skips):
            step = bisect_left(range(first + 1), first + 1, key=lambda s: segments.span(s)[1])
            skip = after - segments.span(step)[0]
            if step >= since and skip > 0:
                segments = segments.change(step, skip=skip)
        return segments

    def skipped(self, step: int) -> tuple[int, int] | None:
        """First sample left out right before optimizer step `step`, and the one after the last."""
        if step == 0 or all(segment.first_step != step for segment in self.table):
            return None
        gap = self.span(step - 1)[1], self.span(step)[0]
        return gap if gap[0] < gap[1] else None

    def state(self) -> list[dict[str, Any]]:
        """Plain numbers for a checkpoint."""
        return [asdict(segment) for segment in self.table]

    @classmethod
    def from_state(cls, state: list[dict[str, Any]], period: int | None) -> Segments:
        """Read back what `state` gave."""
        rows = [{**row, "shares": row.get("shares") and tuple(row["shares"])} for row in state]
        return cls(tuple(Segment(**row) for row in rows), period)


def rank_slots(count: int, rank: int, ranks: int) -> slice:
    """The slots of a global batch of `count` samples that belong to `rank`, for any count."""
    return slice(rank * count // ranks, (rank + 1) * count // ranks)


def micro_batches(count: int, ranks: int, micro: int) -> int:
    """Micro-batches every rank yields for a global batch, enough for the rank with most samples."""
    largest = -(-count // ranks)
    return -(-largest // micro)
