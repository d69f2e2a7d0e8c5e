"""Masked language modelling: hidden tokens from both sides."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.sample_order import Numbers, Words, random_words
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.objectives.base import Objective, PretrainHead, VocabularyProjection
from ptft_lightning.terms import IGNORE, LossMean, Output, projected_cross_entropy, token_term

MASKED, RANDOM = 0.8, 0.1  # the rest stays as it is (Devlin et al. 2019)
LAST = np.uint64(2**64 - 1)


class MaskedLM(Objective):
    """Masked language modelling with a fixed number of targets a row.

    A row of T tokens has K = round(rate * T) slots, of which max(1, round(rate * eligible)) are
    used: shapes never change, and the vocabulary projection runs on the slots alone. Which tokens
    are hidden depends on (seed, sample number) and nothing else.

    The loss of a row x with hidden set M is -sum_{t in M} log p(x_t | x with M hidden), whose
    mean over random M is minimised (Devlin et al. 2019). That is no likelihood of the text. A
    model so trained can score a text by its pseudo-log-likelihood, sum_t log p(x_t | x without
    x_t), one token hidden at a time (Wang & Cho 2019; Salazar et al. 2020): the loss here hides
    more of the context, and its conditionals need not belong to any one distribution p(x).

    Args:
        rate: Share of tokens to predict; BERT used 0.15, ModernBERT 0.3.
        whole_words: Hide all tokens of a word or none; the token store must have word starts. A
            word that is longer than the places left is passed over.
        loss_mean: Whether every target weighs the same, or every row (see `token_term`).
    """

    name = "masked"
    causal = False
    per_byte = False
    goes_on_from: ClassVar[tuple[str, ...]] = ("next_sentence", "sentence_order")

    def __init__(
        self, rate: float = 0.15, whole_words: bool = False, loss_mean: LossMean = "target"
    ) -> None:
        if not 0 < rate < 1:
            raise UserError(f"objective.rate is {rate}: give a share between 0 and 1")
        self.rate, self.whole_words, self.loss_mean = rate, whole_words, loss_mean

    def config(self) -> dict[str, Any]:
        """The share of tokens, whether words stay whole, how losses are averaged."""
        return {
            "rate": self.rate,
            "whole_words": self.whole_words,
            "loss_mean": self.loss_mean,
        }

    def slots(self, length: int) -> int:
        """K; see the class."""
        return max(1, round(self.rate * length))

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer without a mask token."""
        if tokenizer.mask is None:
            raise UserError(
                "masked language modelling needs a mask token, and the tokenizer has none of "
                "[MASK], <mask>, <|mask|>: train one with `ptft_lightning tokenizer`"
            )

    def make(
        self,
        tokens: Ids,
        documents: Ids,
        samples: Numbers,
        seed: int,
        tokenizer: Tokenizer,
        words: Ids | None = None,
    ) -> tuple[Ids, dict[str, Ids]]:
        """Hide tokens; targets are `slots` (B, K) positions and `labels` (B, K)."""
        assert tokenizer.mask is not None, "check() comes before make()"
        tokens = tokens[:, :-1].copy()
        rows, length = tokens.shape
        slots_per_row = self.slots(length)
        eligible = (documents[:, :-1] > 0) & ~np.isin(tokens, tokenizer.specials)
        drawn = random_words(seed, "masked", samples, length + 2 * slots_per_row)

        available = eligible.sum(1)
        wanted = np.maximum(1, np.rint(self.rate * available)).astype(np.int64)
        wanted = np.minimum(np.minimum(wanted, available), slots_per_row)
        order = np.where(eligible, drawn[:, :length] >> np.uint64(1), LAST)
        if words is not None:
            order = whole_word_order(order, words[:, :-1], documents[:, :-1], wanted)
            wanted = (order != LAST).sum(1)
        slots = np.argsort(order, axis=1, kind="stable")[:, :slots_per_row]
        used = np.arange(slots_per_row) < wanted[:, None]

        at = np.arange(rows)[:, None]
        labels = np.where(used, tokens[at, slots], IGNORE)
        fate = (drawn[:, length : length + slots_per_row] >> np.uint64(11)) / 2**53
        ordinary = tokenizer.ordinary
        other = ordinary[drawn[:, length + slots_per_row :] % np.uint64(len(ordinary))]
        shown = np.where(fate < MASKED + RANDOM, other, tokens[at, slots])
        shown = np.where(fate < MASKED, tokenizer.mask, shown)
        tokens[at, slots] = np.where(used, shown, tokens[at, slots])
        return tokens, {"slots": slots, "labels": labels}

    def uniform_loss(self, vocab_size: int) -> float:
        """One token of the vocabulary: ln V."""
        return math.log(vocab_size)

    def build_head(self, backbone: Backbone, tied: bool) -> PretrainHead:
        """BERT's head: dense, GELU, LayerNorm, projection with bias."""
        return MaskedHead(backbone, tied, self.loss_mean)


