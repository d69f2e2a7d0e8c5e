"""Pairs of sentences: does B follow A, or were they swapped? Alone, or beside masked LM.

Two different things. *Next-sentence prediction* (Devlin et al. 2019): in half of the pairs B comes
from another document, so that much of it can be told from the topic. *Sentence-order prediction*
(Lan et al. 2020): both halves are always neighbours, and in half of the pairs they are swapped, so
that only the order tells.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.sample_order import Numbers
from ptft_lightning.data.sentence_starts import check_frame
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.objectives.base import Objective, PretrainHead
from ptft_lightning.objectives.masked import MaskedHead, MaskedLM
from ptft_lightning.terms import IGNORE, LossMean, Output, token_term

TERM = "pair"


class _SentencePairs(Objective):
    """What both share: masked LM beside it, targets, head."""

    causal = False
    per_byte = False
    goes_on_from: ClassVar[tuple[str, ...]] = ("masked", "next_sentence", "sentence_order")

    def __init__(
        self,
        rate: float | None = 0.15,
        whole_words: bool = False,
        loss_mean: LossMean = "target",
    ) -> None:
        self.rate, self.whole_words, self.loss_mean = rate or None, whole_words, loss_mean
        self.masked = MaskedLM(rate, whole_words, loss_mean) if rate else None
        self.whole_words = whole_words and self.masked is not None

    @property
    def token_term(self) -> str | None:
        """See `Objective`."""
        return None if self.masked is None else self.masked.name

    def config(self) -> dict[str, Any]:
        """Those of `MaskedLM`."""
        return {
            "rate": self.rate,
            "whole_words": self.whole_words,
            "loss_mean": self.loss_mean,
        }

    def slots(self, length: int) -> int:
        """Those of masked LM."""
        return 0 if self.masked is None else self.masked.slots(length)

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer without a mask token, or one that cannot frame pairs."""
        check_frame(tokenizer)
        if self.masked is not None:
            self.masked.check(tokenizer)

    def make(
        self,
        tokens: Ids,
        documents: Ids,
        samples: Numbers,
        seed: int,
        tokenizer: Tokenizer,
        words: Ids | None = None,
    ) -> tuple[Ids, dict[str, Ids]]:
        """See `MaskedLM`; the tokens as they are without it."""
        if self.masked is None:
            return tokens[:, :-1], {}
        return self.masked.make(tokens, documents, samples, seed, tokenizer, words)

    def judge(self, labels: Ids, places: int) -> dict[str, Ids]:
        """(B, T) labels of `PairArrays` -> `first` (B, P), the first token of each pair, and `pair`
        (B, P): 0 where B follows A, 1 where it does not, IGNORE in places without a pair."""
        first = np.argsort(labels == 0, axis=1, kind="stable")[:, :places]
        found = np.take_along_axis(labels, first, 1)
        return {"first": first, "pair": np.where(found > 0, found - 1, IGNORE)}

    def uniform_loss(self, vocab_size: int) -> float:
        """One of two, and one token of the vocabulary: ln 2 + ln V."""
        tokens = 0.0 if self.masked is None else self.masked.uniform_loss(vocab_size)
        return math.log(2) + tokens

    def build_head(self, backbone: Backbone, tied: bool) -> PretrainHead:
        """BERT's pooler (first token, dense, tanh) and a linear layer; BERT's masked LM head."""
        if self.masked is None:
            return PairHead(backbone)
        return MaskedPairHead(backbone, tied, self.loss_mean)


class NextSentence(_SentencePairs):
    """Next-sentence prediction (Devlin et al. 2019), beside masked LM or alone.

    With s_k the two logits at the first token of pair k, the loss of a row of n pairs is
    -(1/n) sum_k log softmax(s_k)[y_k], y_k = 0 where B follows A and 1 where B comes from another
    document; every row weighs the same. With a rate that of `MaskedLM` is added.

    Args:
        rate: Share of tokens to predict as `MaskedLM` does; null: pairs alone.
        whole_words: See `MaskedLM`.
        loss_mean: Whether every masked target weighs the same, or every row.
    """

    name = "next_sentence"
    pairs: Literal["next", "order"] | None = "next"


class SentenceOrder(_SentencePairs):
    """Sentence-order prediction (Lan et al. 2020), beside masked LM or alone.

    The loss is that of `NextSentence` with y_k = 1 where A and B, which are neighbours always, were
    swapped.

    Args:
        rate: Share of tokens to predict as `MaskedLM` does; null: pairs alone.
        whole_words: See `MaskedLM`.
        loss_mean: Whether every masked target weighs the same, or every row.
    """

    name = "sentence_order"
    pairs: Literal["next", "order"] | None = "order"


class _Judge(nn.Module):
    """The part that judges pairs: two classes from the first token of each."""

    pooler: nn.Linear
    classifier: nn.Linear

    def add_judge(self, backbone: Backbone) -> None:
        self.pooler = nn.Linear(backbone.dim, backbone.dim, bias=backbone.bias)
        self.classifier = nn.Linear(backbone.dim, 2)

    def pair_logits(self, first: Tensor) -> Tensor:
        """(..., dim) hidden states of first tokens -> (..., 2) logits in float32."""
        out: Tensor = self.classifier(torch.tanh(self.pooler(first))).float()
        return out

    def judge(self, hidden: Tensor, batch: Batch) -> Output:
        """(B, T, dim) hidden states -> the `pair` term over B*P places."""
        first, labels = batch.targets["first"], batch.targets["pair"]
        states = torch.gather(hidden, 1, first[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = self.pair_logits(states)
        losses = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
        )
        term = token_term(losses.view_as(labels), labels, "example")
        right = ((logits.argmax(-1) == labels) & (labels != IGNORE)).sum()
        return Output({TERM: term}, {f"{TERM}_accuracy": right})


class PairHead(_Judge, PretrainHead):
    """Pairs alone."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.add_judge(backbone)

    def forward(self, hidden: Tensor, batch: Batch, embedding: Tensor) -> Output:
        """See `_Judge.judge`."""
        return self.judge(hidden, batch)


class MaskedPairHead(_Judge, MaskedHead):
    """Pairs beside masked LM; the tensors of each keep the names they have alone."""

    def __init__(self, backbone: Backbone, tied: bool, loss_mean: LossMean) -> None:
        super().__init__(backbone, tied, loss_mean)
        self.add_judge(backbone)

    def forward(self, hidden: Tensor, batch: Batch, embedding: Tensor) -> Output:
        """(B, T, dim) hidden states -> the `masked` and the `pair` term."""
        masked = MaskedHead.forward(self, hidden, batch, embedding)
        pairs = self.judge(hidden, batch)
        return Output(masked.terms | pairs.terms, masked.sums | pairs.sums)
