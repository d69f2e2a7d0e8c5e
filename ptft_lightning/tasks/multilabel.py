"""Multi-label classification: any number of labels for a sentence or a pair of sentences."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.examples import Encoded, Example
from ptft_lightning.data.framing import frame_example
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import Arrays, Task, TaskHead, labels_in_order
from ptft_lightning.tasks.pooling import PooledHead, Pooling, spans_of
from ptft_lightning.terms import IGNORE, Output, Term


class MultiLabel(Task):
    """Any number of labels, also none, for a text or a pair of texts.

    The label column holds a JSON list, or text that `data.columns.separator` cuts.

    Args:
        pooling: How the hidden states of an example become one vector; `auto` is the mean,
            `attention` a mean weighted by a trained query.
        dropout: Probability on that vector, in training.
        threshold: Labels more likely than this are predicted; kept in the bundle.
        monitor: The validation metric that decides which bundle is best.
    """

    name = "multilabel"
    shaping = ("pooling",)

    def __init__(
        self,
        pooling: Pooling = "auto",
        dropout: float = 0.1,
        threshold: float = 0.5,
        monitor: Literal["micro_f1", "macro_f1", "subset_accuracy", "loss"] = "micro_f1",
    ) -> None:
        self.pooling, self.dropout, self.threshold = pooling, dropout, threshold
        self.watch(monitor)
        if not 0 < threshold < 1:
            raise UserError(f"task.threshold is {threshold}: give a probability between 0 and 1")

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {
            "pooling": self.pooling,
            "dropout": self.dropout,
            "threshold": self.threshold,
            "monitor": self.monitor.removeprefix("val_"),
        }

    def labels_of(self, example: Example) -> list[str]:
        """Its labels; text that is no list is one label, empty text none."""
        if example.labels is not None:
            return example.labels
        return [example.label] if example.label else []

    def schema(self, examples: list[Example]) -> list[str]:
        """The labels that occur, sorted; numbers by their value."""
        labels = labels_in_order({label for e in examples for label in self.labels_of(e)})
        if len(labels) < 2:
            raise UserError(
                f"multilabel needs two labels or more, the training file has {labels}: for yes "
                "or no choose Classification"
            )
        return labels

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """Token ids of each example, cut to `max_length`, with a (labels,) vector of 0 and 1."""
        ids = {label: i for i, label in enumerate(labels)}
        encoded = frame_example(examples, tokenizer, max_length)
        for example, item in zip(examples, encoded, strict=True):
            if example.label is None and example.labels is None:
                continue
            item.targets["label"] = np.zeros(len(labels), np.int64)
            item.targets["label"][[ids[label] for label in self.labels_of(example)]] = 1
        return encoded

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> Arrays:
        """Row, start and end of each example and its (E, labels) labels; rows of IGNORE in empty
        slots, one column wide where there is nothing else."""
        found = [e.targets["label"] for e in packed if "label" in e.targets]
        width = len(found[0]) if found else 1
        labels = np.full((len(packed), width), IGNORE, np.int64)
        if found:
            labels[["label" in e.targets for e in packed]] = found
        return {**spans_of(packed, rows, starts), "label": labels}

    def uniform_loss(self, labels: list[str]) -> float:
        """Yes or no for each label: ln 2."""
        return math.log(2)

    def build_head(self, backbone: Backbone, labels: list[str]) -> TaskHead:
        """A linear layer on the pooled vector."""
        return MultiLabelHead(backbone.dim, len(labels), self.pooling, self.dropout)

    def metrics(self, labels: list[str]) -> MetricCollection:
        """F1 over all decisions, the mean of the labels' own, and examples wholly right."""
        n, threshold = len(labels), self.threshold
        return _OfLabelled(
            {
                "micro_f1": MultilabelF1Score(n, threshold, average="micro"),
                "macro_f1": MultilabelF1Score(n, threshold, average="macro"),
                "subset_accuracy": MultilabelExactMatch(n, threshold),
            }
        )

    def record(self, scores: Tensor, labels: list[str]) -> dict[str, Any]:
        """The labels above the threshold and every label's probability."""
        likely = scores.float().sigmoid()
        chosen = (likely > self.threshold).tolist()
        return {
            "labels": [label for label, yes in zip(labels, chosen, strict=True) if yes],
            "probabilities": {
                label: round(p, 6) for label, p in zip(labels, likely.tolist(), strict=True)
            },
        }


class _OfLabelled(MetricCollection):
    """Takes logits and leaves empty slots out.

    torchmetrics guesses whether it was given logits or probabilities, batch by batch, and counts
    an ignored row as one that is wholly right.
    """

    def update(self, scores: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        real = labels[:, 0] != IGNORE
        if real.any():
            super().update(scores[real].sigmoid(), labels[real])


class MultiLabelHead(PooledHead):
    """A binary cross-entropy for each label, averaged over the labels."""

    def forward(self, hidden: Tensor, batch: Batch) -> Output:
        """(B, T, dim) hidden states -> the `multilabel` term and (E, labels) scores."""
        logits = self.project(hidden, batch.targets)
        labels = batch.targets["label"].expand_as(logits)
        real = labels != IGNORE
        losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        total = losses.where(real, 0.0).sum()
        term = Term(total, real.sum(), nominal=float(logits.shape[1]))
        return Output({"multilabel": term}, scores=logits)
