"""Text classification: one label for a sentence or a pair of sentences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.examples import Columns, Encoded, Example
from ptft_lightning.data.findings import NO_LABEL, BadExamples
from ptft_lightning.data.framing import frame_example
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import Arrays, Task, TaskHead, labels_in_order
from ptft_lightning.tasks.class_weights import ClassWeights, weigh_examples
from ptft_lightning.tasks.matthews import Matthews
from ptft_lightning.tasks.pooling import PooledHead, Pooling, spans_of
from ptft_lightning.terms import IGNORE, Output, Term

Transform = Literal["tanh", "gelu", "plain_gelu"]


class Classification(Task):
    """One of several labels for a text or a pair of texts.

    The training loss is the sum over examples of weight x cross-entropy, divided by the number
    of examples (not by the sum of weights, which would depend on how a step is split). Balanced
    weights average 1 over the training examples. Validation and test losses have neither weights
    nor smoothing.

    Args:
        pooling: How the hidden states of an example become one vector; `auto` is the mean,
            `attention` a mean weighted by a trained query.
        dropout: Probability on that vector, in training.
        class_weights: What an example of a class counts in the training loss: `balanced` (examples
            / (classes x examples of the class), as in scikit-learn), a mapping from labels (others
            count 1), or a list in the order of the labels.
        label_smoothing: Share of the target spread over all classes, in training.
        monitor: The validation metric that decides which bundle is best.
        transform: What the vector goes through before the last layer: a dense layer with tanh
            (BERT), with GELU and a norm (`gelu`: ModernBERT), or with GELU alone (`plain_gelu`:
            ELECTRA); default: nothing.
        bias: Whether the last layer has a bias; GPT-2 and Llama in Hugging Face's library have
            none.
    """

    name = "classification"
    shaping = ("pooling", "transform", "bias")

    def __init__(
        self,
        pooling: Pooling = "auto",
        dropout: float = 0.1,
        class_weights: ClassWeights | None = None,
        label_smoothing: float = 0.0,
        monitor: Literal["accuracy", "macro_f1", "mcc", "loss"] = "accuracy",
        transform: Transform | None = None,
        bias: bool = True,
    ) -> None:
        self.pooling, self.dropout = pooling, dropout
        self.class_weights, self.label_smoothing = class_weights, label_smoothing
        self.transform, self.bias = transform, bias
        self.watch(monitor)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"task.label_smoothing is {label_smoothing}: give 0 to less than 1")

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {
            "pooling": self.pooling,
            "dropout": self.dropout,
            "class_weights": self.class_weights,
            "label_smoothing": self.label_smoothing,
            "monitor": self.monitor.removeprefix("val_"),
            "transform": self.transform,
            "bias": self.bias,
        }

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Example]:
        """See `Task`; an empty field is no label."""
        kept = []
        for example in super().read(path, columns, labelled, bad):
            if example.label is None or example.label.strip():
                kept.append(example)
            else:
                bad.add(example.place, NO_LABEL)
        return kept

    def labels_of(self, example: Example) -> list[str]:
        """Its one label, if it has one."""
        if example.labels is not None:
            raise UserError(
                f"{example.place}: a list of labels {example.labels}, model.task 'Classification' "
                "takes one a text: choose MultiLabel"
            )
        return [] if example.label is None else [example.label]

    def inherited(self, name: str) -> str:
        """BERT's dense layer is its pooler, if it has one."""
        first = self.transform == "tanh" and self.pooling == "first"
        stem, _, kind = name.rpartition(".")
        return f"head.pooler.{kind}" if first and stem == "head.dense" else ""

    def schema(self, examples: list[Example]) -> list[str]:
        """The labels that occur, sorted; numbers by their value."""
        labels = labels_in_order({label for e in examples for label in self.labels_of(e)})
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
            for label in self.labels_of(example):
                item.targets["label"] = np.array(ids[label])
        return encoded

    def weigh(self, examples: list[Encoded], labels: list[str]) -> None:
        """Give training examples the weight of their class."""
        weigh_examples(self.class_weights, examples, labels)

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> Arrays:
        """Row, start, end and label of each example, IGNORE in an empty slot; its weight if
        classes have one."""
        labels = [e.targets.get("label", IGNORE) for e in packed]
        targets: Arrays = {**spans_of(packed, rows, starts), "label": np.array(labels, np.int64)}
        if self.class_weights is not None:
            weights = [e.targets.get("weight", 1.0) for e in packed]
            targets["weight"] = np.array(weights, np.float32)
        return targets

    def uniform_loss(self, labels: list[str]) -> float:
        """One label of C: ln C."""
        return math.log(len(labels))

    def build_head(self, backbone: Backbone, labels: list[str]) -> TaskHead:
        """A linear layer on the pooled vector."""
        head = ClassificationHead(
            backbone.dim, len(labels), self.pooling, self.dropout, self.label_smoothing, self.bias
        )
        if self.transform is not None:
            head.add_transform(backbone, self.transform)
        return head

    def metrics(self, labels: list[str]) -> MetricCollection:
        """Accuracy, macro-F1 and Matthews' correlation."""
        n = len(labels)
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(n, average="micro", ignore_index=IGNORE),
                "macro_f1": MulticlassF1Score(n, average="macro", ignore_index=IGNORE),
                "mcc": Matthews(n, ignore_index=IGNORE),
            }
        )

    def record(self, scores: Tensor, labels: list[str]) -> dict[str, Any]:
        """See `likeliest`."""
        return likeliest(scores, labels)


