"""When losses are a spike."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.modules.spikes import Detector


def first_alarm(losses: list[float], **settings: float) -> tuple[int, int] | None:
    """Where the detector speaks, and where it says the spike began."""
    detector = Detector(**({"threshold": 8.0, "patience": 3, "history": 64} | settings))
    for at, loss in enumerate(losses):
        if (ago := detector.add(loss)) is not None:
            return at, at - ago
    return None


def curve(seed: int, steps: int = 3000, noise: float = 0.05) -> np.ndarray:
    """A loss as training has it: a power law with noise that has heavy tails."""
    random = np.random.default_rng(seed)
    step = np.arange(steps)
    return 2.5 + 5 * (1 + step / 30) ** -0.5 + noise * random.standard_t(4, steps)


@pytest.mark.parametrize("seed", range(20))
def test_ordinary_noise_is_no_spike(seed):
    assert first_alarm(curve(seed).tolist()) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("at", [200, 1500, 2900])
def test_a_jump_is_found_where_it_is(seed, at):
    losses = curve(seed)
    losses[at : at + 10] += 2.0
    assert first_alarm(losses.tolist()) == (at + 2, at)


def test_one_odd_batch_is_no_spike_but_no_number_is():
    losses = curve(0)
    losses[500] += 20
    assert first_alarm(losses.tolist()) is None
    for value in (math.nan, math.inf):
        losses[3] = value  # with or without a history
        assert first_alarm(losses.tolist()) == (3, 3)
    losses[3] = 7.0
    losses[500:502] += 20
    losses[502] = math.nan  # the high ones before it belong to it
    assert first_alarm(losses.tolist()) == (502, 500)


@given(st.lists(st.floats(0.1, 10), min_size=9, max_size=9))
def test_the_limit_is_the_formula(losses):
    detector = Detector(threshold=4, patience=99, history=9)
    for loss in losses[:-1]:
        detector.add(loss)
    assert detector.limit() == math.inf
    detector.add(losses[-1])
    middle = statistics.median(losses)
    spread = 1.4826 * statistics.median([abs(loss - middle) for loss in losses])
    assert detector.limit() == pytest.approx(middle + 4 * max(spread, 0.02 * middle))
