"""When a run is saved and where: checkpoints to resume from, bundles to hand over."""

from __future__ import annotations

import math
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import recover_directories, replace_directory, write_bundle
from ptft_lightning.handoff.lineage import model_card
from ptft_lightning.modules.finetune import FinetuneModule
from ptft_lightning.modules.nets import whole_state
from ptft_lightning.modules.phase import PhaseModule
from ptft_lightning.tasks.base import Task

NAME = re.compile(r"step=(\d+)\.ckpt$")


def is_whole(path: Path) -> bool:
    """Whether a checkpoint, file or sharded directory, was written to its end."""
    if path.is_dir():
        return (path / ".metadata").is_file() and (path / "meta.pt").is_file()
    # The directory of a zip file stands at its end.
    return zipfile.is_zipfile(path)


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, torn ones included."""
    found = [p for p in directory.glob("step=*.ckpt") if NAME.search(p.name)]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    match = NAME.search(path.name)
    assert match is not None
    return int(match.group(1))


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint; torn ones are named and passed over."""
    for path in reversed(list_checkpoints(directory)):
        if is_whole(path):
            return path
        say(f"checkpoint '{path}' is torn: passed over")
    return None


def watched(module: L.LightningModule) -> tuple[str, int]:
    """The validation metric that decides, and 1 or -1 for higher or lower is better: the task's
    in phase two, the loss in phase one."""
    task: Task | None = getattr(module, "task", None)
    if task is None:
        return "val_loss", -1
    return task.monitor, 1 if task.higher_is_better else -1


class Checkpoints(Callback):
    """Save every so many steps and at the end; keep the newest; write the bundle.

    Phase one's bundle is the last step's. Phase two's is the best by the task's metric, written
    after each validation that improves it.

    Args:
        every_n_steps: Optimizer steps between checkpoints.
        keep: How many checkpoints stay.
    """

    def __init__(self, every_n_steps: int = 500, keep: int = 2) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep", keep)):
            if value < 1:
                raise UserError(f"checkpoint.{name} is {value}: give 1 or more")
        self.every_n_steps, self.keep = every_n_steps, keep
        self.run_dir = Path("runs/default")  # set by the command line
        self.best: float | None = None
        self.saved_step = -1
        self.unfinished = False  # set when the run stops before its end and is to be resumed

    @property
    def directory(self) -> Path:
        """Where checkpoints go."""
        return self.run_dir / "checkpoints"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove what a save left behind that was killed."""
        if not trainer.is_global_zero:
            return
        recover_directories(self.run_dir)
        recover_directories(self.directory)
        for path in self.directory.glob(".*step=*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def state_dict(self) -> dict[str, Any]:
        """The best metric so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.best = state_dict["best"]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when due, unless a validation follows this step: then after it, so that a resume
        does not skip it."""
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if stepped and self._due(trainer) and not self.validation_follows(trainer, batch_idx):
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a better bundle, then the checkpoint that was due."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._keep_best(trainer, cast(PhaseModule, pl_module))
        if self._due(trainer) or trainer.should_stop:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step and, for phase one, its bundle."""
        module = cast(PhaseModule, pl_module)
        if cast(Any, trainer).fast_dev_run:
            return
        if self.saved_step != trainer.global_step:
            self.save(trainer)
        kept = module.phase == "finetune" and self.best is not None
        if not self.unfinished and not (kept and (self.run_dir / "bundle").is_dir()):
            self._write_bundle(trainer, module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the bundle of a run that was killed between its last checkpoint and its bundle:
        Lightning 2.6.6 leaves out the training, `on_train_end` with it, where no step is left."""
        there = (self.run_dir / "bundle").is_dir() or self.unfinished
        if not there and not cast(Any, trainer).fast_dev_run:
            self._write_bundle(trainer, cast(PhaseModule, pl_module))

    def _due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        return (
            not cast(Any, trainer).fast_dev_run
            and step % self.every_n_steps == 0
            and step not in (0, self.saved_step)
        )

    def validation_follows(self, trainer: L.Trainer, batch_idx: int) -> bool:
        """Whether a validation comes between this step and the next."""
        every = trainer.val_check_interval
        has = trainer.enable_validation and bool(trainer.val_dataloaders)
        return has and isinstance(every, int) and (batch_idx + 1) % every == 0

    def save(self, trainer: L.Trainer) -> None:
        """Write a checkpoint under a temporary name, rename it, remove the oldest."""
        step = trainer.global_step
        target = self.directory / f"step={step:08d}.ckpt"
        # Rank 0's view decides: the ranks must not disagree about a name being taken.
        temporary = target.with_name(f".{target.name}.saving")
        if trainer.is_global_zero:
            self.directory.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
        trainer.strategy.barrier()
        trainer.save_checkpoint(temporary)
        trainer.strategy.barrier()
        sharded = temporary.is_dir()
        if sharded:
            self._write_bundle(trainer, cast(PhaseModule, trainer.lightning_module), target)
        if trainer.is_global_zero:
            if sharded:
                replace_directory(temporary, target)
            else:
                temporary.replace(target)
            self._remove_old()
        trainer.strategy.barrier()
        self.saved_step = step

    def _remove_old(self) -> None:
        for path in list_checkpoints(self.directory)[: -self.keep]:
            if path.is_dir():
                shutil.rmtree(path)
                shutil.rmtree(f"{path}.bundle", ignore_errors=True)
            else:
                path.unlink()

    def _keep_best(self, trainer: L.Trainer, module: PhaseModule) -> None:
        if module.phase != "finetune" or cast(Any, trainer).fast_dev_run:
            return
        name, sign = watched(module)
        value = float(trainer.callback_metrics.get(name, math.nan))  # a correlation may be NaN
        if not math.isnan(value) and (self.best is None or sign * value > sign * self.best):
            self.best = value
            self._write_bundle(trainer, module)
            cast(FinetuneModule, module).keep_predictions(self.run_dir, "validation")

    def _write_bundle(
        self, trainer: L.Trainer, module: PhaseModule, checkpoint: Path | None = None
    ) -> None:
        place = self.run_dir / "bundle"
        if checkpoint is not None:
            place = checkpoint.with_name(checkpoint.name + ".bundle")
        from ptft_lightning.interop.adapters import leave_to_base  # a leaf

        left, base = leave_to_base(module.bundle, module.untouched, place)
        tensors, lineage = whole_state(module.net, left), module.lineage()
        if trainer.is_global_zero:
            config = module.bundle_config() | base
            card = model_card(config, lineage)
            write_bundle(place, config, module.data.tokenizer, tensors, lineage, card)
        trainer.strategy.barrier()