def whole_word_order(order: Words, starts: Ids, documents: Ids, wanted: Numbers) -> Words:
    """Words taken in random order, each if it fits into what is left of `wanted` (B,) tokens.

    `order` (B, T) is random where a token may be hidden and LAST elsewhere; a word has the order of
    its first token. A word ends where the next starts, a document or the row ends, or a token that
    may not be hidden stands. Returns `order` by word, LAST where a token is not taken.
    """
    rows, length = order.shape
    may = order != LAST
    begins = may & (starts > 0)
    begins[:, 0] |= may[:, 0]
    begins[:, 1:] |= may[:, 1:] & (~may[:, :-1] | (documents[:, 1:] != documents[:, :-1]))
    at = np.arange(rows)[:, None]
    word = np.maximum(begins.cumsum(1) - 1, 0)  # number of each token's word in its row
    sizes = np.zeros((rows, length), np.int64)
    np.add.at(sizes, (at, word), may)
    keys = np.full((rows, length), LAST)
    keys[np.nonzero(begins)[0], word[begins]] = order[begins]

    turn = np.argsort(keys, axis=1, kind="stable")
    size = np.take_along_axis(sizes, turn, 1)
    taken = np.zeros((rows, length), np.bool_)
    left = wanted.copy()
    # One after another, in few rounds: what is too large now will be so later, and all before the
    # first that does not fit are taken.
    while True:
        waiting = ~taken & (size > 0) & (size <= left[:, None])
        fitting = waiting & (np.where(waiting, size, 0).cumsum(1) <= left[:, None])
        if not fitting.any():
            break
        taken |= fitting
        left -= np.where(fitting, size, 0).sum(1)
    chosen = np.zeros((rows, length), np.bool_)
    np.put_along_axis(chosen, turn, taken, 1)
    return np.where(may & chosen[at, word], keys[at, word], LAST)


class MaskedHead(PretrainHead):
    """Vocabulary logits at the slots alone."""

    def __init__(self, backbone: Backbone, tied: bool, loss_mean: LossMean = "target") -> None:
        super().__init__()
        self.loss_mean = loss_mean
        self.dense = nn.Linear(backbone.dim, backbone.dim, bias=backbone.bias)
        self.norm = nn.LayerNorm(backbone.dim, eps=backbone.norm_eps, bias=backbone.bias)
        self.projection = VocabularyProjection(backbone, tied, bias=True)

    def forward(self, hidden: Tensor, batch: Batch, embedding: Tensor) -> Output:
        """(B, T, dim) hidden states -> the `masked` term over B*K slots."""
        slots, labels = batch.targets["slots"], batch.targets["labels"]
        index = slots[..., None].expand(-1, -1, hidden.shape[-1])
        chosen = self._transform(torch.gather(hidden, 1, index).flatten(0, 1))
        projection = self.projection.matrices(embedding)
        losses, right = projected_cross_entropy(chosen, *projection, labels.flatten())
        term = token_term(losses.view_as(labels), labels, self.loss_mean)
        return Output({"masked": term}, {"accuracy": right})

    def logits(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """See `PretrainHead`."""
        return F.linear(self._transform(hidden), *self.projection.matrices(embedding))

    def _transform(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.norm(F.gelu(self.dense(hidden)))
        return out
