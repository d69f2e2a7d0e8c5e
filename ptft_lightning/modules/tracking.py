"""Tell the loggers of a fit what is no metric: tables, alerts, what the run comes from and made."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from ptft_lightning.data.module import say
from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.modules.checkpoints import Checkpoints
from ptft_lightning.modules.phase import PhaseModule
from ptft_lightning.modules.pretrain import PretrainModule
from ptft_lightning.modules.spikes import Spikes
from ptft_lightning.tracking.artifacts import reason, upload, use_inputs
from ptft_lightning.tracking.identity import wandb_runs
from ptft_lightning.tracking.listeners import Level, Listener, listeners_of

SHOWN = 1000  # predictions of a table, evenly spaced in larger files


class Tracking(Callback):
    """Tables of samples and predictions, alerts, and W&B's graph of artifacts; rank 0 only.

    It comes after all other callbacks, whose files it reads. What a tracker does not take costs a
    line, not the run.
    """

    def __init__(self, run_dir: Path, spikes: Spikes, checkpoints: Checkpoints) -> None:
        self.run_dir, self.spikes, self.checkpoints = run_dir, spikes, checkpoints
        self.listeners: list[Listener] = []
        self.online: list[Any] = []  # W&B's runs
        self.step, self.told_of_nan = 0, False
        spikes.tell = self.tell_spike

    def _listen(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and not self.listeners:
            self.listeners = listeners_of(trainer.loggers)
            self.online = [run for run in wandb_runs(trainer.loggers) if not run.offline]

    def alert(self, title: str, text: str, level: Level) -> None:
        """Tell a person."""
        for listener in self.listeners:
            tell = partial(listener.alert, title, text, level, self.step)
            self._try(f"{listener.name} did not take the alert '{title}'", tell)

    def table(self, file: str, step: int, few: int | None = None) -> None:
        """Show the lines of one of the run's files: those of a step, or at most so many of all."""
        place = self.run_dir / file
        if not self.listeners or not place.is_file():
            return
        # Not splitlines: text may hold separators that end no line of a file. What follows the last
        # line end was torn by a kill.
        lines = place.read_text(encoding="utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines if line]
        if few is None:
            rows = [row for row in rows if row["step"] == step]
        else:
            rows = rows[:: max(1, -(-len(rows) // few))]
        name = f"tables/{place.stem}"  # `samples` is a metric, too
        for listener in self.listeners if rows else []:
            show = partial(listener.table, name, rows, step)
            self._try(f"{listener.name} did not take '{name}'", show)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what the run started from, where W&B is online."""
        self._listen(trainer)
        self.step = trainer.global_step
        if self.online:
            lineage = {"parents": cast(PhaseModule, pl_module).parents()}
            for run in self.online:
                use = partial(use_inputs, run, lineage)
                self._try("W&B did not take what the run started from", use, later=True)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """What is told from now on is of this step; some callbacks hear of its end before us."""
        self.step = trainer.global_step + 1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Tell of a logged loss that is no number, once, where nobody watches for spikes."""
        self.step = trainer.global_step
        watched = isinstance(pl_module, PretrainModule) and self.spikes.max_skips
        loss = cast(PhaseModule, pl_module).train_values.get("train_loss", 0.0)
        if not (self.told_of_nan or watched or math.isfinite(loss)):
            self.told_of_nan = True
            self.alert("loss is not finite", f"train_loss is {loss}; the run goes on", "ERROR")

    def tell_spike(self, text: str) -> None:
        """What `Spikes` has to say; all ranks call it."""
        say(text)
        finite = all(map(math.isfinite, self.spikes.detector.high))
        title, level = ("loss spike", "WARN") if finite else ("loss is not finite", "ERROR")
        self.alert(title, text, cast(Level, level))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show what the model wrote; the time it takes does not count in tokens/s."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            began = time.perf_counter()
            self.table("samples.jsonl", trainer.global_step)
            cast(PhaseModule, pl_module).clock += time.perf_counter() - began

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the predictions of the best validation."""
        self._listen(trainer)  # a resume that has no step left does not start training
        self.step = trainer.global_step
        if not self.checkpoints.unfinished:
            self.table("validation_predictions.jsonl", self.step, few=SHOWN)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Tell of a run that did not come to its end."""
        said = f"{type(exception).__name__}: {exception}".splitlines()[0]
        self.alert("run failed", said, "ERROR")

    def finish(self, trainer: L.Trainer) -> None:
        """Upload the bundle, where W&B is online, and tell of the end; every rank must call it."""
        bundle = self.run_dir / "bundle"
        for run in self.online:
            put = partial(_upload, run, bundle)
            self._try(f"W&B did not take the bundle '{bundle}'", put, later=True)
        self.alert("run finished", f"the bundle is '{bundle}'", "INFO")
        trainer.strategy.barrier()  # a launcher may end all ranks soon after the first

    def _try(self, failed: str, action: Callable[[], Any], later: bool = False) -> None:
        """`failed` is what to say; `later`: whether `sync` makes up for it."""
        try:
            action()
        except Exception as error:  # whatever it is, training does not depend on it
            known = f"; `sync --run_dir {self.run_dir}` does it later" if later else ""
            say(f"{failed}: {reason(error)}{known}")


def _upload(run: Any, directory: Path) -> None:
    upload(run, open_bundle(directory))
