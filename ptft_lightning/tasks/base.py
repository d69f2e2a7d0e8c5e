"""What every task promises; its two halves live in one file each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy.typing as npt
from torch import Tensor, nn
from torchmetrics import MetricCollection

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.examples import (
    Columns,
    Encoded,
    Example,
    read_examples,
    typed_example,
)
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.terms import Output

Arrays = dict[str, npt.NDArray[Any]]
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
LOWER_IS_BETTER = ("loss", "mse", "perplexity")


@dataclass(frozen=True)
class Scored:
    """What a pass over a set of examples gave."""

    examples: list[Example]
    windows: list[Encoded]
    """The examples as they were read, whose places in the list are the sample numbers."""
    scores: dict[int, Tensor]
    """Sample number -> its scores; a pass may have seen only some."""
    labels: list[str]
    tokenizer: Tokenizer

    def whole(self) -> dict[int, list[tuple[Encoded, Tensor]]]:
        """Example number -> its windows with their scores, in order; examples of which only some
        windows were seen are left out."""
        found: dict[int, list[tuple[Encoded, Tensor]]] = {}
        partial = set()
        for number, window in enumerate(self.windows):
            if number in self.scores:
                found.setdefault(window.example, []).append((window, self.scores[number]))
            else:
                partial.add(window.example)
        return {n: windows for n, windows in found.items() if n not in partial}


class Task:
    """What phase two predicts. Plain values only, so that it travels into a bundle's config."""

    name: ClassVar[str]
    shaping: ClassVar[tuple[str, ...]]
    """Settings that decide what a trained head computes: a tuned bundle keeps them."""
    monitor: str
    """The validation metric that decides which bundle is best, and when to stop early."""
    higher_is_better: bool = True
    judged: ClassVar[bool] = False
    """Whether `judge` measures the lines of predictions; then a pass keeps all scores."""
    zero_shot: bool = False
    """Whether a phase-one model does the task untrained: the head is new without parameters, or
    that model's own."""
    found: Mapping[str, float] = MappingProxyType({})
    """What `settle` chose, or the training file showed; it travels in the bundle."""
    likelihood: ClassVar[bool] = False
    """Whether the loss is the likelihood of tokens, so that perplexity means something."""
    decodes: ClassVar[bool] = False
    """Whether `predict` runs the backbone again, so that it needs all of it."""
    goes_on_from: ClassVar[tuple[str, ...]] = ()
    """Objectives whose head's tensors this task's head begins with."""

    def inherited(self, name: str) -> str:
        """Where a phase-one bundle may have the value that a tensor of the head begins with."""
        return ""

    def watch(self, metric: str) -> None:
        """Let one of the task's metrics decide."""
        self.monitor, self.higher_is_better = f"val_{metric}", metric not in LOWER_IS_BETTER

    def config(self) -> dict[str, Any]:
        """Plain values that rebuild the task, for the bundle."""
        raise NotImplementedError

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """The task that a bundle's plain values rebuild."""
        return cls(**config)

    def check(self, tokenizer: Tokenizer, causal: bool) -> None:
        """Refuse a tokenizer or a backbone that the task cannot work with."""

    def begin(self, split: str, count: int) -> None:
        """A pass over so many windows of a split begins."""

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Example]:
        """The examples of a file; those that cannot be used are noted in `bad`."""
        return read_examples(path, columns, labelled)

    def renamed(self, path: str, examples: list[Example], bad: BadExamples) -> list[Example]:
        """Examples whose labels were ids and have names now, which may show what is wrong."""
        return examples

    def typed(self, text: str, columns: Columns, place: str) -> Example:
        """An example typed by a person."""
        return typed_example(text, columns, place)

    def known_labels(self) -> list[str]:
        """Those known before an example is read."""
        return []

    def labels_of(self, example: Example) -> list[str]:
        """The labels of an example that must stand in the schema."""
        return []

    def schema(self, examples: list[Example]) -> list[str]:
        """The label names found in training examples, in the order of their ids."""
        raise NotImplementedError

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """Examples -> token ids and targets; an example may become several windows."""
        raise NotImplementedError

    def weigh(self, examples: list[Encoded], labels: list[str]) -> None:
        """Add what training examples count in the loss to their targets; all count 1 here."""

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> Arrays:
        """Targets of a micro-batch, given where each document's tokens begin: (D,) row and start.

        A document is an example, or one of its further texts, which follow it.
        """
        raise NotImplementedError

    def uniform_loss(self, labels: list[str]) -> float | None:
        """Nats per target of a uniform guess, near which training begins; None: unknown."""
        return None

    def build_head(self, backbone: Backbone, labels: list[str]) -> TaskHead:
        """The torch half."""
        raise NotImplementedError

    def metrics(self, labels: list[str]) -> MetricCollection:
        """Fresh metrics of scores and `label` targets, exact under any number of ranks."""
        return MetricCollection({})

    def predict(
        self, backbone: Backbone, head: TaskHead, batch: Batch, output: Output, tokenizer: Tokenizer
    ) -> Tensor | None:
        """(N, ...) scores of the samples of a batch whose output is known."""
        return output.scores

    def records(self, scored: Scored) -> dict[int, dict[str, Any]]:
        """Example number -> its line of predictions."""
        return {
            scored.windows[n].example: self.record(scores, scored.labels)
            for n, scores in scored.scores.items()
        }

    def record(self, scores: Tensor, labels: list[str]) -> dict[str, Any]:
        """One sample's (classes,) scores as a line of predictions."""
        raise NotImplementedError

    def judge(
        self, examples: list[Example], records: dict[int, dict[str, Any]]
    ) -> dict[str, float]:
        """Metrics of lines of predictions, which are those of all ranks."""
        return {}

    def settle(self, examples: list[Example], records: dict[int, dict[str, Any]]) -> None:
        """Choose into `found` what depends on validation examples, such as a threshold; called in
        a fit, before `judge`."""

    def write_beside(
        self, output: Path, examples: list[Example], records: dict[int, dict[str, Any]]
    ) -> None:
        """Files of the task's own beside a file of predictions."""


class TaskHead(nn.Module):
    """Hidden states and a batch -> terms and scores."""

    def reads(self, batch: Batch, backbone: Backbone) -> Batch:
        """What the backbone reads in place of a batch."""
        return batch

    def forward(self, hidden: Tensor, batch: Batch) -> Output:
        """(B, T, dim) hidden states -> terms and (E, ...) scores."""
        raise NotImplementedError


def labels_in_order(labels: Iterable[str]) -> list[str]:
    """Sorted; where all of them are numbers, by value."""
    names = sorted(labels)
    return sorted(names, key=float) if all(map(NUMBER.fullmatch, names)) else names
