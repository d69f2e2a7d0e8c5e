"""Predictions as files: JSON lines, or vectors as a numpy array."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ptft_lightning.data.examples import Example
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import Task

Records = dict[int, dict[str, Any]]
"""Example number -> its line of predictions."""


def predicted_lines(examples: list[Example], records: Records) -> list[str]:
    """Each example and what was predicted, in the order of the file."""
    return [
        json.dumps({**examples[n].said, **record}, ensure_ascii=False)
        for n, record in sorted(records.items())
    ]


def write_predictions(output: Path, task: Task, examples: list[Example], records: Records) -> None:
    """One line an example, and what the task writes beside it; a .npy file takes vectors."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".npy":
        write_vectors(output, records)
        return
    lines = predicted_lines(examples, records)
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    task.write_beside(output, examples, records)
    say(f"{len(lines)} predictions: {output}")


def write_vectors(output: Path, records: Records) -> None:
    """The embedding of each example, (N, dim) float32 in the order of the file.

    Raises:
        UserError: something else was predicted.
    """
    lines = [record for _, record in sorted(records.items())]
    if other := next((line for line in lines if "embedding" not in line), None):
        raise UserError(
            f"--output '{output}' takes vectors, what is predicted here is {', '.join(other)}: "
            "give texts without a pair (--data.columns.pair null) to a Matching, or a .jsonl file"
        )
    np.save(output, np.array([line["embedding"] for line in lines], np.float32))
    say(f"{len(lines)} vectors: {output}")
