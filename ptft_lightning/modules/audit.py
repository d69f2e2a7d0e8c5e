"""Proof of what was trained on: one line per optimizer step with its samples and their hashes."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ptft_lightning.data.batch import Batch
from ptft_lightning.data.module import say


class Audit(Callback):
    """Write `{"step": s, "samples": [[number, hash], ...]}` per step, sorted by sample.

    Where samples were left out before a step, its line has `"skipped": [first, after]`, too.

    The same for any number of ranks, workers and micro-batches. A resume first cuts the lines
    after its checkpoint; a run from the first step leaves what the file holds under another name.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.seen: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the lines of steps before this one."""
        if not trainer.is_global_zero:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if trainer.global_step == 0:
            self._set_aside()
        elif self.file.is_file():
            lines = self.file.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["step"] < trainer.global_step]
        self.file.write_text("".join(kept))

    def _set_aside(self) -> None:
        """It may be another run's."""
        if not (self.file.is_file() and self.file.stat().st_size):
            return
        names = (self.file.with_stem(f"{self.file.stem}-{n}") for n in count(1))
        kept = next(name for name in names if not name.exists())
        self.file.rename(kept)
        say(f"data.audit: what '{self.file}' held is now in '{kept}'")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Collect micro-batches; after the step, gather the ranks and write."""
        assert batch.hashes is not None
        self.seen.append(torch.stack([batch.samples, batch.hashes], 1))
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        mine = torch.cat(self.seen)
        self.seen = []
        everyone = trainer.strategy.all_gather(mine).reshape(-1, 2)
        if trainer.is_global_zero:
            rows = sorted(row for row in everyone.tolist() if row[0] >= 0)
            step = trainer.global_step - 1
            line: dict[str, Any] = {
                "step": step,
                "samples": [[n, f"{h & (2**64 - 1):016x}"] for n, h in rows],
            }
            if (gap := cast(Any, trainer).datamodule.segments.skipped(step)) is not None:
                line["skipped"] = list(gap)
            with open(self.file, "a") as stream:
                stream.write(json.dumps(line) + "\n")
