"""Scores of single examples in an evaluation pass, kept as a file; knows no model and no picture.

What metrics of whole predictions and a report need beyond sums: each example, what should have been
predicted and what was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptft_lightning.data.batch import Batch
from ptft_lightning.data.examples import Encoded, Example
from ptft_lightning.data.module import say
from ptft_lightning.files import write_atomically

KEPT = 20_000  # examples of a set, evenly spaced in larger ones
CHARACTERS = 1000  # of a text

Parts = list[tuple[Tensor, Tensor]]
"""(N,) sample numbers and (N, ...) scores of each micro-batch."""


def gather(mine: Parts, ranks: int) -> dict[int, Tensor]:
    """Sample number -> its scores, of all ranks, in the order of the numbers; every rank must call
    it."""
    parts: list[Any] = [mine]
    if ranks > 1:
        parts = [None] * ranks
        torch.distributed.all_gather_object(parts, mine)
    pairs = [
        pair
        for part in parts
        for numbers, rows in part
        for pair in zip(numbers.tolist(), rows, strict=True)
    ]
    return dict(sorted(pairs, key=lambda pair: pair[0]))


def of_batch(batch: Batch, scores: Tensor, every: int = 1) -> tuple[Tensor, Tensor]:
    """Sample numbers and scores of a micro-batch, its empty slots left out."""
    samples = batch.samples.cpu()  # as scores may be that were made there
    kept = (samples >= 0) & (samples % every == 0)
    return samples[kept], scores.detach().cpu()[kept].float()


class Predictions:
    """What was predicted for the examples of one pass."""

    def __init__(self) -> None:
        self.begin([], [], whole=False)

    def begin(self, examples: list[Example], windows: list[Encoded], whole: bool) -> None:
        """A new pass over `windows` of `examples`, whose places in the list are the sample numbers;
        `whole` keeps all of them."""
        self.examples, self.windows = examples, windows
        self.parts: Parts = []
        self.every = 1 if whole else max(1, -(-len(windows) // KEPT))

    def add(self, batch: Batch, scores: Tensor | None) -> None:
        """Keep a micro-batch's (E, ...) scores, empty slots left out."""
        if scores is not None:
            self.parts.append(of_batch(batch, scores, self.every))

    def write(self, file: Path, records: dict[int, dict[str, Any]]) -> None:
        """One JSON line per example: number, the example, what is right and its record."""
        every = max(1, -(-len(records) // KEPT))
        kept = list(records)[::every]
        lines = [
            json.dumps({**self._said(number), **records[number]}, ensure_ascii=False) + "\n"
            for number in kept
        ]
        if not lines:
            return
        if (thin := self.every * every) > 1:
            say(f"{file.name}: 1 in {thin} of {len(self.examples):,} examples is kept")
        try:
            write_atomically(file, "".join(lines).encode())
        except OSError as error:  # the run matters more than the picture of it
            say(f"'{file}' was not written: {error}")

    def _said(self, number: int) -> dict[str, Any]:
        example = self.examples[number]
        said = {name: _cut(value) for name, value in example.said.items()}
        return {"number": number, **said, "gold": example.gold}


def _cut(value: Any) -> Any:
    if not isinstance(value, str) or len(value) <= CHARACTERS:
        return value
    return value[: CHARACTERS - 1] + "…"
