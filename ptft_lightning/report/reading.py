"""What a run directory holds, as plain values; knows no picture and loads no torch.

A run may be unfinished, or its last line torn: what can be read is read, the rest is counted.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from ptft_lightning.errors import UserError

Floats = npt.NDArray[np.float64]
CHECKPOINT = re.compile(r"step=(\d+)\.ckpt$")
SPLITS = ("test", "validation")


@dataclass
class Curve:
    """One column of metrics.csv where it has values."""

    steps: Floats
    values: Floats
    """May hold NaN and infinities: a run may diverge."""

    @property
    def last(self) -> float:
        """The newest value."""
        return float(self.values[-1])

    def at(self, step: int) -> float | None:
        """The value logged at a step."""
        found = np.flatnonzero(self.steps == step)
        return float(self.values[found[0]]) if found.size else None


@dataclass
class Run:
    """Everything a report tells of one run."""

    directory: Path
    config: dict[str, Any]
    curves: dict[str, Curve]
    bundle: dict[str, Any]
    """config.json of the bundle; empty before there is one."""
    lineage: dict[str, Any]
    test: dict[str, float]
    samples: list[dict[str, Any]]
    predictions: dict[str, list[dict[str, Any]]]
    """Lines of `SPLIT_predictions.jsonl` by split."""
    step: int
    """The newest step the directory knows of."""
    ngram: dict[str, Any] = field(default_factory=dict)
    """What an n-gram model makes of the same held-out text."""
    troubles: list[str] = field(default_factory=list)
    """What could not be read, a sentence each."""

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.directory.resolve().name

    @property
    def phase(self) -> str:
        """`pretrain` or `finetune`."""
        tuned = "FinetuneModule" in str(self.option("model", "class_path"))
        return str(self.bundle.get("phase") or ("finetune" if tuned else "pretrain"))

    def option(self, *keys: str) -> Any:
        """A value of the config; None where it is not set."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_run(directory: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: it is none.
    """
    if not directory.is_dir():
        raise UserError(f"run not found: '{directory}' is not a directory")
    if not any((directory / name).is_file() for name in ("config.yaml", "metrics.csv")):
        raise UserError(
            f"no run in '{directory}': it has neither config.yaml nor metrics.csv; give the "
            "--run_dir of a fit"
        )
    troubles: list[str] = []
    curves = _curves(directory / "metrics.csv", troubles)
    lineage = _whole(directory / "bundle" / "lineage.json", json.loads, troubles)
    steps = [int(m[1]) for p in directory.glob("checkpoints/*") if (m := CHECKPOINT.search(p.name))]
    steps += [int(curve.steps[-1]) for curve in curves.values()]
    return Run(
        directory=directory,
        config=_whole(directory / "config.yaml", yaml.safe_load, troubles),
        curves=curves,
        bundle=_whole(directory / "bundle" / "config.json", json.loads, troubles),
        lineage=lineage,
        test=_whole(directory / "test.json", json.loads, troubles),
        ngram=_whole(directory / "ngram.json", json.loads, troubles),
        samples=_lines(directory / "samples.jsonl", {"step", "prompt", "text"}, troubles),
        predictions={
            split: _lines(directory / f"{split}_predictions.jsonl", {"gold"}, troubles)
            for split in SPLITS
        },
        step=max([*steps, int(lineage.get("steps", 0))]),
        troubles=troubles,
    )


def _curves(file: Path, troubles: list[str]) -> dict[str, Curve]:
    """The columns of metrics.csv; a row that a kill tore is counted."""
    if not file.is_file():
        troubles.append(f"There is no {file.name}: nothing has been logged yet.")
        return {}
    with open(file, newline="", encoding="utf-8", errors="replace") as stream:
        reader = csv.DictReader(stream)
        rows = [(row, _numbers(row)) for row in reader]
    whole = {int(row["step"]): row for _, row in rows if row is not None}
    if torn := len(rows) - sum(row is not None for _, row in rows):
        troubles.append(f"{torn} of {len(rows)} rows of {file.name} could not be read.")
    points: dict[str, list[tuple[float, float]]] = {}
    for step, row in sorted(whole.items()):
        for name, value in row.items():
            points.setdefault(name, []).append((step, value))
    points.pop("step", None)
    return {name: Curve(*np.array(pairs, np.float64).T) for name, pairs in points.items()}


def _numbers(row: dict[str | Any, Any]) -> dict[str, float] | None:
    """The values of a row; None if it is torn."""
    if None in row or None in row.values() or not row.get("step", "").isdecimal():
        return None
    try:
        return {name: float(value) for name, value in row.items() if value != ""}
    except ValueError:
        return None


def _whole(file: Path, parse: Callable[[str], Any], troubles: list[str]) -> dict[str, Any]:
    """A JSON or YAML file that holds a mapping; empty where there is none."""
    if not file.is_file():
        return {}
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        troubles.append(f"{file.name} could not be read.")
        return {}
    return content


def _lines(file: Path, needed: set[str], troubles: list[str]) -> list[dict[str, Any]]:
    """The whole lines of a .jsonl file; those without the `needed` keys are counted."""
    if not file.is_file():
        return []
    found = []
    # Not splitlines: text may hold separators that end no line of a file.
    content = file.read_text(encoding="utf-8", errors="replace")
    lines = content.removesuffix("\n").split("\n") if content else []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and needed <= record.keys():
            found.append(record)
    if bad := len(lines) - len(found):
        troubles.append(f"{bad} of {len(lines)} lines of {file.name} could not be read.")
    return found
