"""Rows of several token stores in fixed shares: sample number -> source and row, as arithmetic.

The sources take turns in a periodic pattern, as evenly as their shares allow, so that every step
holds about its share of each and any sample is found without reading those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, cast

import numpy as np

from ptft_lightning.data.packing import Ids
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.sample_order import Numbers
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.errors import UserError

PERIOD = 4096


def check_replay(replay: dict[str, float], store: str) -> None:
    """Refuse shares that leave nothing to the store itself, and stores named twice.

    Raises:
        UserError: naming the share.
    """
    for name, share in replay.items():
        if not 0 < share < 1:
            raise UserError(f"data.replay.{name} is {share}: give a share of all rows, above 0")
        if name == store:
            raise UserError(f"data.replay names data.store '{store}' itself: leave it out there")
    if (total := sum(replay.values())) >= 1:
        raise UserError(
            f"the shares of data.replay sum to {total:g}: give less than 1 in all, the rest is "
            "data.store's"
        )


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
        self.counts = apportion(shares, PERIOD)
        if 0 in self.counts:
            raise UserError(f"a share of data.replay is less than 1 in {PERIOD} rows: leave it out")
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
        return source, period * np.asarray(self.counts)[source] + self.before[source, at]

    def until(self, source: int, count: int) -> int:
        """How many samples it takes until `source` has had `count` turns."""
        periods, rest = divmod(count - 1, self.counts[source])
        return periods * PERIOD + int(np.flatnonzero(self.pattern == source)[rest]) + 1


class MixedRows(Rows):
    """The rows of several sources as one; an epoch is one pass over the first of them."""

    def __init__(self, sources: Sequence[Rows], shares: Sequence[float]) -> None:
        self.sources, self.turns = list(sources), Turns(shares)
        self.store, self.length = sources[0].store, sources[0].length
        prints = [rows.store.manifest.fingerprint for rows in sources[1:]]
        self.mixture = {"replay": [list(pair) for pair in zip(prints, shares[1:], strict=True)]}
        shards = [len(rows.store.shards) for rows in sources]
        self.first_shard = np.cumsum([0, *shards])[:-1]

    def __len__(self) -> int:
        first = len(self.sources[0])
        return self.turns.until(0, first) if first else 0

    @property
    def stores(self) -> list[TokenStore]:
        """See `Rows`."""
        return [rows.store for rows in self.sources]

    def ahead(self, number: int) -> Iterator[tuple[TokenStore, int]]:
        """See `Rows`; of each source in turn."""
        periods, at = divmod(number, PERIOD)
        own = [
            periods * count + int(before)
            for count, before in zip(self.turns.counts, self.turns.before[:, at], strict=True)
        ]
        for some in zip_longest(*(r.ahead(n) for r, n in zip(self.sources, own, strict=True))):
            yield from (shard for shard in some if shard is not None)

    def shards_of(self, numbers: Numbers) -> Numbers:
        """See `Rows`; shards are numbered through all sources."""
        source, own = self.turns.place(numbers)
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
        source, own = self.turns.place(np.where(real, numbers, 0))
        source, own = np.where(real, source, 0), np.where(real, own, -1)
        out = np.empty((len(numbers), kinds, self.length + 1), np.int64)
        for s in np.unique(source):
            at = source == s
            out[at] = read(self.sources[s], own[at])
        return [out[:, kind] for kind in range(kinds)]


def mix_rows(main: Rows, others: dict[str, Rows], replay: dict[str, float]) -> MixedRows:
    """`main` with rows of other stores at their shares.

    Raises:
        UserError: another store has no rows.
    """
    for name, rows in others.items():
        if not len(rows):
            raise UserError(f"data.replay: '{name}' holds no training documents: leave it out")
    shares = [1 - sum(replay.values()), *(replay[name] for name in others)]
    return MixedRows([main, *others.values()], shares)
