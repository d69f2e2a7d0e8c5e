"""Rows of several token stores in fixed shares: sample number -> source and row, as arithmetic.

The sources take turns in a periodic pattern, as evenly as their shares allow, so that every step
holds about its share of each and any sample is found without reading those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from ptft_lightning.data.module import say
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.sample_order import Numbers, Segment, Segments
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.errors import UserError

if TYPE_CHECKING:
    from ptft_lightning.data.corpus import CorpusDataModule

Shares = npt.NDArray[np.float64]
PERIOD = 4096


def apportion(shares: Sequence[float], places: int) -> list[int]:
    """Whole numbers in proportion to `shares` that sum to `places` (largest remainders)."""
    exact = np.asarray(shares, np.float64) / sum(shares) * places
    counts = np.floor(exact).astype(np.int64)
    most = np.argsort(counts - exact, kind="stable")[: places - int(counts.sum())]
    counts[most] += 1
    return [int(count) for count in counts]


class Turns:
    """Whose turn a sample is: the pattern and, for each source, how often it came before."""

    def __init__(self, shares: Sequence[float]) -> None:
        self.counts = np.array(apportion(shares, PERIOD))
        if (lost := (self.counts == 0) & (np.asarray(shares) > 0)).any():
            share = np.asarray(shares)[lost][0] / sum(shares)
            raise UserError(
                f"a store's share of the rows is {share:.2g}, less than 1 in {PERIOD} rows: give "
                "it more, or leave it out"
            )
        # Turn k of a source stands in the middle of the k-th of its equal parts of the period.
        middles = [(np.arange(count) + 0.5) / count for count in self.counts]
        owner = np.repeat(np.arange(len(self.counts)), self.counts)
        turn = np.argsort(np.concatenate(middles), kind="stable")
        self.pattern: Numbers = owner[turn]
        mine = self.pattern == np.arange(len(self.counts))[:, None]
        self.before = np.cumsum(mine, axis=1) - mine
        """(sources, PERIOD): turns of each source before a place in the period."""

    def place(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Source of each sample, and its number among that source's samples."""
        period, at = np.divmod(numbers, PERIOD)
        source = self.pattern[at]
        return source, period * self.counts[source] + self.before[source, at]

    def taken(self, number: int) -> Numbers:
        """Turns of each source before a sample."""
        period, at = divmod(number, PERIOD)
        taken: Numbers = period * self.counts + self.before[:, at]
        return taken

    def until(self, source: int, count: int) -> int:
        """How many samples it takes until `source` has had `count` turns."""
        periods, rest = divmod(count - 1, int(self.counts[source]))
        return periods * PERIOD + int(np.flatnonzero(self.pattern == source)[rest]) + 1


class Stretch(NamedTuple):
    """Samples from `first` on are dealt in the same shares."""

    first: int
    turns: Turns
    taken: Numbers
    """Rows of each source before it."""


