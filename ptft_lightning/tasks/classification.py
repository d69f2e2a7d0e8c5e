"""Text classification: one label for a sentence or a pair of sentences."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.examples import Encoded, Example, frame_example
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import Task, TaskHead
from ptft_lightning.terms import IGNORE, Output, Term

Pooling = Literal["auto", "mean", "first", "last"]


class Classification(Task):
    """One of several labels for a text or a pair of texts.

    Args:
        pooling: How the hidden states of an example become one vector; `auto` is the mean.
        dropout: Probability on that vector, in training.
    """

    name = "classification"
    monitor = "val_accuracy"

    def __init__(self, pooling: Pooling = "auto", dropout: float = 0.1) -> None:
        if not 0 <= dropout < 1:
            raise UserError(f"task.dropout is {dropout}: give a probability from 0 to below 1")
        self.pooling, self.dropout = pooling, dropout

    def config(self) -> dict[str, Any]:
        """Pooling and dropout."""
        return {"pooling": self.pooling, "dropout": self.dropout}

    def schema(self, examples: list[Example]) -> list[str]:
        """The labels that occur, sorted."""
        labels = sorted({e.label for e in examples if e.label is not None})
        if len(labels) < 2:
            raise UserError(
                f"classification needs two labels or more, the training file has {labels}"
            )
        return labels

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """Token ids of each example, cut to `max_length`, with its label's id."""
        ids = {label: i for i, label in enumerate(labels)}
        encoded = frame_example(examples, tokenizer, max_length)
        for example, item in zip(examples, encoded, strict=True):
            if example.label is None:
                continue
            if example.label not in ids:
                raise UserError(f"{example.place}: label '{example.label}' is not one of {labels}")
            item.targets["label"] = np.array(ids[example.label])
        return encoded

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> dict[str, Ids]:
        """Row, start and end of each example and its label; an empty slot has length 1 and
        IGNORE."""
        lengths = np.array([max(1, len(e.tokens)) for e in packed], np.int64)
        labels = [e.targets.get("label", np.array(IGNORE)) for e in packed]
        return {
            "row": rows,
            "start": starts,
            "end": starts + lengths,
            "label": np.array(labels, np.int64),
        }

    def uniform_loss(self, labels: list[str]) -> float:
        """One label of C: ln C."""
        return math.log(len(labels))

    def build_head(self, backbone: Backbone, labels: list[str]) -> TaskHead:
        """A linear layer on the pooled vector."""
        pooling = "mean" if self.pooling == "auto" else self.pooling
        return ClassificationHead(backbone.dim, len(labels), pooling, self.dropout)

    def metrics(self, labels: list[str]) -> MetricCollection:
        """Accuracy and macro-F1."""
        n = len(labels)
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(n, average="micro", ignore_index=IGNORE),
                "macro_f1": MulticlassF1Score(n, average="macro", ignore_index=IGNORE),
            }
        )

    def record(self, scores: Tensor, labels: list[str]) -> dict[str, Any]:
        """The most likely label and every label's probability."""
        probabilities = scores.float().softmax(-1).tolist()
        best = labels[max(range(len(labels)), key=probabilities.__getitem__)]
        return {
            "label": best,
            "probabilities": {
                label: round(p, 6) for label, p in zip(labels, probabilities, strict=True)
            },
        }


class ClassificationHead(TaskHead):
    """Pool each example's hidden states, then one linear layer."""

    def __init__(self, dim: int, classes: int, pooling: str, dropout: float) -> None:
        super().__init__()
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, classes)

    def forward(self, hidden: Tensor, batch: Batch) -> Output:
        """(B, T, dim) hidden states -> the `classification` term and (E, classes) scores."""
        pooled = self._pool(hidden, batch.targets)
        logits: Tensor = self.classifier(self.dropout(pooled)).float()
        labels = batch.targets["label"]
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        term = Term(total, (labels != IGNORE).sum(), nominal=1.0)
        return Output({"classification": term}, scores=logits)

    def _pool(self, hidden: Tensor, at: dict[str, Tensor]) -> Tensor:
        row, start, end = at["row"], at["start"], at["end"]
        if self.pooling == "first":
            return hidden[row, start]
        if self.pooling == "last":
            return hidden[row, end - 1]
        # Sums over stretches as differences of running sums, in float32.
        running = F.pad(hidden.float().cumsum(1), (0, 0, 1, 0))
        mean = (running[row, end] - running[row, start]) / (end - start)[:, None]
        return mean.to(hidden.dtype)
