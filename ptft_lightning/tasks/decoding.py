"""Prompts in, answers out, as the settings of a task say; knows no template and no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptft_lightning.errors import UserError
from ptft_lightning.generation.beams import search_beams
from ptft_lightning.generation.continuing import continue_prompts
from ptft_lightning.generation.growth import Limits
from ptft_lightning.generation.model import LanguageModel
from ptft_lightning.generation.sampling import Sampling, uniform_numbers


@dataclass(frozen=True, kw_only=True)
class Decoding(Sampling):
    """How an answer is written: its likeliest tokens, beams, or random ones."""

    max_new_tokens: int = 64
    """Where an answer ends at the latest; so many tokens of an example are kept free for it."""
    beams: int = 1
    """Above 1: search for the likeliest answer, keeping so many at each token."""
    length_penalty: float = 1.0
    """Beams are ranked by log-probability / tokens ** this."""
    seed: int = 0
    """Decides random choices; those of an example depend on its number alone."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except UserError as error:
            raise UserError(str(error).replace("--", "model.task.decoding.")) from error
        for name in ("max_new_tokens", "beams"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"model.task.decoding.{name} is {getattr(self, name)}: give 1 or more"
                )
        if self.beams > 1 and (self.temperature or self.repetition_penalty != 1):
            raise UserError(
                f"model.task.decoding.beams is {self.beams}, which searches for the likeliest "
                "answer: leave out temperature and repetition_penalty"
            )


def answer_prompts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    decoding: Decoding,
) -> list[list[int]]:
    """The ids of an answer to each prompt, without the token that ends it.

    Random choices depend on an example's number in its file, not on its neighbours in a batch.
    """
    most = decoding.max_new_tokens
    if decoding.beams > 1:
        found = search_beams(model, prompts, decoding.beams, most, decoding.length_penalty)
        return [best[0].ids for best in found]
    uniform = None
    if decoding.temperature:
        uniform = uniform_numbers(decoding.seed, [(number, 1) for number in numbers], most)
    grown = continue_prompts(model, prompts, decoding, Limits(most), uniform)
    return [one.ids for one in grown]
