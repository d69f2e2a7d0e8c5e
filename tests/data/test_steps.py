"""Micro-batches: every sample once over all ranks, and equally many batches on each."""

from __future__ import annotations

from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.data.sample_order import Numbers, Segment, Segments, micro_batches
from ptft_lightning.data.steps import PassSampler, Slots, StepSampler, deal

counts = st.integers(0, 60)
ranks_of = st.integers(1, 9)
micros = st.integers(1, 9)


def check_deal(dealt: list[list[Slots]], numbers: list[int], micro: int) -> None:
    """Ranks' micro-batches of one step: `numbers` once, in order, equal shapes."""
    assert len({len(rank) for rank in dealt}) == 1
    assert all(slots.numbers.shape == (micro,) for rank in dealt for slots in rank)
    assert all(slots.step_samples == len(numbers) for rank in dealt for slots in rank)
    together = [n for rank in dealt for slots in rank for n in slots.numbers.tolist()]
    assert [n for n in together if n >= 0] == numbers


@given(count=counts, ranks=ranks_of, micro=micros, spare=st.integers(0, 3), data=st.data())
def test_deal_gives_every_sample_to_one_rank(
    count: int, ranks: int, micro: int, spare: int, data: st.DataObject
) -> None:
    numbers = data.draw(st.permutations(range(100, 100 + count)))
    batches = micro_batches(count, ranks, micro) + spare
    dealt = [list(deal(np.array(numbers, int), r, ranks, micro, batches)) for r in range(ranks)]
    assert {len(rank) for rank in dealt} == {batches}
    check_deal(dealt, list(numbers), micro)
    for rank in dealt:  # empty slots come last
        flat = [n for slots in rank for n in slots.numbers.tolist()]
        filled = [n for n in flat if n >= 0]
        assert flat == filled + [-1] * (len(flat) - len(filled))


@given(
    batch=st.integers(1, 20),
    period=st.none() | st.integers(1, 50),
    ranks=ranks_of,
    micro=micros,
    start=st.integers(0, 12),
)
def test_step_sampler_starts_anywhere(
    batch: int, period: int | None, ranks: int, micro: int, start: int
) -> None:
    """A resumed run deals the tail of an undisturbed one; each step its samples, once."""
    segments = Segments((Segment(0, 0, batch),), period)
    batches = micro_batches(batch, ranks, micro)

    def numbers(step: int) -> Numbers:
        return np.arange(*segments.span(step))

    def slots(rank: int, first: int, steps: int) -> list[Slots]:
        sampler = StepSampler(lambda: first, numbers, rank, ranks, micro, batches)
        return list(islice(sampler, steps * batches))

    whole = [slots(rank, 0, 16) for rank in range(ranks)]
    for rank in range(ranks):
        tail = slots(rank, start, 4)
        expected = whole[rank][start * batches : (start + 4) * batches]
        assert len(tail) == len(expected) == 4 * batches
        for mine, theirs in zip(tail, expected, strict=True):
            assert mine.numbers.tolist() == theirs.numbers.tolist()
            assert mine.step_samples == theirs.step_samples
    for step in range(16):
        dealt = [rank[step * batches : (step + 1) * batches] for rank in whole]
        check_deal(dealt, numbers(step).tolist(), micro)


def test_start_step_is_asked_when_iteration_begins() -> None:
    step = 0
    sampler = StepSampler(lambda: step, lambda s: np.array([s]), 0, 1, 1, 1)
    step = 7  # a checkpoint was loaded after the loader was made
    assert next(iter(sampler)).numbers.tolist() == [7]
    step = 9
    assert next(iter(sampler)).numbers.tolist() == [9]


@given(count=counts, ranks=ranks_of, micro=micros)
def test_pass_sampler_covers_everything_once(count: int, ranks: int, micro: int) -> None:
    samplers = [PassSampler(count, rank, ranks, micro) for rank in range(ranks)]
    dealt = [list(sampler) for sampler in samplers]
    assert [len(rank) for rank in dealt] == [len(sampler) for sampler in samplers]
    check_deal(dealt, list(range(count)), micro)
