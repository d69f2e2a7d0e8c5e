"""Predictions as files: JSON lines, or vectors as a numpy array."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ptft_lightning.data.examples import Example
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import Task

if TYPE_CHECKING:
    import lightning as L
    from jsonargparse import Namespace

    from ptft_lightning.data.task_data import TaskDataModule
    from ptft_lightning.modules.finetune import FinetuneModule
    from ptft_lightning.modules.predictions import Parts

Records = dict[int, dict[str, Any]]
"""Example number -> its line of predictions."""


def refuse_over(output: str | Path | None, *inputs: str | None) -> None:
    """Before the work: what is read must not be overwritten.

    Raises:
        UserError: the output is one of the inputs.
    """
    for given in inputs:
        if output and given and os.path.realpath(output) == os.path.realpath(given):
            raise UserError(f"--output '{output}' is the file that is read: name another one")


def predicted_lines(examples: list[Example], records: Records) -> list[str]:
    """Each example and what was predicted, in the order of the file."""
    return [
        json.dumps({**examples[n].said, **record}, ensure_ascii=False)
        for n, record in sorted(records.items())
    ]


def predict(
    trainer: L.Trainer, model: FinetuneModule, data: TaskDataModule, options: Namespace, **more: Any
) -> None:
    """Predict what the data module was given, on all ranks; print it or write it on the first."""
    output = Path(options.output or Path(options.run_dir) / "predictions.jsonl")
    refuse_over(output, data.files["predict"])
    records = model.records("predict", cast("Parts", trainer.predict(model, **more) or []))
    if not trainer.is_global_zero:
        return
    examples = data.examples["predict"]
    if options.text is not None and options.output is None:
        print("\n".join(predicted_lines(examples, records)))
        return
    write_predictions(output, model.task, examples, records)


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
