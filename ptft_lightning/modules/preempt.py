"""Stop in good order: SIGTERM or SIGUSR1 to any rank, as a machine is taken away, or Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from ptft_lightning.data.module import say
from ptft_lightning.modules.checkpoints import Checkpoints
from ptft_lightning.modules.save_times import AGREE_EVERY

EXIT_CODE = 75  # EX_TEMPFAIL: "try again", so that a scheduler can requeue


class Preempt(Callback):
    """Save and stop when any rank was told to end.

    Lightning 2.6.6 broadcasts inside its signal handler: a signal to one rank alone hangs the
    others, and the exit code is 0. Here the handler only notes the signal, and the ranks agree
    between steps.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.noted = self.stopped = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
        if number == signal.SIGINT:
            say("stopping after this step; once more: at once")
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put our handlers in place of Lightning's."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:  # as a script's background job does
                signal.signal(number, self._note)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Agree, save, stop."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        # There is a last batch only where the ranks agreed while they waited for more text.
        agreed = trainer.world_size == 1 or trainer.global_step % AGREE_EVERY == 0
        if not ((agreed or trainer.is_last_batch) and self.told_to_end(trainer)):
            return
        self.noted = True
        if trainer.global_step != self.checkpoints.saved_step:
            self.checkpoints.save(trainer)
        if not self.checkpoints.validation_follows(trainer, batch_idx):
            trainer.limit_val_batches = 0  # Lightning would validate before it stops
            self._stop(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop after a validation that was due, which a resume would skip; Checkpoints saves."""
        if self.checkpoints.saved_step == trainer.global_step and self.noted:
            self._stop(trainer)

    def _stop(self, trainer: L.Trainer) -> None:
        trainer.should_stop = self.stopped = self.checkpoints.unfinished = True
        if trainer.is_global_zero:
            say(f"told to end: saved step {trainer.global_step}, resume with --ckpt_path last")

    def told_to_end(self, trainer: L.Trainer) -> bool:
        """Whether any rank was; all must ask."""
        if trainer.world_size == 1:
            return self.noted
        noted = torch.tensor(float(self.noted), device=trainer.strategy.root_device)
        return bool(trainer.strategy.reduce(noted, reduce_op="sum") > 0)
