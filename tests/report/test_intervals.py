"""Means with intervals against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from ptft_lightning.report.intervals import T_95, mean


def test_the_quantiles_are_student_s():
    wanted = stats.t.ppf(0.975, np.arange(1, len(T_95) + 1))
    assert pytest.approx(wanted, abs=5.1e-4) == T_95


@pytest.mark.parametrize("count", [2, 3, 5, 31])
def test_an_interval_is_scipy_s(count):
    values = np.random.default_rng(count).normal(0.7, 0.05, count)
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    found = mean(values.tolist())
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)
    assert found.spread == pytest.approx(values.std(ddof=1))
    assert found.count == count


def test_one_value_has_no_interval():
    found = mean([0.5])
    assert found.value == 0.5
    assert math.isnan(found.half)
    assert found.verdict == "too few"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.10, 0.12, 0.11], "gain"),
        ([-0.10, -0.12, -0.11], "loss"),
        ([0.10, -0.12, 0.01], "not told apart"),
    ],
)
def test_verdicts(values, verdict):
    assert mean(values).verdict == verdict
