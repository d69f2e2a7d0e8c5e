"""Which samples each micro-batch holds: optimizer steps dealt to ranks; knows no tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from ptft_lightning.data.sample_order import Numbers, micro_batches, rank_slots


class Slots(NamedTuple):
    """One micro-batch before it is read."""

    numbers: Numbers
    """(micro_batch_size,): sample numbers, -1 in slots that stay empty."""
    step: Numbers
    """(G,): those of the whole optimizer step, over all ranks and micro-batches."""

    @property
    def step_samples(self) -> int:
        """Samples of the whole optimizer step."""
        return len(self.step)


def deal(numbers: Numbers, rank: int, ranks: int, micro: int, batches: int) -> Iterator[Slots]:
    """Cut one rank's share of a step into exactly `batches` micro-batches, filled up with -1."""
    mine = numbers[rank_slots(len(numbers), rank, ranks)]
    for start in range(0, batches * micro, micro):
        slots = np.full(micro, -1, np.int64)
        share = mine[start : start + micro]
        slots[: len(share)] = share
        yield Slots(slots, numbers)


class StepSampler(Sampler[Slots]):
    """Endless micro-batches from the current optimizer step on, unless a step has no samples.

    `start_step` is asked when iteration begins, so that a resumed run begins at its own step.
    """

    def __init__(
        self,
        start_step: Callable[[], int],
        step_numbers: Callable[[int], Numbers],
        rank: int,
        ranks: int,
        micro: int,
        batches: int,
    ) -> None:
        self.start_step, self.step_numbers = start_step, step_numbers
        self.rank, self.ranks, self.micro, self.batches = rank, ranks, micro, batches

    def __iter__(self) -> Iterator[Slots]:
        step = self.start_step()
        while len(numbers := self.step_numbers(step)):
            yield from deal(numbers, self.rank, self.ranks, self.micro, self.batches)
            step += 1


class PassSampler(Sampler[Slots]):
    """One pass over `count` samples in stored order: all ranks yield equally many micro-batches."""

    def __init__(self, count: int, rank: int, ranks: int, micro: int) -> None:
        self.count, self.rank, self.ranks, self.micro = count, rank, ranks, micro

    def __len__(self) -> int:
        return micro_batches(self.count, self.ranks, self.micro)

    def __iter__(self) -> Iterator[Slots]:
        yield from deal(np.arange(self.count), self.rank, self.ranks, self.micro, len(self))
