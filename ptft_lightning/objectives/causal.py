"""Causal language modelling: each token from those before it in its document."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.sample_order import Numbers
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.objectives.base import Objective, PretrainHead, VocabularyProjection
from ptft_lightning.terms import IGNORE, LossMean, Output, projected_cross_entropy, token_term


class CausalLM(Objective):
    """Next-token prediction (Radford et al. 2019): the chain rule, p(x) = prod_t p(x_t | x_<t).

    The loss of a document, -sum_t log p(x_t | x_<t), is its negative log-likelihood given its
    first token, which has no context and is not predicted. Where a row begins within a document
    the context is that row's alone, so that the loss is an upper bound.

    Args:
        loss_mean: Whether every target weighs the same, or every row (see `token_term`).
    """

    name = "causal"
    causal = True
    per_byte = True

    def __init__(self, loss_mean: LossMean = "target") -> None:
        self.loss_mean = loss_mean

    def config(self) -> dict[str, Any]:
        """How losses are averaged."""
        return {"loss_mean": self.loss_mean}

    def problems(self, shape: dict[str, Any]) -> list[str]:
        """A prefix is not learnt here."""
        if not shape["config"].get("prefix_lm"):
            return []
        return [
            f"objective '{self.name}' has no prefix to read in both directions: set "
            "model.backbone.prefix_lm false, or take SpanCorruption"
        ]

    def make(
        self,
        tokens: Ids,
        documents: Ids,
        samples: Numbers,
        seed: int,
        tokenizer: Tokenizer,
        words: Ids | None = None,
    ) -> tuple[Ids, dict[str, Ids]]:
        """The next token of the same document is the target, IGNORE where there is none."""
        labels = tokens[:, 1:].copy()
        labels[documents[:, 1:] != documents[:, :-1]] = IGNORE
        labels[documents[:, :-1] == 0] = IGNORE
        return tokens[:, :-1], {"labels": labels}

    def uniform_loss(self, vocab_size: int) -> float:
        """One token of the vocabulary: ln V."""
        return math.log(vocab_size)

    def build_head(self, backbone: Backbone, tied: bool) -> PretrainHead:
        """A projection to the vocabulary, without bias."""
        return CausalHead(backbone, tied, self.loss_mean)


class CausalHead(PretrainHead):
    """Vocabulary logits at every position."""

    def __init__(self, backbone: Backbone, tied: bool, loss_mean: LossMean = "target") -> None:
        super().__init__()
        self.loss_mean = loss_mean
        self.projection = VocabularyProjection(backbone, tied, bias=False)

    def forward(self, hidden: Tensor, batch: Batch, embedding: Tensor) -> Output:
        """(B, T, dim) hidden states -> the `causal` term over B*T targets."""
        labels = batch.targets["labels"]
        projection = self.projection.matrices(embedding)
        losses, right = projected_cross_entropy(hidden.flatten(0, 1), *projection, labels.flatten())
        term = token_term(losses.view_as(labels), labels, self.loss_mean)
        return Output({"causal": term}, {"accuracy": right})

    def logits(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """See `PretrainHead`."""
        return F.linear(hidden, *self.projection.matrices(embedding))
