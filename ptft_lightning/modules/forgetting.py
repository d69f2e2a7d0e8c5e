"""Loss on other text before, during and after a run of phase one: what was learnt or forgotten."""

from __future__ import annotations

from itertools import islice
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.modules.meter import Meter
from ptft_lightning.modules.pretrain import PretrainModule

OWN = "own text"


class Forgetting(Callback):
    """Measure the held-out rows of `data.validation_stores` at the start and at each validation.

    The masks of a row never change, so that before and after are the same questions. The run's own
    held-out rows are measured at the start, too. Values go to the loggers as `val_NAME_loss` and
    into the lineage of the bundle; the differences are told at the end.
    """

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.now: dict[str, float] = {}
        self.step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The loss before the first step; a resumed run has it in its checkpoint."""
        if self.before:
            return
        module = cast(PretrainModule, pl_module)
        data = cast(CorpusDataModule, module.data)
        self.before = self._measure(trainer, module)
        if len(data.validation_rows):
            self.before[OWN] = self._loss(trainer, module, data.store)
        self._log(trainer, self.before)
        listed = ", ".join(f"{name} {value:.4f}" for name, value in self.before.items())
        say(f"loss before training: {listed}")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the other stores beside the run's own validation."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        module = cast(PretrainModule, pl_module)
        self.now, self.step = self._measure(trainer, module), trainer.global_step
        values = {f"val_{name}_loss": value for name, value in self.now.items()}
        pl_module.log_dict(values, logger=False, rank_zero_only=False, sync_dist=False)
        self._log(trainer, self.now)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The run's own loss is known now."""
        if self.now and "val_loss" in trainer.callback_metrics:
            self.now[OWN] = float(trainer.callback_metrics["val_loss"])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell the differences between the first measurement and the last validation."""
        for name in (n for n in self.before if n in self.now):
            was, now = self.before[name], self.now[name]
            word = "worse" if now > was else "better"
            say(
                f"loss on {name}: {was:.4f} before, {now:.4f} at step {self.step}: "
                f"{abs(now - was):.4f} nats a target {word}"
            )

    def _measure(self, trainer: L.Trainer, module: PretrainModule) -> dict[str, float]:
        data = cast(CorpusDataModule, module.data)
        stores = data.validation_stores.items()
        return {name: self._loss(trainer, module, store) for name, store in stores}

    def _loss(self, trainer: L.Trainer, module: PretrainModule, store: str) -> float:
        """Mean loss on the held-out rows of a store; all ranks must call it."""
        data = cast(CorpusDataModule, module.data)
        rows = data.rows_of(store, "validation")
        if not len(rows):
            raise UserError(
                f"data.validation_stores: '{store}' has no held-out documents: prepare it with "
                "validation_share above 0, or leave it out there ({} for none)"
            )
        loader, meter, training = data.pass_over(rows), Meter(), module.net.training
        limit = trainer.limit_val_batches
        count = limit if isinstance(limit, int) else max(1, int(limit * len(loader)))
        module.net.eval()
        with torch.inference_mode(), trainer.precision_plugin.val_step_context():
            for batch in islice(loader, count):
                batch = trainer.strategy.batch_to_device(batch)
                meter.add(module.net(batch), batch)
        module.net.train(training)
        return sum(meter.take(trainer.strategy).losses.values())

    def _log(self, trainer: L.Trainer, values: dict[str, float]) -> None:
        named = {f"val_{n}_loss" if n != OWN else "val_loss": v for n, v in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """What was measured, for a resumed run."""
        return {"before": self.before, "now": self.now, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read back what `state_dict` gave."""
        self.before, self.now = state_dict["before"], state_dict["now"]
        self.step = state_dict["step"]
