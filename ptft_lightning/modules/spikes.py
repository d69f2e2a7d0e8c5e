"""Losses that jump or are no numbers: go back to before them and leave out what was read then."""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from subprocess import Popen
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ptft_lightning.data.module import PhaseData, say
from ptft_lightning.data.sample_order import Segments
from ptft_lightning.errors import UserError
from ptft_lightning.files import write_atomically
from ptft_lightning.modules.checkpoints import (
    Checkpoints,
    is_whole,
    list_checkpoints,
    step_of,
    writer_of,
)
from ptft_lightning.modules.pretrain import PretrainModule

KEY = "spikes"
LEAD = 2  # steps before the first high loss that may have caused it
GROWTH = 4  # times as much is left out where the next spike follows at once
LEAST_SPREAD = 0.02  # of the median: losses that hardly vary make no spike of a ripple


class GoBack(Exception):
    """A fit ended to go on from an earlier checkpoint, which this names; other ranks live on."""

    def __init__(self, checkpoint: str, children: list[Popen[bytes]]) -> None:
        super().__init__(checkpoint)
        self.children = children


class Detector:
    """Says where losses leave what the last `history` of them were like.

    A loss is high over median + threshold * 1.4826 * MAD of those (the median absolute deviation,
    scaled to a normal distribution's standard deviation); a spike is `patience` high losses in a
    row, or one that is not finite.
    """

    def __init__(self, threshold: float, patience: int, history: int) -> None:
        self.threshold, self.patience = threshold, patience
        self.history: deque[float] = deque(maxlen=history)
        self.high: list[float] = []
        self.tolerant = False
        """A loss that is not finite is only a high one, as a gradient scaler expects some."""

    def limit(self) -> float:
        """What is high; infinite until there is enough to compare with."""
        if len(self.history) < (self.history.maxlen or 0):
            return math.inf
        middle = statistics.median(self.history)
        spread = 1.4826 * statistics.median(abs(loss - middle) for loss in self.history)
        return middle + self.threshold * max(spread, LEAST_SPREAD * abs(middle))

    def add(self, loss: float) -> int | None:
        """Take the next loss; how many losses ago a spike began (0: with this one), None: none."""
        finite = math.isfinite(loss)
        if not finite or loss > self.limit():
            self.high.append(loss)
            enough = len(self.high) >= self.patience or not (finite or self.tolerant)
            return len(self.high) - 1 if enough else None
        self.history.extend([*self.high, loss])
        self.high.clear()
        return None


