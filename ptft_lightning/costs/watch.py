"""What a fit was predicted to cost beside what it then cost."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy

from ptft_lightning.costs import flops
from ptft_lightning.costs.counted import counted_flops
from ptft_lightning.costs.describe import job_of
from ptft_lightning.costs.job import Job, Strategy
from ptft_lightning.costs.memory import memory
from ptft_lightning.costs.parameters import backbone_parameters
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.files import write_atomically
from ptft_lightning.modules.footprint import size
from ptft_lightning.modules.phase import PhaseModule

NAME = "costs.json"


class Costs(Callback):
    """Predict before the first step, count in it, and say both when training ends; `costs.json`
    of the run directory has the numbers. Rank 0 speaks for all."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.job: Job | None = None
        self.counted: int | None = None
        self.begun = False
        self.seconds: list[float] = []  # a step, at each report
        self.reported = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Predict and count at this process's first batch; later note how long steps take:
        callbacks end a batch before the module does."""
        module = cast(PhaseModule, pl_module)
        if not trainer.is_global_zero or cast(Any, trainer).fast_dev_run:
            return
        if not self.begun:
            self.begun, began = True, time.perf_counter()
            try:
                self._begin(trainer, module, batch)
            except (UserError, NotImplementedError, RuntimeError) as error:
                # A fit must not end for that: some operators cannot run on the meta device.
                say(f"costs are not counted: {str(error).splitlines()[0]}")
            module.clock += time.perf_counter() - began  # it is none of the step's
        self._take_time(module)

    def _begin(self, trainer: L.Trainer, module: PhaseModule, batch: Batch) -> None:
        device = trainer.strategy.root_device.type
        strategy: Strategy = "ddp" if trainer.world_size > 1 else "single"
        if isinstance(trainer.strategy, ModelParallelStrategy):
            strategy = "fsdp2"
        precision = str(trainer.precision)
        job = job_of(
            module, module.net, module.data, precision, device, strategy, trainer.world_size
        )
        self.job = replace(job, rows=len(batch.tokens))  # packing makes fewer rows than examples
        self.reported = module.logged_step
        with torch.device("meta"):
            net = module.build_net(module.data)
        self.counted = counted_flops(net, batch)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        parts = ", ".join(f"{name} {size(n)}" for name, n in memory(job).parts().items() if n)
        say(f"predicted: {flops.micro_batch(self.job):.3g} FLOPs a micro-batch; {parts} a rank")

    def _take_time(self, module: PhaseModule) -> None:
        if module.logged_step > self.reported:
            self.reported = module.logged_step
            self.seconds.append(module.train_values["seconds_per_step"])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say and keep both."""
        if self.job is None:
            return
        self._take_time(cast(PhaseModule, pl_module))
        record = self.record(trainer, cast(PhaseModule, pl_module))
        self.run_dir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1) + "\n"
        write_atomically(self.run_dir / NAME, text.encode())
        say(told(record))

    def record(self, trainer: L.Trainer, module: PhaseModule) -> dict[str, Any]:
        """Predicted and measured, name by name; None where it could not be measured."""
        assert self.job is not None
        job, backbone = self.job, module.net.backbone
        counted = self.counted or flops.micro_batch(job)
        per_step = counted * trainer.accumulate_grad_batches * job.ranks
        seconds = statistics.median(self.seconds) if self.seconds else None
        cuda = job.device == "cuda"
        return {
            "backbone_parameters": {
                "predicted": backbone_parameters(job.config, job.vocab_size),
                "measured": sum(p.numel() for p in backbone.parameters()),
            },
            "flops_per_micro_batch": {
                "predicted": flops.micro_batch(job),
                "measured": self.counted,
            },
            "peak_memory": {
                "predicted": memory(job).peak,
                "measured": torch.cuda.max_memory_allocated() if cuda else None,
            },
            "seconds_per_step": seconds,
            "flops_per_second_per_device": seconds and per_step / seconds / job.ranks,
            "ranks": job.ranks,
            "strategy": job.strategy,
            "precision": job.precision,
        }


def told(record: dict[str, Any]) -> str:
    """One line of `Costs.record`."""
    work, room = record["flops_per_micro_batch"], record["peak_memory"]
    parts = [f"{work['predicted']:.3g} FLOPs a micro-batch predicted"]
    if work["measured"] is not None:
        parts[0] += f", {work['measured']:.3g} counted"
    if room["measured"] is not None:
        parts.append(f"{size(room['predicted'])} a rank predicted, {size(room['measured'])} taken")
    if record["seconds_per_step"]:
        speed = record["flops_per_second_per_device"] / 1e12
        parts.append(f"{record['seconds_per_step']:.3g} s a step, {speed:.3g} TFLOP/s a device")
    return "costs: " + "; ".join(parts)
