"""Scores of single examples in an evaluation pass, kept as a file; knows no model and no picture.

What a report needs beyond sums: each example's text, its gold label and what was predicted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptft_lightning.data.batch import Batch
from ptft_lightning.data.examples import Example
from ptft_lightning.data.module import say
from ptft_lightning.data.token_store import write_atomically

KEPT = 20_000  # examples of a set, evenly spaced in larger ones
CHARACTERS = 1000  # of a text

Scored = list[tuple[Tensor, Tensor]]
"""(N,) sample numbers and (N, ...) scores of each micro-batch."""


def gather(mine: Scored, ranks: int) -> Scored:
    """Of all ranks; every rank must call it."""
    if ranks == 1:
        return mine
    parts: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(parts, mine)
    return [pair for part in parts for pair in part]


def by_number(scored: Scored) -> dict[int, Tensor]:
    """Sample number -> its scores, in the order of the numbers."""
    pairs = [pair for numbers, rows in scored for pair in zip(numbers.tolist(), rows, strict=True)]
    return dict(sorted(pairs, key=lambda pair: pair[0]))


class Predictions:
    """What was predicted for the examples of one pass."""

    def __init__(self) -> None:
        self.begin([])

    def begin(self, examples: list[Example]) -> None:
        """A new pass over `examples`, whose places in the list are the sample numbers."""
        self.examples = examples
        self.scored: Scored = []
        self.every = max(1, -(-len(examples) // KEPT))

    def add(self, batch: Batch, scores: Tensor | None) -> None:
        """Keep a micro-batch's (E, ...) scores, empty slots left out."""
        if scores is None:
            return
        kept = (batch.samples >= 0) & (batch.samples % self.every == 0)
        self.scored.append((batch.samples[kept].cpu(), scores.detach()[kept].float().cpu()))

    def write(
        self, file: Path, ranks: int, first: bool, record: Callable[[Tensor], dict[str, Any]]
    ) -> None:
        """One JSON line per example: number, text, gold label and what `record` makes of its
        scores. Every rank must call it; the `first` writes."""
        scores = by_number(gather(self.scored, ranks))
        if not first or not scores:
            return
        lines = [
            json.dumps({**self._said(number), **record(row)}, ensure_ascii=False) + "\n"
            for number, row in scores.items()
        ]
        if self.every > 1:
            say(f"{file.name}: 1 in {self.every} of {len(self.examples):,} examples is kept")
        try:
            write_atomically(file, "".join(lines).encode())
        except OSError as error:  # the run matters more than the picture of it
            say(f"'{file}' was not written: {error}")

    def _said(self, number: int) -> dict[str, Any]:
        example = self.examples[number]
        gold = example.label if example.labels is None else example.labels
        said = {"number": number, "text": _cut(example.text), "gold": gold}
        return said if example.pair is None else said | {"pair": _cut(example.pair)}


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"
