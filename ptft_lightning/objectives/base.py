"""What every objective promises; its two halves live in one file each."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.sample_order import Numbers
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.terms import Output


class Objective:
    """What phase one predicts: a numpy half run by loader workers and the head of the torch half.

    Plain values only, so that it travels to workers and into a bundle's config.
    """

    name: ClassVar[str]
    causal: ClassVar[bool]
    """Whether it needs a causal backbone."""
    per_byte: ClassVar[bool]
    """Whether the loss is a likelihood of the text, so that bits-per-byte means something."""

    whole_words: bool = False
    """Whether `make` needs to know where words start."""
    pairs: Literal["next", "order"] | None = None
    """Which pairs of sentences it learns from (layout `sentence_pairs`), if it does."""
    goes_on_from: ClassVar[tuple[str, ...]] = ()
    """Objectives whose head's tensors its own begins with, as far as both have them."""

    @property
    def token_term(self) -> str | None:
        """The term that predicts tokens, whose exponential is a perplexity; None: none does."""
        return self.name

    @property
    def shows_samples(self) -> bool:
        """Whether a text can be continued, or masks filled, to be looked at."""
        return self.token_term is not None

    def config(self) -> dict[str, Any]:
        """Plain values that rebuild the objective, for the bundle."""
        raise NotImplementedError

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer the objective cannot work with."""

    def slots(self, length: int) -> int:
        """At how many places of a row of `length` tokens are predicted, at most."""
        return length

    def problems(self, shape: dict[str, Any]) -> list[str]:
        """Why it cannot learn with a backbone of this shape, as in a bundle's config."""
        return []

    def text_length(self, length: int, tokenizer: Tokenizer) -> int:
        """How many tokens of text make a row of `length` places."""
        return length

    def make(
        self,
        tokens: Ids,
        documents: Ids,
        samples: Numbers,
        seed: int,
        tokenizer: Tokenizer,
        words: Ids | None = None,
    ) -> tuple[Ids, dict[str, Ids]]:
        """Rows with the following token, (B, T + 1) -> input tokens (B, T) and targets.

        `words` is (B, T + 1), 1 where a token begins a word; None without `whole_words`. Rows that
        are laid out anew bring `documents`, and rows of two parts `segments`, among the targets.
        """
        raise NotImplementedError

    def uniform_loss(self, vocab_size: int) -> float | None:
        """Nats per target of a uniform guess, near which training begins; None: unknown."""
        return None

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        """What is reported, from the means over targets of losses and metrics."""
        return values

    def build_head(self, backbone: Backbone, tied: bool) -> PretrainHead:
        """The torch half over a backbone; `tied` shares the backbone's embedding."""
        raise NotImplementedError


class PretrainHead(nn.Module):
    """Hidden states and a batch -> terms.

    `forward` gets the embedding weight because a tied head owns no projection of its own.
    """

    def reads(self, batch: Batch, backbone: Backbone) -> Batch:
        """What the backbone reads in place of the objective's batch, and `forward` gets with it."""
        return batch

    def forward(self, hidden: Tensor, batch: Batch, embedding: Tensor) -> Output:
        """(B, T, dim) hidden states -> terms."""
        raise NotImplementedError

    def logits(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """(..., dim) hidden states -> (..., vocabulary) logits, for generation and scores."""
        raise NotImplementedError


class VocabularyProjection(nn.Module):
    """The weight and bias that turn hidden states, or `dim` of their values, into vocabulary
    logits; perhaps tied."""

    def __init__(self, backbone: Backbone, tied: bool, bias: bool, dim: int | None = None) -> None:
        super().__init__()
        dim = dim or backbone.dim
        if tied and backbone.input_dim != dim:
            has = f"the embedding has {backbone.input_dim} values, the head reads {dim}"
            fix = "set it to false; a bundle's stays: take the objective that it was made with"
            raise UserError(f"model.backbone.tie_embeddings: {has}; {fix}")
        self.weight: nn.Parameter | None = None
        if not tied:
            self.weight = nn.Parameter(torch.empty(backbone.vocab_size, dim))
        self.bias = nn.Parameter(torch.empty(backbone.vocab_size)) if bias else None

    def matrices(self, embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight (vocabulary, dim) and bias."""
        return (embedding if self.weight is None else self.weight), self.bias


def perplexity(loss: float) -> float:
    """exp(loss), infinite rather than an error where that is too large."""
    return math.exp(loss) if loss < 700 else math.inf