def likeliest(scores: Tensor, labels: list[str]) -> dict[str, Any]:
    """The most likely label by (classes,) scores, and every label's probability."""
    probabilities = scores.float().softmax(-1).tolist()
    best = labels[max(range(len(labels)), key=probabilities.__getitem__)]
    each = zip(labels, probabilities, strict=True)
    return {"label": best, "probabilities": {label: round(p, 6) for label, p in each}}


class ClassificationHead(PooledHead):
    """Cross-entropy over the classes."""

    def __init__(
        self,
        dim: int,
        classes: int,
        pooling: Pooling,
        dropout: float,
        smoothing: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(dim, classes, pooling, dropout, bias)
        self.smoothing = smoothing
        self.activation: Callable[[Tensor], Tensor] = F.gelu
        self.dense: nn.Module | None = None
        self.norm: nn.Module | None = None

    def add_transform(self, backbone: Backbone, transform: Transform) -> None:
        """A dense layer before the last one: with tanh, with GELU and a norm, or with GELU."""
        self.activation = torch.tanh if transform == "tanh" else F.gelu
        self.dense = nn.Linear(backbone.dim, backbone.dim, bias=backbone.bias)
        if transform == "gelu":
            self.norm = nn.LayerNorm(backbone.dim, eps=backbone.norm_eps, bias=backbone.bias)

    def transform(self, pooled: Tensor) -> Tensor:
        """See `PooledHead`."""
        if self.dense is None:
            return pooled
        out = self.activation(self.dense(pooled))
        return out if self.norm is None else cast(Tensor, self.norm(out))

    def forward(self, hidden: Tensor, batch: Batch) -> Output:
        """(B, T, dim) hidden states -> the `classification` term and (E, classes) scores."""
        logits, labels = self.project(hidden, batch.targets), batch.targets["label"]
        losses = F.cross_entropy(
            logits,
            labels,
            ignore_index=IGNORE,
            reduction="none",
            label_smoothing=self.smoothing if self.training else 0.0,
        )
        if "weight" in batch.targets:
            losses = losses * batch.targets["weight"]
        term = Term(losses.sum(), (labels != IGNORE).sum(), nominal=1.0)
        return Output({"classification": term}, scores=logits)
