"""How a run is saved: checkpoints to resume from, bundles to hand over."""

from __future__ import annotations

import math
import re
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import recover_directories, replace_directory, write_bundle
from ptft_lightning.handoff.lineage import model_card
from ptft_lightning.modules.csv_metrics import CsvMetrics
from ptft_lightning.modules.finetune import FinetuneModule
from ptft_lightning.modules.lightning_edges import AtomicCheckpointIO
from ptft_lightning.modules.nets import whole_state
from ptft_lightning.modules.phase import PhaseModule
from ptft_lightning.modules.save_times import SaveTimes
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
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step that a checkpoint's name tells."""
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


def writer_of(trainer: L.Trainer) -> AtomicCheckpointIO:
    """What writes checkpoints; one that has nothing pending where the trainer has its own."""
    io = trainer.strategy.checkpoint_io
    return io if isinstance(io, AtomicCheckpointIO) else AtomicCheckpointIO()


class Checkpoints(Callback):
    """Save when it is time and at the end; keep some of the checkpoints; write the bundle.

    Phase one's bundle is the last step's. Phase two's is the best by the task's metric, written
    after each validation that improves it.

    Args:
        every_n_steps: Optimizer steps between checkpoints; null: see the next two.
        every_n_tokens: Phase one: save whenever so many more tokens were read.
        every_minutes: Save when the last save is so long ago.
        keep: How many of the newest checkpoints stay.
        keep_every_n_steps: Those of every so many steps stay, too.
        keep_best: The one at the best validation stays, too, and is made if it was not due.
        asynchronous: Write while training goes on; takes memory for a copy of the checkpoint.
    """

    def __init__(
        self,
        every_n_steps: int | None = 500,
        every_n_tokens: int | None = None,
        every_minutes: float | None = None,
        keep: int = 2,
        keep_every_n_steps: int | None = None,
        keep_best: bool = False,
        asynchronous: bool = False,
    ) -> None:
        self.times = SaveTimes(every_n_steps, every_n_tokens, every_minutes)
        for name, value in (("keep", keep), ("keep_every_n_steps", keep_every_n_steps)):
            if value is not None and value < 1:
                raise UserError(f"checkpoint.{name} is {value}: give 1 or more")
        self.keep, self.keep_every_n_steps = keep, keep_every_n_steps
        self.keep_best, self.asynchronous = keep_best, asynchronous
        self.run_dir = Path("runs/default")  # set by the command line
        self.best: float | None = None
        self.best_step: int | None = None
        self.stalls: list[float] = []  # seconds that training stood still for each save
        self.saved_step = -1
        self.unfinished = False  # set when the run stops before its end and is to be resumed

    @property
    def directory(self) -> Path:
        """Where checkpoints go."""
        return self.run_dir / "checkpoints"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove what a save left behind that was killed; put aside what comes after this step."""
        if self.asynchronous and isinstance(trainer.strategy, ModelParallelStrategy):
            raise UserError(
                "checkpoint.asynchronous: sharded checkpoints are written by all ranks together, "
                "leave it out"
            )
        self.times.check(trainer)
        self.times.start()
        if not trainer.is_global_zero:
            return
        recover_directories(self.run_dir)
        recover_directories(self.directory)
        for path in self.directory.glob(".*step=*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        later = [p for p in list_checkpoints(self.directory) if step_of(p) > trainer.global_step]
        if later and not cast(Any, trainer).fast_dev_run:
            # They are torn, or of a run that is gone back on: `last` must not mean them, nor may
            # they count as the newest when old ones are removed.
            from ptft_lightning.modules.spikes import set_aside  # a leaf

            set_aside(self.directory, trainer.global_step, "later")
            say(f"checkpoints after step {trainer.global_step} are kept as later-..: {len(later)}")

    def state_dict(self) -> dict[str, Any]:
        """The best metric so far, and its step."""
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.best, self.best_step = state_dict["best"], state_dict.get("best_step")

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
        if stepped and self.due(trainer) and not self.validation_follows(trainer, batch_idx):
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a better bundle, then the checkpoint that was due."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        better = self._keep_best(trainer, cast(PhaseModule, pl_module))
        if self.due(trainer) or trainer.should_stop or (better and self.keep_best):
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step and, for phase one, its bundle."""
        module = cast(PhaseModule, pl_module)
        if cast(Any, trainer).fast_dev_run:
            return
        if self.saved_step != trainer.global_step:
            self.save(trainer)
        self._finish_saving(trainer)
        kept = module.phase == "finetune" and self.best is not None
        if not self.unfinished and not (kept and (self.run_dir / "bundle").is_dir()):
            self._write_bundle(trainer, module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the bundle of a run that was killed between its last checkpoint and its bundle:
        Lightning 2.6.6 leaves out the training, `on_train_end` with it, where no step is left."""
        there = (self.run_dir / "bundle").is_dir() or self.unfinished
        if not there and not cast(Any, trainer).fast_dev_run:
            self._write_bundle(trainer, cast(PhaseModule, pl_module))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """A checkpoint that is being written must not be lost to another fault."""
        try:
            writer_of(trainer).wait()
        except OSError as error:
            say(f"the checkpoint could not be written either: {error}")

    def _finish_saving(self, trainer: L.Trainer) -> None:
        writer_of(trainer).wait()
        if self.stalls and trainer.is_global_zero:
            each = f"{sum(self.stalls) / len(self.stalls):.2g} s each"
            say(f"checkpoints: {len(self.stalls)} saves, training waited {each}")

    def due(self, trainer: L.Trainer) -> bool:
        """Whether the step that was done last is to be saved; all ranks must ask."""
        step = trainer.global_step
        if cast(Any, trainer).fast_dev_run or step in (0, self.saved_step):
            return False
        return self.times.due(trainer)

    def validation_follows(self, trainer: L.Trainer, batch_idx: int) -> bool:
        """Whether a validation comes between this step and the next."""
        every = trainer.val_check_interval
        has = trainer.enable_validation and bool(trainer.val_dataloaders)
        return has and isinstance(every, int) and (batch_idx + 1) % every == 0

    def save(self, trainer: L.Trainer) -> None:
        """Write a checkpoint under a temporary name, rename it, remove the oldest."""
        began, step = time.perf_counter(), trainer.global_step
        io = writer_of(trainer)
        io.wait()  # for the one before
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
        if sharded and trainer.is_global_zero:
            replace_directory(temporary, target)
            self._remove_old(self.best_step)
        elif trainer.is_global_zero:
            best = self.best_step  # as it is now; it may change while this is written
            io.then(lambda: self._name(temporary, target, best))
        trainer.strategy.barrier()
        self.saved_step = step
        self.times.start()
        self.stalls.append(time.perf_counter() - began)
        for logger in trainer.loggers:
            if isinstance(logger, CsvMetrics):  # others would get a second row for the step
                logger.log_metrics({"save_seconds": self.stalls[-1]}, step=step)

    def _name(self, temporary: Path, target: Path, best: int | None) -> None:
        temporary.replace(target)
        self._remove_old(best)

    def _remove_old(self, best: int | None) -> None:
        every = self.keep_every_n_steps
        for path in list_checkpoints(self.directory)[: -self.keep]:
            milestone = every is not None and step_of(path) % every == 0
            if milestone or (self.keep_best and step_of(path) == best):
                continue
            if path.is_dir():
                shutil.rmtree(path)
                shutil.rmtree(f"{path}.bundle", ignore_errors=True)
            else:
                path.unlink()

    def _keep_best(self, trainer: L.Trainer, module: PhaseModule) -> bool:
        """Note a validation that is better than all before; phase two's bundle is that one's."""
        if cast(Any, trainer).fast_dev_run:
            return False
        name, sign = watched(module)
        value = float(trainer.callback_metrics.get(name, math.nan))  # a correlation may be NaN
        if math.isnan(value) or (self.best is not None and sign * value <= sign * self.best):
            return False
        self.best, self.best_step = value, trainer.global_step
        if module.phase == "finetune":
            self._write_bundle(trainer, module)
            cast(FinetuneModule, module).keep_predictions(self.run_dir, "validation")
        return True

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
