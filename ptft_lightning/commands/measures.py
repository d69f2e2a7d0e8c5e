"""What `test` and `validate` leave behind: their metrics, in the run directory and printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from ptft_lightning.modules.finetune import FinetuneModule


def keep_measures(
    what: str, module: L.LightningModule, found: Mapping[str, float], run_dir: Path, overlap: bool
) -> None:
    """Write and print the metrics of `what`; all ranks must call it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    testing = module if what == "test" and isinstance(module, FinetuneModule) else None
    if testing is not None:
        testing.keep_predictions(run_dir, "test")
    if not module.trainer.is_global_zero:
        return
    file, values = run_dir / f"{what}.json", dict[str, Any](found)
    file.write_text(json.dumps(values) + "\n")  # whatever becomes of what follows
    if testing is not None and overlap:
        from ptft_lightning.commands.overlap import guard  # a leaf

        values.update(guard(testing, run_dir))
        file.write_text(json.dumps(values) + "\n")
    print(json.dumps(values))
