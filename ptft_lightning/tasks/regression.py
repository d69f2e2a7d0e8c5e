"""Regression: a number for a sentence or a pair of sentences."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional.regression import spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.examples import Columns, Encoded, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.framing import frame_example
from ptft_lightning.data.module import say
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import Arrays, Task, TaskHead
from ptft_lightning.tasks.pooling import PooledHead, Pooling, spans_of
from ptft_lightning.terms import Output, Term


class Regression(Task):
    """A number for a text or a pair of texts.

    The head predicts (number - center) / scale, and the loss is its mean squared error: with
    center and scale near the training targets' mean and standard deviation, which are printed,
    the usual learning rates fit.

    Args:
        pooling: How the hidden states of an example become one vector; `auto` is the mean,
            `attention` a mean weighted by a trained query.
        dropout: Probability on that vector, in training.
        center: What the head's 0 means.
        scale: What the head's 1 is beyond the center.
        monitor: The validation metric that decides which bundle is best.
    """

    name = "regression"
    shaping = ("pooling", "center", "scale")

    def __init__(
        self,
        pooling: Pooling = "auto",
        dropout: float = 0.1,
        center: float = 0.0,
        scale: float = 1.0,
        monitor: Literal["spearman", "pearson", "mse", "loss"] = "spearman",
    ) -> None:
        self.pooling, self.dropout = pooling, dropout
        self.center, self.scale = center, scale
        self.watch(monitor)
        if scale <= 0:
            raise UserError(f"task.scale is {scale}: give a positive number")

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {
            "pooling": self.pooling,
            "dropout": self.dropout,
            "center": self.center,
            "scale": self.scale,
            "monitor": self.monitor.removeprefix("val_"),
        }

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Example]:
        """See `Task`; what is no number cannot be used."""
        kept = []
        for example in super().read(path, columns, labelled, bad):
            try:
                _number(example)
            except UserError as error:
                bad.add(example.place, str(error).removeprefix(f"{example.place}: "))
            else:
                kept.append(example)
        return kept

    def schema(self, examples: list[Example]) -> list[str]:
        """No labels; the targets' spread is told, for the choice of center and scale."""
        values = np.array([_number(e) for e in examples])
        say(
            f"targets: {len(values)} from {values.min():.4g} to {values.max():.4g}, mean "
            f"{values.mean():.4g}, standard deviation {values.std():.4g}"
        )
        return []

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """Token ids of each example, cut to `max_length`, with its number, NaN for none."""
        encoded = frame_example(examples, tokenizer, max_length)
        for example, item in zip(examples, encoded, strict=True):
            item.targets["label"] = np.array(_number(example), np.float32)
        return encoded

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> Arrays:
        """Row, start and end of each example and its number, NaN in an empty slot."""
        numbers = [e.targets.get("label", math.nan) for e in packed]
        return {**spans_of(packed, rows, starts), "label": np.array(numbers, np.float32)}

    def build_head(self, backbone: Backbone, labels: list[str]) -> TaskHead:
        """A linear layer on the pooled vector."""
        return RegressionHead(backbone.dim, self.pooling, self.dropout, self.center, self.scale)

    def metrics(self, labels: list[str]) -> MetricCollection:
        """Pearson's and Spearman's correlation and the mean squared error."""
        return MetricCollection([Agreement()])

    def record(self, scores: Tensor, labels: list[str]) -> dict[str, Any]:
        """The number."""
        return {"value": round(float(scores[0]), 6)}


def _number(example: Example) -> float:
    """The label as a number, NaN where there is none.

    Raises:
        UserError: it is something else.
    """
    given = example.label if example.labels is None else str(example.labels)
    if given is None:
        return math.nan
    try:
        value = float(given)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise UserError(f"{example.place}: label '{given}' is not a number")
    return value


class Agreement(Metric):
    """How predicted numbers go with true ones, over all of them at once, in float64 on the CPU."""

    full_state_update = False
    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """(E, 1) scores and (E,) targets; those of NaN are left out."""
        real = ~targets.isnan()
        # Empty ones, too: every rank must have something to gather.
        self.scores.append(scores[real, 0])
        self.targets.append(targets[real])

    def compute(self) -> dict[str, Tensor]:
        """Correlations are NaN where the scores or the targets are all the same."""
        x, y = (dim_zero_cat(s).cpu().double() for s in (self.scores, self.targets))
        constant = bool((x == x[:1]).all() or (y == y[:1]).all())
        undefined = torch.tensor(math.nan)
        return {
            "pearson": undefined if constant else torch.corrcoef(torch.stack([x, y]))[0, 1],
            "spearman": undefined if constant else spearman_corrcoef(x, y),
            "mse": F.mse_loss(x, y),
        }


class RegressionHead(PooledHead):
    """Squared error in units of `scale`."""

    def __init__(
        self, dim: int, pooling: Pooling, dropout: float, center: float, scale: float
    ) -> None:
        super().__init__(dim, 1, pooling, dropout)
        self.center, self.scale = center, scale

    def forward(self, hidden: Tensor, batch: Batch) -> Output:
        """(B, T, dim) hidden states -> the `regression` term and (E, 1) scores."""
        out, targets = self.project(hidden, batch.targets), batch.targets["label"]
        real = ~targets.isnan()
        wanted = (targets.nan_to_num() - self.center) / self.scale
        losses = (out[:, 0] - wanted).square().where(real, 0.0)
        term = Term(losses.sum(), real.sum(), nominal=1.0)
        return Output({"regression": term}, scores=out * self.scale + self.center)
