"""metrics.csv of a run: one row a step, kept across resumes."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger


class CsvMetrics(Logger):
    """Append metrics to a file, rank 0 only.

    Lightning's own CSVLogger removes an earlier file when a run goes on in the same directory.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.rows: dict[int, dict[str, str]] = {}
        self.columns = ["step"]
        if file.is_file():
            with open(file, newline="") as stream:
                reader = csv.DictReader(stream)
                self.columns = list(reader.fieldnames or self.columns)
                # A kill may have torn the last line.
                whole = (
                    row for row in reader if row["step"].isdigit() and None not in row.values()
                )
                self.rows = {int(row["step"]): row for row in whole}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one version: the run's directory."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's directory."""
        return str(self.file.parent)

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps a resume will do again."""
        self.rows = {s: row for s, row in self.rows.items() if s <= step}
        self._write_all()

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """The whole config stands in config.yaml beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add values to the row of a step."""
        at = step or 0
        fresh = at not in self.rows
        row = self.rows.setdefault(at, {"step": str(at)})
        row.update({k: f"{float(v):.8g}" for k, v in metrics.items() if k != "epoch"})
        known = set(self.columns)
        self.columns += [k for k in row if k not in known]
        if fresh and known.issuperset(row) and self.file.is_file():
            with open(self.file, "a", newline="") as stream:
                csv.DictWriter(stream, self.columns, restval="").writerow(row)
        else:
            self._write_all()

    def _write_all(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".csv.tmp")
        with open(temporary, "w", newline="") as stream:
            writer = csv.DictWriter(stream, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows[s] for s in sorted(self.rows))
        temporary.replace(self.file)


class ForgetRedone(Callback):
    """Drop the rows of steps that a resume does again, once it is sure that training starts."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See the class."""
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, CsvMetrics):
                logger.forget_after(trainer.global_step)
