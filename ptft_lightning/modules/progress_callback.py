"""Training progress: a rich bar in a terminal, a plain line per log interval elsewhere."""

from __future__ import annotations

import sys
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from ptft_lightning.data.module import say
from ptft_lightning.modules.phase import PhaseModule

SHOWN = ("train_loss", "train_bits_per_byte", "train_accuracy", "lr", "grad_norm")
MOST = 10  # metrics in a line; the rest would bury them
NOTABLE_STALL = 0.01  # of the time; more is told beside the speed


def format_values(values: dict[str, float]) -> str:
    """The metrics of one line."""
    parts = [f"{k.removeprefix('train_')} {values[k]:.4g}" for k in SHOWN if k in values]
    parts.append(f"{values['tokens_per_s']:,.0f} tokens/s")
    if (stall := values.get("data_stall", 0.0)) > NOTABLE_STALL:
        parts.append(f"{stall:.0%} of the time waiting for data")
    return ", ".join(parts)


def format_validation(values: dict[str, float]) -> str:
    """The first metrics of a validation; of many (three for each kind of entity) no more."""
    parts = [f"{k} {v:.4f}" for k, v in [*values.items()][:MOST]]
    if len(values) > MOST:
        parts.append(f"{len(values) - MOST} more in metrics.csv")
    return ", ".join(parts)


class TrainingProgress(Callback):
    """Steps done, metrics, tokens/s and the time left, on rank 0."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.shown = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar, or say what will be done."""
        if not trainer.is_global_zero:
            return
        say(f"training: steps {trainer.global_step} to {trainer.max_steps}")
        if sys.stderr.isatty():
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
            self.bar = Progress(
                *columns, TextColumn("{task.fields[values]}"), console=Console(stderr=True)
            )
            self.task = self.bar.add_task(
                "train", total=trainer.max_steps, completed=trainer.global_step, values=""
            )
            self.bar.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Show what the last step logged: callbacks end a batch before the module does."""
        self._show(trainer, cast(PhaseModule, pl_module))

    def _show(self, trainer: L.Trainer, module: PhaseModule) -> None:
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        if self.bar is not None:
            self.bar.update(self.task, completed=step)
        if module.logged_step != step or self.shown == step or not module.train_values:
            return
        self.shown = step
        if self.bar is not None:
            self.bar.update(self.task, values=format_values(module.train_values))
        else:
            left = (trainer.max_steps - step) * module.train_values["seconds_per_step"]
            values = format_values(module.train_values)
            say(f"step {step}/{trainer.max_steps}: {values}, {left:.0f} s left")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One line with the validation metrics."""
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
        if trainer.is_global_zero and values and trainer.state.fn == TrainerFn.FITTING:
            tell = say if self.bar is None else self.bar.console.print
            tell(f"step {trainer.global_step}: {format_validation(values)}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._show(trainer, cast(PhaseModule, pl_module))
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        if self.bar is not None:
            self.bar.stop()
