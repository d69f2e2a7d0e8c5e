"""Causal language modelling: each token from those before it in its document."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.sample_order import Numbers
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.objectives.base import Objective, PretrainHead, VocabularyProjection
from ptft_lightning.terms import IGNORE, Output, Term, projected_cross_entropy


class CausalLM(Objective):
    """Next-token prediction (Radford et al. 2019). The first token of a document has no context
    and is not predicted."""

    name = "causal"
    causal = True
    per_byte = True

    def config(self) -> dict[str, Any]:
        """No settings."""
        return {}

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
        same = (documents[:, 1:] == documents[:, :-1]) & (documents[:, :-1] > 0)
        return tokens[:, :-1], {"labels": np.where(same, tokens[:, 1:], IGNORE)}

    def uniform_loss(self, vocab_size: int) -> float:
        """One token of the vocabulary: ln V."""
        return math.log(vocab_size)

    def build_head(self, backbone: Backbone, tied: bool) -> PretrainHead:
        """A projection to the vocabulary, without bias."""
        return CausalHead(backbone, tied)


class CausalHead(PretrainHead):
    """Vocabulary logits at every position."""

    def __init__(self, backbone: Backbone, tied: bool) -> None:
        super().__init__()
        self.projection = VocabularyProjection(backbone, tied, bias=False)

    def forward(self, hidden: Tensor, batch: Batch, embedding: Tensor) -> Output:
        """(B, T, dim) hidden states -> the `causal` term over B*T targets."""
        labels = batch.targets["labels"].flatten()
        weight, bias = self.projection.matrices(embedding)
        total, right = projected_cross_entropy(hidden.flatten(0, 1), weight, bias, labels)
        count = (labels != IGNORE).sum()
        term = Term(total, count, nominal=float(hidden.shape[1]))
        return Output({"causal": term}, {"accuracy": right})

    def logits(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """See `PretrainHead`."""
        return F.linear(hidden, *self.projection.matrices(embedding))
