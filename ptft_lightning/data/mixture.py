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

from ptft_lightning.data.manifest import read_manifest
from ptft_lightning.data.module import say
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.sample_order import Numbers, Segment, Segments
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.turns import PERIOD, Turns, apportion
from ptft_lightning.errors import UserError

if TYPE_CHECKING:
    from ptft_lightning.data.corpus import CorpusDataModule

Shares = npt.NDArray[np.float64]


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
        return self.epochs_samples(1)

    def epochs_samples(self, epochs: int) -> int:
        """See `Rows`; where the first store gets no more turns, as many as all stores have rows."""
        rows = epochs * len(self.sources[0])
        for stretch, after in pairwise([*self.stretches, None]):
            assert stretch is not None
            left = rows - int(stretch.taken[0])
            if (after is None or after.taken[0] >= rows) and stretch.turns.counts[0] and left > 0:
                return stretch.first + stretch.turns.until(0, left)
        return epochs * sum(map(len, self.sources)) if rows else 0

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
    shares = (1.0,) * len(every)  # until a checkpoint tells
    if not data.resumes:
        shares = shares_of(data, every, np.zeros(len(every), np.int64), data.rows_from(0))
        _tell(data.stores, shares)
    data.train_rows = MixedRows(every, shares)
    data.segments = Segments((Segment(0, 0, data.global_batch_size, shares),))
    if data.default_validation:
        _leave_unheld(data)


def go_on(data: CorpusDataModule, request: dict[str, Any], step: int) -> None:
    """The shares of a resumed run: those it had, or from `step` on others where it asks for them.

    Raises:
        UserError: the shares cannot be had.
    """
    mixed, mixture = data.train_rows, data.mixture
    assert isinstance(mixed, MixedRows)
    assert mixture is not None
    mixed.share_out(share_table(data.segments))
    if mixture.request(data.rows_from(0)) != request:
        first = data.segments.span(step)[0]
        if ahead := [skip for skip in data.skips if skip[1] > first]:
            raise UserError(
                f"data.mixture has changed, and samples {ahead[0][0]} to {ahead[0][1] - 1} are "
                "still to be left out (skips.json), which would be others: resume with the mixture "
                "as it was and change it after them"
            )
        shares = shares_of(data, mixed.sources, mixed.taken(first), data.rows_from(step))
        data.segments = data.segments.change(step, shares=shares)
        _tell(data.stores, shares)


def settle(data: CorpusDataModule) -> None:
    """Deal the rows as the table of segments says."""
    assert isinstance(data.train_rows, MixedRows)
    data.train_rows.share_out(share_table(data.segments))


def _leave_unheld(data: CorpusDataModule) -> None:
    """Ask no held-out loss of stores that have no held-out text, where nobody asked for it."""
    stores = data.validation_stores.items()
    held = {name: at for name, at in stores if any(s.tokens for s in read_manifest(at).validation)}
    if lost := [name for name in data.validation_stores if name not in held]:
        say(f"mixture: no held-out text in {', '.join(lost)}, so no val_NAME_loss of it")
    data.validation_stores = held


def share_table(segments: Segments) -> list[tuple[int, tuple[float, ...]]]:
    """First samples and the shares from there on."""
    table = [(s.first_sample, s.shares) for s in segments.table if s.shares is not None]
    return [row for before, row in pairwise([(0, ()), *table]) if row[1] != before[1]]


def _tell(stores: dict[str, str], shares: tuple[float, ...]) -> None:
    listed = (f"{name} {share:.1%}" for name, share in zip(stores, shares, strict=True))
    say(f"mixture: {', '.join(listed)} of the rows")


def shares_of(
    data: CorpusDataModule, sources: Sequence[Rows], taken: Numbers, rows: int
) -> tuple[float, ...]:
    """Each source's share of `rows` rows to come, when so many rows of each were `taken`.

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
    if mixture.max_passes is not None and rows:
        room = np.maximum(mixture.max_passes * sizes - taken, 0)
        wanted = _limited(wanted, room, rows, mixture.max_passes)
        wanted = np.where(apportion(wanted, PERIOD) > 0, wanted, 0)  # 0 where nearly at its cap
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
