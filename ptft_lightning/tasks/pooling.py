"""One vector per example: its place in a packed batch, how it is pooled, a linear layer on it."""

from __future__ import annotations

import math
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.data.examples import Encoded
from ptft_lightning.data.packing import Ids
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import TaskHead

Untrained = Literal["auto", "mean", "first", "last"]
Pooling = Literal["auto", "mean", "first", "last", "attention"]


def spans_of(packed: list[Encoded], rows: Ids, starts: Ids) -> dict[str, Ids]:
    """Row, start and end of each example, (E,) each; an empty slot has length 1."""
    lengths = np.array([max(1, len(e.tokens)) for e in packed], np.int64)
    return {"row": rows, "start": starts, "end": starts + lengths}


def pool(hidden: Tensor, at: dict[str, Tensor], pooling: Untrained) -> Tensor:
    """(B, T, dim) hidden states -> (..., dim), one vector for each row, start and end in `at`."""
    row, start, end = at["row"], at["start"], at["end"]
    if pooling == "first":
        return hidden[row, start]
    if pooling == "last":
        return hidden[row, end - 1]
    # Sums over stretches as differences of running sums, in float32.
    running = F.pad(hidden.float().cumsum(1), (0, 0, 1, 0))
    mean = (running[row, end] - running[row, start]) / (end - start)[..., None]
    return mean.to(hidden.dtype)


class PooledHead(TaskHead):
    """Pool each example's hidden states, then one linear layer; a task adds its loss."""

    def __init__(
        self, dim: int, outputs: int, pooling: Pooling, dropout: float, bias: bool = True
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise UserError(f"task.dropout is {dropout}: give a probability from 0 to below 1")
        self.pooling: Pooling = "mean" if pooling == "auto" else pooling
        self.query = nn.Linear(dim, 1, bias=False) if pooling == "attention" else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, outputs, bias=bias)

    def project(self, hidden: Tensor, at: dict[str, Tensor]) -> Tensor:
        """(B, T, dim) hidden states and each example's row, start and end -> (E, outputs) in
        float32."""
        pooled = self.transform(self._pool(hidden, at))
        out: Tensor = self.classifier(self.dropout(pooled)).float()
        return out

    def transform(self, pooled: Tensor) -> Tensor:
        """What the pooled vectors go through before the last layer."""
        return pooled

    def _pool(self, hidden: Tensor, at: dict[str, Tensor]) -> Tensor:
        if self.query is not None:
            return _attend(self.query(hidden), hidden, at["row"], at["start"], at["end"])
        return pool(hidden, at, cast(Untrained, self.pooling))


def _attend(scores: Tensor, hidden: Tensor, row: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """(E, dim) means of each example's hidden states, weighted by the softmax of its tokens'
    (B, T, 1) scores (Lin et al. 2017, with one query)."""
    length = hidden.shape[1]
    place = torch.arange(hidden.shape[0] * length, device=hidden.device)
    first, last = row * length + start, row * length + end
    inside = (place >= first[:, None]) & (place < last[:, None])
    weights = scores.float().flatten().masked_fill(~inside, -math.inf).softmax(-1)
    return weights.to(hidden.dtype) @ hidden.flatten(0, 1)