class Spikes(Callback):
    """Watch the losses of phase one; after a spike end the fit, to go on without its data.

    Losses stay on the device and are read every few steps and before each save. A spike sets the
    checkpoints since it began aside and notes the samples from then on in skips.json; the command
    line then goes on from the checkpoint before, as after any stop, and the data module leaves
    these samples out. Where the next spike follows at once, four times as much is left out.

    Args:
        max_skips: How often at most a run goes back; 0 turns all this off.
        every_n_steps: Steps between looks at the losses.
        threshold: How many robust standard deviations over the median of past losses are high.
        patience: High losses in a row that make a spike.
        history: Past losses to compare with.
    """

    def __init__(
        self,
        max_skips: int = 3,
        every_n_steps: int = 10,
        threshold: float = 8.0,
        patience: int = 3,
        history: int = 64,
    ) -> None:
        given = {"every_n_steps": every_n_steps, "patience": patience, "history": history}
        for name, value in given.items():
            if value < 1:
                raise UserError(f"spikes.{name} is {value}: give 1 or more")
        if max_skips < 0 or threshold <= 0:
            raise UserError(
                f"spikes.max_skips is {max_skips}, spikes.threshold {threshold}: give 0 or more, "
                "and more than 0"
            )
        self.max_skips, self.every_n_steps = max_skips, every_n_steps
        self.detector = Detector(threshold, patience, history)
        self.run_dir = Path("runs/default")  # set by the command line, with the next
        self.checkpoints: Checkpoints | None = None
        self.skips: list[dict[str, Any]] = []  # as the file has them; the same on all ranks
        self.part: Tensor | None = None  # of a step that is not done; a save may come before it is
        self.unread: list[Tensor] = []
        self.losses_read = 0  # steps whose losses the detector has
        self.began: int | None = None
        self.ended = False
        self.go_back_to: Path | None = None
        """The checkpoint from which an ended fit goes on; None: nothing helps."""
        self.tell: Callable[[str], None] = say  # who wants to know, beside the terminal

    @property
    def file(self) -> Path:
        """What a run leaves out, and why: a JSON list."""
        return self.run_dir / "skips.json"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tell the data module what to leave out, before a checkpoint tells it where it is."""
        if stage == "fit":
            data = cast(PhaseData, cast(Any, trainer).datamodule)
            self.skips = trainer.strategy.broadcast(self._read_skips())
            data.skips = [(skip["samples"][0], skip["samples"][1]) for skip in self.skips]

    def _read_skips(self) -> list[dict[str, Any]]:
        if not self.file.is_file():
            return []
        skips: list[dict[str, Any]] = json.loads(self.file.read_text())
        return skips

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run from its first step on leaves nothing out; losses on other data compare badly."""
        self.losses_read = step = trainer.global_step
        self.detector.tolerant = trainer.precision == "16-mixed"
        if cast(Any, trainer).fast_dev_run:  # it may try a run that is there
            self.max_skips = 0
        elif step == 0 and trainer.is_global_zero:
            self.file.unlink(missing_ok=True)
        if _other_data(cast(PhaseData, cast(Any, trainer).datamodule).segments, step):
            self.detector.history.clear()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the loss; look at those kept when it is time."""
        if not self.max_skips or self.ended or not isinstance(pl_module, PretrainModule):
            return
        # Lightning divided it by the micro-batches of the step, whose sum is the step's loss.
        loss = outputs["loss"].detach()
        self.part = loss if self.part is None else self.part + loss
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.unread.append(self.part)
        self.part = None
        assert self.checkpoints is not None
        step = trainer.global_step
        # Before a save, too: it may remove the last checkpoint from before the spike.
        regular = step % self.every_n_steps == 0 or step >= trainer.max_steps
        if regular or self.checkpoints.due(trainer):
            self._read(trainer)
        if self.began is not None:
            self._end(trainer, self.began)

    def _read(self, trainer: L.Trainer) -> None:
        """Give the detector what is unread; all ranks must call it."""
        if not self.unread or self.began is not None:
            return
        losses = trainer.strategy.reduce(torch.stack(self.unread).float(), reduce_op="mean")
        self.unread = []
        for loss in cast(Tensor, losses).tolist():
            ago = self.detector.add(loss)
            if ago is not None:
                self.began = self.losses_read - ago
                return
            self.losses_read += 1

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Past losses."""
        self._read(trainer)
        checkpoint[KEY] = {
            "history": list(self.detector.history),
            "high": list(self.detector.high),
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See `on_save_checkpoint`; older checkpoints have none."""
        saved = checkpoint.get(KEY, {"history": [], "high": []})
        self.detector.history.extend(saved["history"])
        self.detector.high = list(saved["high"])

    def _end(self, trainer: L.Trainer, began: int) -> None:
        """End the fit without a save; say how it goes on."""
        assert self.checkpoints is not None
        writer_of(trainer).wait()
        step, start = trainer.global_step, max(began - LEAD, 0)
        if self.skips and self.skips[-1]["step"] <= began:  # what follows a skip has none before it
            start = max(start, self.skips[-1]["step"])
        told = f"loss spike at step {began}, seen after step {step}"
        place = last_before(self.checkpoints.directory, start) if trainer.is_global_zero else None
        place = trainer.strategy.broadcast(place)
        if place is None and all(map(math.isfinite, self.detector.high)):
            self.tell(f"{told}; there is no checkpoint from before it, so the run goes on")
            self._forget()
            return
        if place is None:
            self.tell(f"{told}, and there is no checkpoint from before it to go back to")
        elif (many := len(self.skips)) >= self.max_skips:
            self.tell(f"{told}: {many} stretches of text were left out already (spikes.max_skips)")
        else:
            self.go_back_to = place
            first, after = self._samples(trainer, start)
            self.skips.append(
                {"samples": [first, after], "step": start, "began": began, "seen": step}
            )
            self.tell(
                f"{told}: going back to '{place}', samples {first} to {after - 1} are left out; "
                f"`show-samples --run_dir {self.run_dir} --skipped true` shows them"
            )
        if trainer.is_global_zero:
            set_aside(self.checkpoints.directory, start, "spiked")
            write_atomically(self.file, json.dumps(self.skips, indent=1).encode())
        trainer.strategy.barrier()
        trainer.limit_val_batches = 0  # Lightning would validate before it stops
        trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = 0
        trainer.should_stop = self.ended = self.checkpoints.unfinished = True
        self.checkpoints.saved_step = step  # nothing of this is worth a checkpoint

    def go_back(self, children: list[Popen[bytes]]) -> GoBack:
        """What to raise once the fit is over."""
        return GoBack(str(self.go_back_to), children)

    def _forget(self) -> None:
        """Losses are compared with those to come."""
        self.began = None
        self.detector.history.clear()
        self.detector.high.clear()

    def _samples(self, trainer: L.Trainer, start: int) -> tuple[int, int]:
        """What to leave out: what was read from `start` on; more where that did not do before."""
        segments = cast(PhaseData, cast(Any, trainer).datamodule).segments
        first, after = segments.span(start)[0], segments.span(trainer.global_step - 1)[1]
        near = self.detector.history.maxlen or 0
        if self.skips and start <= self.skips[-1]["step"] + near:
            was_first, was_after = self.skips[-1]["samples"]
            after = max(after, first + GROWTH * (was_after - was_first))
        return first, after


def last_before(directory: Path, start: int) -> Path | None:
    """The newest whole checkpoint of no later step."""
    whole = [p for p in list_checkpoints(directory) if step_of(p) <= start and is_whole(p)]
    return whole[-1] if whole else None


def set_aside(directory: Path, start: int, why: str) -> None:
    """Rename the checkpoints of later steps, the newest first, to names that are free."""
    for path in reversed(list_checkpoints(directory)):
        if step_of(path) > start:
            free = next(n for n in count(1) if not (directory / f"{why}-{n}-{path.name}").exists())
            for old in (path.with_name(f"{path.name}.bundle"), path):
                if old.exists():
                    old.replace(directory / f"{why}-{free}-{old.name}")


def _other_data(segments: Segments, step: int) -> bool:
    """Whether steps from `step` on take other shares or sizes than those before."""
    kinds = [(row.first_step, row.global_batch, row.shares) for row in segments.table]
    return any(after[0] == step and before[1:] != after[1:] for before, after in pairwise(kinds))
