"""What every task promises; its two halves live in one file each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy.typing as npt
from torch import Tensor, nn
from torchmetrics import MetricCollection

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.examples import Encoded, Example
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.terms import Output

Arrays = dict[str, npt.NDArray[Any]]
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
LOWER_IS_BETTER = ("loss", "mse")


class Task:
    """What phase two predicts. Plain values only, so that it travels into a bundle's config."""

    name: ClassVar[str]
    monitor: str
    """The validation metric that decides which bundle is best, and when to stop early."""
    higher_is_better: bool = True

    def watch(self, metric: str) -> None:
        """Let one of the task's metrics decide."""
        self.monitor, self.higher_is_better = f"val_{metric}", metric not in LOWER_IS_BETTER

    def config(self) -> dict[str, Any]:
        """Plain values that rebuild the task, for the bundle."""
        raise NotImplementedError

    def labels_of(self, example: Example) -> list[str]:
        """The labels of an example that must stand in the schema."""
        return []

    def schema(self, examples: list[Example]) -> list[str]:
        """The label names found in training examples, in the order of their ids."""
        raise NotImplementedError

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """Examples -> token ids and targets."""
        raise NotImplementedError

    def weigh(self, examples: list[Encoded], labels: list[str]) -> None:
        """Add what training examples count in the loss to their targets; all count 1 here."""

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> Arrays:
        """Targets of a micro-batch, given where each example's tokens begin: (E,) row and start."""
        raise NotImplementedError

    def uniform_loss(self, labels: list[str]) -> float | None:
        """Nats per target of a uniform guess, near which training begins; None: unknown."""
        return None

    def build_head(self, backbone: Backbone, labels: list[str]) -> TaskHead:
        """The torch half."""
        raise NotImplementedError

    def metrics(self, labels: list[str]) -> MetricCollection:
        """Fresh metrics, exact under any number of ranks."""
        raise NotImplementedError

    def record(self, scores: Tensor, labels: list[str]) -> dict[str, Any]:
        """One example's (classes,) scores as a line of predictions."""
        raise NotImplementedError


class TaskHead(nn.Module):
    """Hidden states and a batch -> terms and scores."""

    def forward(self, hidden: Tensor, batch: Batch) -> Output:
        """(B, T, dim) hidden states -> terms and (E, ...) scores."""
        raise NotImplementedError


def labels_in_order(labels: Iterable[str]) -> list[str]:
    """Sorted; where all of them are numbers, by value."""
    names = sorted(labels)
    return sorted(names, key=float) if all(map(NUMBER.fullmatch, names)) else names
