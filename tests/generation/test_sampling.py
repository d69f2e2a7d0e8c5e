"""Tokens come as often as the formula says, whatever narrows the choice."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor

from ptft_lightning.generation.sampling import Sampling, choose, penalise, uniform_numbers

DRAWS = 20_000
LOGITS = torch.tensor([[1.0, -0.5, 2.0, 0.3, -3.0, 1.9, 0.0, -1.0]])


def frequencies(sampling: Sampling) -> Tensor:
    """How often each token is chosen when the random numbers are evenly spaced."""
    uniform = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    chosen = choose(LOGITS.expand(DRAWS, -1), uniform, sampling)
    return torch.bincount(chosen, minlength=LOGITS.shape[1]).double() / DRAWS


def expected(sampling: Sampling) -> Tensor:
    """The probabilities after Hugging Face's filters."""
    scores = LOGITS / sampling.temperature
    for name, kind in (
        ("top_k", transformers.TopKLogitsWarper),
        ("top_p", transformers.TopPLogitsWarper),
        ("min_p", transformers.MinPLogitsWarper),
    ):
        if (value := getattr(sampling, name)) is not None:
            scores = kind(value)(None, scores)
    return scores.double().softmax(-1)[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.4},
        {"temperature": 2.5},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.8},
        {"top_p": 0.01},
        {"top_p": 1.0},
        {"min_p": 0.2},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.7, "min_p": 0.3},
    ],
    ids=str,
)
def test_frequencies(settings):
    sampling = Sampling(**{"temperature": 1.0, **settings})
    # Each token's share of the evenly spaced numbers is off by one number at either end.
    torch.testing.assert_close(frequencies(sampling), expected(sampling), atol=2 / DRAWS, rtol=0)


def test_temperature_zero_takes_the_likeliest():
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(choose(logits, torch.rand(50), Sampling()), logits.argmax(-1))


def test_the_last_random_number_chooses_a_token_that_may_be_chosen():
    last = torch.full((1,), 1 - 2**-52, dtype=torch.float64)
    for sampling in (Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.8)):
        (token,) = choose(LOGITS, last, sampling).tolist()
        assert expected(sampling)[token] > 0


def test_random_numbers_are_uniform_and_belong_to_their_sample():
    draws = [(prompt, sample) for prompt in range(1, 41) for sample in (1, 2)]
    numbers = uniform_numbers(7, draws, 100)
    assert numbers.shape == (80, 100)
    counts = torch.histc(numbers.flatten(), 10, 0, 1)
    chi_squared = ((counts - 800) ** 2 / 800).sum()
    assert chi_squared < 27.9  # its 0.999 quantile with 9 degrees of freedom
    assert torch.equal(uniform_numbers(7, draws[5:7], 30), numbers[5:7, :30])
    assert len(numbers.unique()) == numbers.numel()
    assert not torch.equal(uniform_numbers(8, draws, 100), numbers)


def test_repetition_penalty():
    seen = torch.tensor([[2, 4, 2, 1]])
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.7)(seen, LOGITS.clone())
    assert torch.equal(penalise(LOGITS, seen, 1.7), theirs)