class MixedRows(Rows):
    """The rows of several sources as one; an epoch is one pass over the first of them.

    Each source is read in its own order, whatever its share: where shares change, it goes on.
    """

    def __init__(self, sources: Sequence[Rows], shares: Sequence[float]) -> None:
        self.sources = list(sources)
        self.store, self.length = sources[0].store, sources[0].length
        self.mixture = {"sources": [rows.store.manifest.fingerprint for rows in sources]}
        shards = [len(rows.store.shards) for rows in sources]
        self.first_shard = np.cumsum([0, *shards])[:-1]
        self.share_out([(0, shares)])

    def share_out(self, table: Sequence[tuple[int, Sequence[float]]]) -> None:
        """Deal the samples anew: `table` has first samples and the shares from there on."""
        self.stretches: list[Stretch] = []
        taken = np.zeros(len(self.sources), np.int64)
        for first, shares in table:
            if self.stretches:
                before = self.stretches[-1]
                taken = before.taken + before.turns.taken(first - before.first)
            self.stretches.append(Stretch(first, Turns(shares), taken))
        self.firsts = np.array([stretch.first for stretch in self.stretches])

    def place(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Source of each sample, and its number among that source's samples."""
        source, own = np.empty_like(numbers), np.empty_like(numbers)
        which = np.searchsorted(self.firsts, numbers, side="right") - 1
        for w in np.unique(which):
            at, stretch = which == w, self.stretches[w]
            source[at], own[at] = stretch.turns.place(numbers[at] - stretch.first)
            own[at] += stretch.taken[source[at]]
        return source, own

    def taken(self, number: int) -> Numbers:
        """Rows of each source before a sample."""
        stretch = self.stretches[int(np.searchsorted(self.firsts, number, side="right")) - 1]
        return stretch.taken + stretch.turns.taken(number - stretch.first)

    def __len__(self) -> int:
        rows = len(self.sources[0])
        if not rows:
            return 0
        for stretch, after in pairwise([*self.stretches, None]):
            assert stretch is not None
            if after is None or after.taken[0] >= rows > stretch.taken[0]:
                return stretch.first + stretch.turns.until(0, rows - int(stretch.taken[0]))
        raise AssertionError("the first source has turns everywhere")

    @property
    def stores(self) -> list[TokenStore]:
        """See `Rows`."""
        return [rows.store for rows in self.sources]

    def sources_of(self, numbers: Numbers) -> Numbers:
        """See `Rows`."""
        return self.place(np.maximum(numbers, 0))[0]

    def ahead(self, number: int) -> Iterator[tuple[TokenStore, int]]:
        """See `Rows`; of each source in turn."""
        counts = self.stretches[int(np.searchsorted(self.firsts, number, side="right")) - 1].turns
        own = zip(self.sources, self.taken(number).tolist(), counts.counts, strict=True)
        for some in zip_longest(*(rows.ahead(n) for rows, n, count in own if count)):
            yield from (shard for shard in some if shard is not None)

    def shards_of(self, numbers: Numbers) -> Numbers:
        """See `Rows`; shards are numbered through all sources."""
        source, own = self.place(numbers)
        shards = np.empty_like(numbers)
        for s in np.unique(source):
            at = source == s
            shards[at] = self.first_shard[s] + self.sources[s].shards_of(own[at])
        return shards

    def read(self, numbers: Numbers) -> tuple[Ids, Ids]:
        """See `Rows`."""
        tokens, documents = self._gather(numbers, lambda rows, own: np.stack(rows.read(own), 1), 2)
        return tokens, documents

    def read_words(self, numbers: Numbers) -> Ids:
        """See `Rows`."""
        (words,) = self._gather(numbers, lambda rows, own: rows.read_words(own)[:, None], 1)
        return words

    def read_pairs(self, numbers: Numbers) -> list[Ids]:
        """See `PairRows`, which the sources are."""

        def read(rows: Rows, own: Numbers) -> Ids:
            return np.stack(cast(Any, rows).read_pairs(own), 1)

        return self._gather(numbers, read, 4)

    def _gather(
        self, numbers: Numbers, read: Callable[[Rows, Numbers], Ids], kinds: int
    ) -> list[Ids]:
        """`kinds` arrays (B, T + 1), each row read from its source; empty slots from the first."""
        real = numbers >= 0
        source, own = self.place(np.where(real, numbers, 0))
        source, own = np.where(real, source, 0), np.where(real, own, -1)
        out = np.empty((len(numbers), kinds, self.length + 1), np.int64)
        for s in np.unique(source):
            at = source == s
            out[at] = read(self.sources[s], own[at])
        return [out[:, kind] for kind in range(kinds)]


def begin(data: CorpusDataModule, sources: dict[str, Rows]) -> None:
    """Mix the stores of a data module for a run from its first step on.

    Raises:
        UserError: a store has no rows, or the shares cannot be had.
    """
    assert data.mixture is not None
    for name, rows in sources.items():
        if not len(rows) and (data.mixture.weights is None or data.mixture.weights[name]):
            raise UserError(
                f"data.mixture: '{data.stores[name]}' holds no training documents: leave it out"
            )
    every = list(sources.values())
    shares = shares_of(data, every, np.zeros(len(every), np.int64), first=0)
    data.train_rows = MixedRows(every, shares)
    data.segments = Segments((Segment(0, 0, data.global_batch_size, shares),))
    _tell(data.stores, shares)


def go_on(data: CorpusDataModule, request: dict[str, Any], step: int) -> None:
    """The shares of a resumed run: those it had, or from `step` on others where it asks for them.

    Raises:
        UserError: the shares cannot be had.
    """
    mixed, mixture = data.train_rows, data.mixture
    assert isinstance(mixed, MixedRows)
    assert mixture is not None
    mixed.share_out(share_table(data.segments))
    if mixture.request(data.run_rows) != request:
        first = data.segments.span(step)[0]
        shares = shares_of(data, mixed.sources, mixed.taken(first), first)
        data.segments = data.segments.change(step, shares=shares)
        mixed.share_out(share_table(data.segments))
        _tell(data.stores, shares)


def share_table(segments: Segments) -> list[tuple[int, tuple[float, ...]]]:
    """First samples and the shares from there on."""
    table = [(s.first_sample, s.shares) for s in segments.table if s.shares is not None]
    return [row for before, row in pairwise([(0, ()), *table]) if row[1] != before[1]]


def _tell(stores: dict[str, str], shares: tuple[float, ...]) -> None:
    listed = (f"{name} {share:.1%}" for name, share in zip(stores, shares, strict=True))
    say(f"mixture: {', '.join(listed)} of the rows")


def shares_of(
    data: CorpusDataModule, sources: Sequence[Rows], taken: Numbers, first: int
) -> tuple[float, ...]:
    """Each source's share of the rows from `first` on, when so many rows of each were `taken`.

    Raises:
        UserError: `max_passes` cannot be kept.
    """
    mixture, sizes = data.mixture, np.array([len(some) for some in sources], np.float64)
    assert mixture is not None
    if mixture.weights is not None:
        wanted = np.array([mixture.weights[name] for name in mixture.stores], np.float64)
    else:
        wanted = sizes ** (1 / mixture.temperature)
    wanted /= wanted.sum()
    if mixture.max_passes is not None:
        room = np.maximum(mixture.max_passes * sizes - taken, 0)
        wanted = _limited(wanted, room, data.run_rows - first, mixture.max_passes)
    return tuple(float(share) for share in wanted)


def _limited(shares: Shares, room: Shares, rows: int, passes: float) -> Shares:
    """Shares of `rows` rows of which no source gives more than its `room`."""
    if rows < 0:
        raise UserError("data.mixture.max_passes: give trainer.max_steps, not epochs, beside it")
    if (most := int(room[shares > 0].sum())) < rows:
        raise UserError(
            f"data.mixture.max_passes is {passes:g}: the stores give {most} rows, the "
            f"run reads {rows}: raise it, or lower trainer.max_steps"
        )
    full = np.zeros(len(shares), np.bool_)
    while True:
        left = rows - room[full].sum()
        free = np.where(full, 0, shares)
        wanted = np.where(full, room, free / max(free.sum(), 1e-30) * left)
        over = ~full & (wanted > room)
        if not over.any():
            return wanted / max(rows, 1)
        full |= over
