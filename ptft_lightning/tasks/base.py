"""What every task promises; its two halves live in one file each."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torchmetrics import MetricCollection

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.examples import Encoded, Example
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.terms import Output


class Task:
    """What phase two predicts. Plain values only, so that it travels into a bundle's config."""

    name: ClassVar[str]
    monitor: ClassVar[str]
    """The validation metric that decides which bundle is best; higher is better."""

    def config(self) -> dict[str, Any]:
        """Plain values that rebuild the task, for the bundle."""
        raise NotImplementedError

    def schema(self, examples: list[Example]) -> list[str]:
        """The label names found in training examples, in the order of their ids."""
        raise NotImplementedError

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """Examples -> token ids and targets."""
        raise NotImplementedError

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> dict[str, Ids]:
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
