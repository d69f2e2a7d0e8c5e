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
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.modules.finetune import FinetuneModule

TOLERANCE = 1e-3  # kernels of accelerators add up in any order; so many decisions may flip:
FLIPPED = 2


def reproduce(trainer: L.Trainer, module: FinetuneModule, run_dir: Path) -> None:
    """Validate with the run's bundle alone; every rank must call it.

    Not compared where the metrics were measured otherwise, as before a resume with other ranks.

    Raises:
        UserError: a metric is another one than when the bundle was written.
    """
    bundle = open_bundle(run_dir / "bundle")
    wanted = {k: v for k, v in bundle.lineage["metrics"].items() if k.startswith("val_")}
    now = {"step": bundle.lineage["steps"], **module.circumstances()} if wanted else {}
    if not wanted or bundle.lineage.get("measured") != now:
        say("the bundle's metrics were not measured as they would be now: not compared")
        return
    head, tuning = bundle.config["head"], bundle.config["tuning"]
    fresh = FinetuneModule(
        task=type(module.task).of(head["config"]),
        init_from=bundle.path,
        tuning=type(module.tuning)(**tuning["config"]),
        optimizer=module.optimizer_config,
        seed=module.seed,
        base=module.base,
        compile_layers=module.compile_layers,
    )
    trainer.loggers, cast(Any, trainer).callbacks = [], []  # they belong to the fit
    datamodule: Any = module.data
    values = trainer.validate(fresh, datamodule=datamodule, verbose=False)[0]
    tolerance = module.tuning.tolerance
    if trainer.strategy.root_device.type != "cpu":
        tolerance = max(tolerance, TOLERANCE)
    if tolerance:
        examples = len(datamodule.examples["validation"])
        tolerance = max(tolerance, FLIPPED / max(1, examples))
    if changed := [
        f"{name} was {value}, is {values.get(name)}"
        for name, value in wanted.items()
        if not _same(value, values.get(name), tolerance)
    ]:
        raise UserError(
            f"the bundle '{bundle.path}' does not give the metrics of its run "
            f"({'; '.join(changed)}): do not use it, and report this"
        )
    say(f"the bundle gives {module.task.monitor} {values[module.task.monitor]:.4g}, as the run did")


def _same(was: float, now: float | None, tolerance: float) -> bool:
    if now is None:
        return False
    same = math.isnan(was) and math.isnan(now)
    return same or abs(was - now) <= tolerance * max(1.0, abs(was))
