"""The torch half of matching: one vector a text, and the losses on them."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.data.batch import Batch
from ptft_lightning.tasks.base import TaskHead
from ptft_lightning.tasks.contrast import contrast
from ptft_lightning.tasks.pooling import Pooling, pool
from ptft_lightning.terms import IGNORE, Output, Term

Loss = Literal["contrastive", "cosine", "softmax"]


class MatchingHead(TaskHead):
    """Pooled vectors of each example's texts; only `softmax` has parameters."""

    def __init__(
        self,
        dim: int,
        classes: int,
        loss: Loss,
        pooling: Pooling,
        span: tuple[float, float],
        temperature: float,
        symmetric: bool,
        gather: bool,
    ) -> None:
        super().__init__()
        self.loss, self.pooling, self.span = loss, pooling, span
        self.temperature, self.symmetric, self.gather = temperature, symmetric, gather
        self.classifier = nn.Linear(3 * dim, classes) if loss == "softmax" else None

    def forward(self, hidden: Tensor, batch: Batch) -> Output:
        """(B, T, dim) hidden states -> the `matching` term and (N, 2 dim + classes) scores: the
        first two texts' vectors of length 1, then logits."""
        vectors = pool(hidden, batch.targets, self.pooling).float()
        unit = F.normalize(vectors, dim=-1)
        scores = unit[:, :2].flatten(1)
        if self.classifier is None:
            term = self._contrastive(unit, batch) if self.loss == "contrastive" else None
            return Output({"matching": term or self._cosine(unit, batch)}, scores=scores)
        u, v = vectors[:, 0], vectors[:, 1]
        both = torch.cat([u, v, (u - v).abs()], -1).to(hidden.dtype)
        logits: Tensor = self.classifier(both).float()
        labels = batch.targets["label"]
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        term = Term(total, (labels != IGNORE).sum(), nominal=1.0)
        return Output({"matching": term}, scores=torch.cat([scores, logits], 1))

    def _contrastive(self, unit: Tensor, batch: Batch) -> Term:
        at = batch.targets
        how = (self.temperature, self.symmetric, self.gather)
        return contrast(unit[:, 0], unit[:, 1:], at["keys"], at["match"], *how)

    def _cosine(self, unit: Tensor, batch: Batch) -> Term:
        """Squared error of the cosine, the label brought to 0..1."""
        low, high = self.span
        score = batch.targets["score"]
        real = ~score.isnan()
        wanted = (score.nan_to_num() - low) / (high - low)
        losses = ((unit[:, 0] * unit[:, 1]).sum(-1) - wanted).square().where(real, 0.0)
        return Term(losses.sum(), real.sum(), nominal=1.0)
