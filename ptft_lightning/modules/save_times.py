"""When it is time to save; all ranks say the same."""

from __future__ import annotations

import time
from typing import Any, cast

import lightning as L

from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.errors import UserError

AGREE_EVERY = 5  # steps between the ranks' questions to each other


class SaveTimes:
    """Every so many steps, tokens or minutes, whichever comes first."""

    def __init__(self, steps: int | None, tokens: int | None, minutes: float | None) -> None:
        given = {"every_n_steps": steps, "every_n_tokens": tokens, "every_minutes": minutes}
        for name, value in given.items():
            if value is not None and value <= 0:
                fix = "more than 0" if isinstance(value, float) else "1 or more"
                raise UserError(f"checkpoint.{name} is {value}: give {fix}")
        if steps is tokens is minutes is None:
            raise UserError(f"checkpoint.{', '.join(given)} are null: give one of them")
        self.steps, self.tokens, self.minutes = steps, tokens, minutes
        self.began = time.monotonic()

    def check(self, trainer: L.Trainer) -> None:
        """Refuse, before the first step, to count tokens where rows are not full.

        Raises:
            UserError: in phase two.
        """
        if self.tokens is not None and not isinstance(_data(trainer), CorpusDataModule):
            raise UserError(
                f"checkpoint.every_n_tokens is {self.tokens}, which counts the rows of phase one: "
                "give checkpoint.every_n_steps or every_minutes"
            )

    def start(self) -> None:
        """The minutes count from now."""
        self.began = time.monotonic()

    def due(self, trainer: L.Trainer) -> bool:
        """Whether to save after the step that was done last."""
        step = trainer.global_step
        if self.steps is not None and step % self.steps == 0:
            return True
        if self.tokens is not None and self._crossed(trainer, self.tokens):
            return True
        return self.minutes is not None and self._late(trainer, self.minutes)

    def _crossed(self, trainer: L.Trainer, tokens: int) -> bool:
        """Whether the last step went over a multiple of `tokens`, all rows counted as full."""
        data = _data(trainer)
        first, after = data.segments.span(trainer.global_step - 1)
        return bool(first * data.length // tokens < after * data.length // tokens)

    def _late(self, trainer: L.Trainer, minutes: float) -> bool:
        if trainer.world_size > 1 and trainer.global_step % AGREE_EVERY:
            return False
        late = time.monotonic() - self.began >= 60 * minutes
        return bool(trainer.strategy.broadcast(late))


def _data(trainer: L.Trainer) -> Any:
    return cast(Any, trainer).datamodule
