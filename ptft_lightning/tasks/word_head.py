"""One vector per word of a packed batch, a linear layer on it, and perhaps a CRF over them."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.data.batch import Batch
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import TaskHead
from ptft_lightning.tasks.crf import ChainCRF
from ptft_lightning.tasks.pooling import pool
from ptft_lightning.terms import IGNORE, Output, Term

WordPooling = Literal["auto", "first", "last", "mean"]


class WordHead(TaskHead):
    """Cross-entropy of each word's tag, or the likelihood of all tags of a window."""

    def __init__(
        self, dim: int, labels: int, pooling: WordPooling, dropout: float, crf: ChainCRF | None
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise UserError(f"task.dropout is {dropout}: give a probability from 0 to below 1")
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, labels)
        self.crf = crf

    def forward(self, hidden: Tensor, batch: Batch) -> Output:
        """(B, T, dim) hidden states -> the `tagging` term and (E, W) ids of the best labels."""
        at = batch.targets
        logits = self.classifier(self.dropout(self._pool(hidden, at))).float()
        labels, count = at["label"], (at["label"] != IGNORE).sum()
        if self.crf is None:
            flat = logits.flatten(0, 1), labels.flatten()
            total = F.cross_entropy(*flat, ignore_index=IGNORE, reduction="sum")
            best = logits.argmax(-1)
        else:
            # An example without labels has none at all.
            losses = self.crf.losses(logits, labels.clamp(min=0), at["real"], at["edges"])
            total = losses.where(labels[:, 0] != IGNORE, 0.0).sum()
            best = self.crf.best(logits, at["real"], at["edges"])
        return Output({"tagging": Term(total, count)}, scores=best)

    def _pool(self, hidden: Tensor, at: dict[str, Tensor]) -> Tensor:
        """(E, W, dim) states of words."""
        words = {"row": at["row"][:, None], "start": at["start"], "end": at["end"]}
        return pool(hidden, words, self.pooling)
