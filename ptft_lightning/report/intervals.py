"""Means of few runs: spread, Student's interval, and paired differences; knows no runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["gain", "loss", "not told apart", "too few"]

# Two-sided 95 % quantiles of Student's t for 1, 2, .. degrees of freedom.
T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
NORMAL_95 = 1.960


@dataclass(frozen=True)
class Mean:
    """A mean over runs with its 95 % interval; the interval of a single run is not known."""

    value: float
    spread: float
    """Sample standard deviation; NaN for one run."""
    half: float
    """Half the width of the interval; NaN for one run."""
    count: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.value - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.value + self.half

    @property
    def verdict(self) -> Verdict:
        """Of a difference: which side of 0 its interval is on."""
        if math.isnan(self.half):
            return "too few"
        if self.low > 0:
            return "gain"
        return "loss" if self.high < 0 else "not told apart"


def mean(values: Sequence[float]) -> Mean:
    """Student's interval, which takes the values for draws from a normal distribution."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return Mean(float(x.mean()), math.nan, math.nan, len(x))
    spread = float(x.std(ddof=1))
    quantile = T_95[len(x) - 2] if len(x) - 2 < len(T_95) else NORMAL_95
    return Mean(float(x.mean()), spread, quantile * spread / math.sqrt(len(x)), len(x))
