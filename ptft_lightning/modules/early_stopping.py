"""Stop when validation no longer improves."""

from __future__ import annotations

import math
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.modules.checkpoints import watched


class StopEarly(Callback):
    """End a run that no longer improves on the metric that decides its bundle.

    Lightning's EarlyStopping must be told the metric and its direction, and a run that it ended
    trains on, up to the next validation, each time it is resumed. Here it stays ended.

    Args:
        patience: Validations in a row without an improvement after which training ends; none: it
            goes on to its last step.
        min_delta: What counts as an improvement is more than this.
    """

    def __init__(self, patience: int | None = None, min_delta: float = 0.0) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.best: float | None = None
        self.waited = 0
        if patience is not None and patience < 1:
            raise UserError(f"early_stopping.patience is {patience}: give 1 or more validations")
        if min_delta < 0:
            raise UserError(f"early_stopping.min_delta is {min_delta}: give 0 or more")

    def state_dict(self) -> dict[str, Any]:
        """The metric to improve on, and the validations since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse to wait for what never comes."""
        if self.patience is None or stage != "fit":
            return
        if not (trainer.limit_val_batches and cast(Any, trainer).datamodule.val_dataloader()):
            raise UserError(
                "early_stopping.patience needs validations: name a data.validation file, or hold "
                "out a data.validation_share"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that has ended does not begin again."""
        self._stop_if_due(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count; before `Checkpoints`, which saves the count and whether this was the end."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        name, sign = watched(pl_module)
        value = float(trainer.callback_metrics.get(name, math.nan))
        if self.best is None:
            better = not math.isnan(value)  # a correlation may be NaN
        else:
            better = sign * (value - self.best) > self.min_delta
        self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)
        self._stop_if_due(trainer, pl_module)

    def _stop_if_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.patience is None or self.waited < self.patience:
            return
        trainer.should_stop = True
        if trainer.is_global_zero:
            say(
                f"stopped early at step {trainer.global_step}: {self.waited} validations without "
                f"improvement of {watched(pl_module)[0]} (best {self.best})"
            )
