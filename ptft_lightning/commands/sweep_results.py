"""What the trials of a sweep left: metrics, errors, a table; knows no search."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def trial_directory(output: Path, number: int) -> Path:
    """A trial's run directory."""
    return output / f"trial-{number:03d}"


def values_of(run_dir: Path, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a column of metrics.csv, which another process may be writing."""
    file = run_dir / "metrics.csv"
    if not file.is_file():
        return []
    with open(file, newline="") as stream:
        rows = [
            row for row in csv.DictReader(stream) if row.get(metric) and None not in row.values()
        ]
    return [(int(row["step"]), float(row[metric])) for row in rows]


def error_of(run_dir: Path) -> str:
    """What a trial that failed said last."""
    file = run_dir / "log.txt"
    lines = [line for line in file.read_text().splitlines() if line] if file.is_file() else []
    named = [line for line in lines if line.startswith("error: ")]
    return (named or lines or ["it said nothing"])[-1]


def aligned(rows: list[list[str]]) -> Iterator[str]:
    """The rows of a table, its columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def short(value: Any) -> str:
    """A setting's value as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table_of(study: Any, output: Path, metric: str, names: Sequence[str]) -> list[list[str]]:
    """A row per trial below the heading, the best first, those without a value last."""
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    trials = sorted(study.trials, key=lambda t: math.inf if t.value is None else sign * t.value)
    rows = [["trial", "state", metric, *names, "error"]]
    for trial in trials:
        value = "" if trial.value is None else f"{trial.value:.6g}"
        failed = trial.state.name == "FAIL"
        error = error_of(trial_directory(output, trial.number)) if failed else ""
        chosen = [short(trial.params.get(name, "")) for name in names]
        rows.append([str(trial.number), trial.state.name.lower(), value, *chosen, error])
    return rows
