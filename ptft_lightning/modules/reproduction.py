"""The last act of a phase-two run: its bundle, opened anew, must give the metrics it was kept for.

What a bundle forgets (a label schema, a template, a head that was not saved) shows here, not when
somebody uses it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import lightning as L

from ptft_lightning.data.module import say
from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.modules.finetune import FinetuneModule

CPU_TOLERANCE = 0.0
TOLERANCE = 1e-3  # kernels of accelerators add up in any order


def reproduce(trainer: L.Trainer, module: FinetuneModule, run_dir: Path) -> None:
    """Validate with the run's bundle alone; every rank must call it.

    Raises:
        RuntimeError: a metric is another one than when the bundle was written.
    """
    bundle = open_bundle(run_dir / "bundle")
    wanted = {k: v for k, v in bundle.lineage["metrics"].items() if k.startswith("val_")}
    if not wanted:
        return
    head, tuning = bundle.config["head"], bundle.config["tuning"]
    fresh = FinetuneModule(
        task=type(module.task)(**head["config"]),
        init_from=bundle.path,
        tuning=type(module.tuning)(**tuning["config"]),
        optimizer=module.optimizer_config,
        seed=module.seed,
        base=module.base,
    )
    trainer.loggers, cast(Any, trainer).callbacks = [], []  # they belong to the fit
    datamodule: Any = module.data
    values = trainer.validate(fresh, datamodule=datamodule, verbose=False)[0]
    tolerance = CPU_TOLERANCE if trainer.strategy.root_device.type == "cpu" else TOLERANCE
    tolerance = max(tolerance, module.tuning.tolerance)
    if changed := [
        f"{name} was {value}, is {values.get(name)}"
        for name, value in wanted.items()
        if not _same(value, values.get(name), tolerance)
    ]:
        raise RuntimeError(
            f"the bundle '{bundle.path}' does not give the metrics of its run "
            f"({'; '.join(changed)}): do not use it, and report this"
        )
    say(f"the bundle gives {module.task.monitor} {values[module.task.monitor]:.4g}, as the run did")


def _same(was: float, now: float | None, tolerance: float) -> bool:
    if now is None:
        return False
    return (math.isnan(was) and math.isnan(now)) or abs(was - now) <= tolerance * abs(was)
