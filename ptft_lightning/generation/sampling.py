"""How the next token is chosen from logits; knows no model and no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptft_lightning.data.sample_order import random_words
from ptft_lightning.errors import UserError

MOST_SAMPLES = 2**20  # of one prompt


@dataclass(frozen=True)
class Sampling:
    """What narrows the choice; temperature 0 takes the most likely token."""

    temperature: float = 0.0
    """Logits are divided by it."""
    top_k: int | None = None
    """Choose among so many tokens (Fan et al. 2018)."""
    top_p: float | None = None
    """Choose among the fewest tokens that together have this probability (Holtzman et al. 2020)."""
    min_p: float | None = None
    """Leave out what is less likely than this share of the most likely (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Positive logits of tokens already in the text are divided, negative ones multiplied by it
    (Keskar et al. 2019)."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError(f"--temperature is {self.temperature}: give 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"--top_k is {self.top_k}: give 1 or more")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"--{name} is {value}: give a probability above 0, at most 1")
        if self.repetition_penalty <= 0:
            raise UserError(
                f"--repetition_penalty is {self.repetition_penalty}: give a number above 0"
            )
        for name in ("top_k", "top_p", "min_p"):
            if not self.temperature and getattr(self, name) is not None:
                raise UserError(f"--{name} narrows a random choice: give a --temperature with it")


def uniform_numbers(seed: int, draws: Sequence[tuple[int, int]], count: int) -> Tensor:
    """`count` numbers in [0, 1) for each (prompt, sample), (B, count) float64.

    Counter-based: those of a sample depend neither on its batch neighbours nor on the count.
    """
    numbers = np.array([prompt * MOST_SAMPLES + sample for prompt, sample in draws], np.int64)
    words = random_words(seed, "generate", numbers, count)
    # 52 bits: a product with the sum of all probabilities stays below that sum.
    return torch.from_numpy((words >> np.uint64(12)) / 2**52)


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """(B, V) logits and (B,) numbers in [0, 1) -> (B,) token ids.

    Inverse transform sampling: the token in whose part of the summed probabilities the number
    falls.
    """
    if not sampling.temperature:
        return logits.argmax(-1)
    if logits.device.type == "mps":  # Apple's GPUs have no float64
        return choose(logits.cpu(), uniform.cpu(), sampling).to(logits.device)
    scaled, ids = logits / sampling.temperature, None
    if sampling.top_k is not None or sampling.top_p is not None:
        scaled, ids = scaled.topk(min(sampling.top_k or scaled.shape[-1], scaled.shape[-1]))
    probabilities = scaled.double().softmax(-1)
    if sampling.top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    if sampling.min_p is not None:
        least = sampling.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    sums = probabilities.cumsum(-1)
    at = torch.searchsorted(sums, uniform[:, None] * sums[:, -1:], right=True)
    return (at if ids is None else ids.gather(1, at))[:, 0]


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """(B, V) logits in which the tokens of (B, T) are less likely; see `Sampling`."""
    old = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(old > 0, old / penalty, old * penalty))
