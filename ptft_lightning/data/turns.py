"""Whose turn is it? A periodic pattern of sources in given shares, as arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ptft_lightning.data.sample_order import Numbers
from ptft_lightning.errors import UserError

PERIOD = 4096


def apportion(shares: Sequence[float] | npt.NDArray[np.float64], places: int) -> Numbers:
    """Whole numbers in proportion to `shares` that sum to `places` (largest remainders)."""
    exact = np.asarray(shares, np.float64) / sum(shares) * places
    counts: Numbers = np.floor(exact).astype(np.int64)
    most = np.argsort(counts - exact, kind="stable")[: places - int(counts.sum())]
    counts[most] += 1
    return counts


class Turns:
    """Whose turn a sample is: the pattern and, for each source, how often it came before."""

    def __init__(self, shares: Sequence[float]) -> None:
        self.counts = apportion(shares, PERIOD)
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
