"""A language model in each direction: every token from those before it, and from those after it."""

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
from ptft_lightning.terms import IGNORE, LossMean, Output, projected_cross_entropy, token_term

TERMS = ("forward", "backward")


class BidirectionalLM(Objective):
    """The bidirectional language model of ELMo (Peters et al. 2018).

    The loss of a document is

        -sum_t log p(x_t | x_<t; E, F, S) - sum_t log p(x_t | x_>t; E, B, S)

    with embedding E and softmax S shared by both directions, and a stack of layers for each, F and
    B, that does not see the other: the first half of a hidden state predicts the token after its
    own, the second half the one before it. Each direction is a likelihood of the text given the
    token it begins with; their sum is none. Perplexity and bits-per-byte are the forward one's, and
    compare with those of `CausalLM`. The loss is twice that of one direction, roughly.

    Where a row begins or ends within a document, the backward direction knows nothing beyond it,
    and does not predict the last token of the row before.

    Args:
        loss_mean: Whether every target weighs the same, or every row (see `token_term`).
    """

    name = "bidirectional"
    causal = False
    per_byte = True
    token_term = "forward"
    shows_samples = False  # it has a direction too many to continue a text, and no masks

    def __init__(self, loss_mean: LossMean = "target") -> None:
        self.loss_mean = loss_mean

    def config(self) -> dict[str, Any]:
        """How losses are averaged."""
        return {"loss_mean": self.loss_mean}

    def problems(self, shape: dict[str, Any]) -> list[str]:
        """All but two stacks of layers apart see what they predict."""
        if shape["kind"] == "lstm":
            return []
        return [
            f"objective 'bidirectional' needs two directions that do not see each other, and a "
            f"{shape['kind']} that is not causal sees what it would predict: give model.backbone "
            "class_path LSTMConfig, or take MaskedLM"
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
        """Targets `after` and `before` (B, T), of the same document; IGNORE where there is none."""
        same = (documents[:, 1:] == documents[:, :-1]) & (documents[:, :-1] > 0)
        shown, after = tokens[:, :-1], np.where(same, tokens[:, 1:], IGNORE)
        before = np.full_like(after, IGNORE)
        before[:, 1:] = np.where(same[:, :-1], shown[:, :-1], IGNORE)
        return shown, {"after": after, "before": before}

    def uniform_loss(self, vocab_size: int) -> float:
        """A token of the vocabulary in each direction: 2 ln V."""
        return 2 * math.log(vocab_size)

    def build_head(self, backbone: Backbone, tied: bool) -> PretrainHead:
        """One projection to the vocabulary for both directions."""
        return BidirectionalHead(backbone, tied, self.loss_mean)


class BidirectionalHead(PretrainHead):
    """Vocabulary logits of both halves at every position."""

    def __init__(self, backbone: Backbone, tied: bool, loss_mean: LossMean = "target") -> None:
        super().__init__()
        self.loss_mean = loss_mean
        self.projection = VocabularyProjection(backbone, tied, bias=True, dim=backbone.dim // 2)

    def forward(self, hidden: Tensor, batch: Batch, embedding: Tensor) -> Output:
        """(B, T, dim) hidden states -> the `forward` and the `backward` term over B*T targets."""
        projection = self.projection.matrices(embedding)
        output = Output({})
        halves = zip(TERMS, ("after", "before"), hidden.chunk(2, -1), strict=True)
        for name, target, half in halves:
            labels = batch.targets[target]
            states = half.flatten(0, 1)
            losses, right = projected_cross_entropy(states, *projection, labels.flatten())
            output.terms[name] = token_term(losses.view_as(labels), labels, self.loss_mean)
            output.sums[f"{name}_accuracy"] = right
        return output

    def logits(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """See `PretrainHead`; of the next token, by the forward half."""
        return F.linear(hidden.chunk(2, -1)[0], *self.projection.matrices(embedding))
