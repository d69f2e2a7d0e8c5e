"""Replaced-token detection: a small generator fills masks, the backbone finds what it got wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.sample_order import Numbers, random_words
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.objectives.base import (
    Objective,
    PretrainHead,
    VocabularyProjection,
    perplexity,
)
from ptft_lightning.objectives.generator import Generator, generator_config, predict_and_draw
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.terms import IGNORE, LossMean, Output, token_term

GENERATOR, DETECTOR = "masked", "replaced"  # the terms
GENERATOR_PARTS = ("generator", "widen", "widen_norm", "projection")  # of the head
ALONE = "detector"  # the head without them, as published models have it


class ReplacedTokens(Objective):
    """Replaced-token detection (ELECTRA, Clark et al. 2020).

    A generator G, a small Transformer of its own, learns masked LM: with x the text, M the slots of
    `MaskedLM` (all shown as the mask token) and x' the text with them hidden, its loss is
    -sum_{t in M} log p_G(x_t | x'). At each slot a token is drawn from p_G; the backbone D reads
    the text with the drawn tokens, x~, and says of every token that is not padding whether it was
    replaced, r_t = [x~_t != x_t]: a drawn token that is the original is original. Its loss is
    -sum_t r_t log s_t + (1 - r_t) log(1 - s_t), s_t = sigmoid(D(x~)_t). The two are added, D's
    times `weight`. Drawing passes no gradient: what D learns reaches G through the embeddings
    alone, which they share.

    What is drawn is the inverse of p_G's cumulative sums at one uniform number a slot, which
    depends on (seed, sample number) alone.

    The bundle holds D as its backbone and G in the head (`head.generator.*`), so that a further run
    with this objective goes on with both; phase two takes D.

    Args:
        rate: Share of tokens that the generator predicts.
        weight: What the backbone's loss is multiplied with.
        generator_width: Share of the backbone's heads, and with them of its width, that the
            generator has; the paper found a quarter to a half best.
        generator_depth: Share of the backbone's blocks that the generator has; 1 in the paper.
        whole_words: See `MaskedLM`.
        loss_mean: Whether every target weighs the same, or every row (see `token_term`).
    """

    name = "replaced"
    causal = False
    per_byte = False
    goes_on_from: ClassVar[tuple[str, ...]] = (ALONE,)

    def __init__(
        self,
        rate: float = 0.15,
        weight: float = 50.0,
        generator_width: float = 0.25,
        generator_depth: float = 1.0,
        whole_words: bool = False,
        loss_mean: LossMean = "target",
    ) -> None:
        self.masked = MaskedLM(rate, whole_words, loss_mean)
        self.rate, self.whole_words, self.loss_mean = rate, whole_words, loss_mean
        if not 0 < weight < math.inf:
            raise UserError(f"objective.weight is {weight}: give more than 0")
        for name, share in (
            ("generator_width", generator_width),
            ("generator_depth", generator_depth),
        ):
            if not 0 < share <= 1:
                raise UserError(f"objective.{name} is {share}: give a share above 0, at most 1")
        self.weight, self.width, self.depth = weight, generator_width, generator_depth

    @property
    def token_term(self) -> str | None:
        """The backbone predicts no token; the generator's perplexity is in `summary`."""
        return None

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {
            "rate": self.rate,
            "weight": self.weight,
            "generator_width": self.width,
            "generator_depth": self.depth,
            "whole_words": self.whole_words,
            "loss_mean": self.loss_mean,
        }

    def slots(self, length: int) -> int:
        """The generator's."""
        return self.masked.slots(length)

    def check(self, tokenizer: Tokenizer) -> None:
        """See `MaskedLM`."""
        self.masked.check(tokenizer)

    def problems(self, shape: dict[str, Any]) -> list[str]:
        """The generator is made after the backbone's own shape."""
        if shape["kind"] == TransformerConfig.kind:
            return []
        return [
            f"objective '{self.name}' makes its generator after a Transformer, and the backbone is "
            f"a {shape['kind']}: take MaskedLM, or another model.backbone"
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
        """What the generator reads; targets are `slots`, `labels` and `drawn`, (B, K) each; the
        last of 53 random bits, as integers: a loader's floats may be rounded to the model's
        precision.
        """
        _, targets = self.masked.make(tokens, documents, samples, seed, tokenizer, words)
        slots, labels = targets["slots"], targets["labels"]
        shown, at = tokens[:, :-1].copy(), np.arange(len(tokens))[:, None]
        assert tokenizer.mask is not None, "check() comes before make()"
        shown[at, slots] = np.where(labels != IGNORE, tokenizer.mask, shown[at, slots])
        drawn = random_words(seed, "replaced", samples, slots.shape[1])
        return shown, targets | {"drawn": (drawn >> np.uint64(11)).astype(np.int64)}

    def uniform_loss(self, vocab_size: int) -> float:
        """One token of the vocabulary and one of two: ln V + weight ln 2."""
        return self.masked.uniform_loss(vocab_size) + self.weight * math.log(2)

    def summary(self, values: dict[str, float]) -> dict[str, float]:
        """Precision and recall of the tokens called replaced; perplexity of the generator.

        The means over tokens `replaced_called` and `replaced_found` (of those called, rightly) are
        what they are made of. An accuracy of 1 - `replaced_share` is that of calling none.
        """
        share, called = values["replaced_share"], values["replaced_called"]
        found = values.pop("replaced_found")
        rates = {
            "replaced_precision": found / called if called else 0.0,
            "replaced_recall": found / share if share else 0.0,
            "perplexity": perplexity(values["masked_loss"]),
        }
        return values | rates

    def build_head(self, backbone: Backbone, tied: bool) -> PretrainHead:
        """ELECTRA's two heads, and the generator."""
        return ReplacedHead(
            cast(Transformer, backbone), tied, self.loss_mean, self.weight, (self.width, self.depth)
        )


class ReplacedHead(PretrainHead):
    """The generator before the backbone, and after it one logit a token."""

    def __init__(
        self,
        backbone: Transformer,
        tied: bool,
        loss_mean: LossMean,
        weight: float,
        shares: tuple[float, float],
    ) -> None:
        super().__init__()
        self.loss_mean, self.weight = loss_mean, weight
        dim, eps, bias = backbone.dim, backbone.norm_eps, backbone.bias
        config = generator_config(backbone.config, *shares)
        self.generator = Generator(config, dim)
        # Back to the width of the embedding, which the projection is tied to.
        self.widen = nn.Linear(config.dim, dim, bias=bias)
        self.widen_norm = nn.LayerNorm(dim, eps=eps, bias=bias)
        self.projection = VocabularyProjection(backbone, tied, bias=True)
        self.dense = nn.Linear(dim, dim, bias=bias)
        self.classifier = nn.Linear(dim, 1)

    def reads(self, batch: Batch, backbone: Backbone) -> Batch:
        """The batch with drawn tokens in its slots.

        Its targets gain `losses` (B, K) and `right` of the generator, and `replaced` (B, T): 1
        where a token is another than it was, IGNORE at padding.
        """
        shared = cast(Transformer, backbone)
        positions = batch.positions
        if positions is None:
            positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None]
        embeds = shared.embed(batch.tokens, positions, batch.segments, None)
        hidden = self.generator(batch.tokens, batch.documents, positions, embeds=embeds)
        slots, labels = batch.targets["slots"], batch.targets["labels"]
        index = slots[..., None].expand(-1, -1, hidden.shape[-1])
        chosen = torch.gather(hidden, 1, index).flatten(0, 1)
        states = self.widen_norm(F.gelu(self.widen(chosen)))
        losses, right, drawn = predict_and_draw(
            states,
            *self.projection.matrices(shared.embedding.weight),
            labels.flatten(),
            batch.targets["drawn"].flatten(),
        )
        used, drawn = labels != IGNORE, drawn.view_as(labels)
        before = batch.tokens.gather(1, slots)
        tokens = batch.tokens.scatter(1, slots, torch.where(used, drawn, before))
        replaced = torch.zeros_like(tokens).scatter(1, slots, (used & (drawn != labels)).long())
        if batch.documents is not None:
            replaced = replaced.masked_fill(batch.documents == 0, IGNORE)
        more = {"losses": losses.view_as(labels), "right": right, DETECTOR: replaced}
        return _with(batch, tokens, more)

    def forward(self, hidden: Tensor, batch: Batch, embedding: Tensor) -> Output:
        """(B, T, dim) hidden states -> the `masked` term over B*K slots, the `replaced` term over
        B*T tokens."""
        targets, truth = batch.targets, batch.targets[DETECTOR]
        masked = token_term(targets["losses"], targets["labels"], self.loss_mean)
        logits = self.detect(hidden)
        real = truth != IGNORE
        losses = F.binary_cross_entropy_with_logits(
            logits, truth.clamp(min=0).float(), reduction="none"
        )
        replaced = token_term(losses * real, truth, self.loss_mean)
        replaced.weight = self.weight
        called, is_replaced = (logits > 0) & real, truth == 1
        sums = {
            f"{GENERATOR}_accuracy": targets["right"],
            f"{DETECTOR}_accuracy": ((called == is_replaced) & real).sum(),
            f"{DETECTOR}_share": is_replaced.sum(),
            f"{DETECTOR}_called": called.sum(),
            f"{DETECTOR}_found": (called & is_replaced).sum(),
        }
        return Output({GENERATOR: masked, DETECTOR: replaced}, sums)

    def detect(self, hidden: Tensor) -> Tensor:
        """(..., dim) hidden states -> (...) logits in float32: is this token another one?"""
        out: Tensor = self.classifier(F.gelu(self.dense(hidden)))[..., 0].float()
        return out


def build_detector(backbone: Transformer, tied: bool) -> ReplacedHead:
    """The head without its generator: `detect` is all that it does."""
    head = cast(ReplacedHead, ReplacedTokens().build_head(backbone, tied))
    for part in GENERATOR_PARTS:
        delattr(head, part)
    return head


def _with(batch: Batch, tokens: Tensor, targets: dict[str, Tensor]) -> Batch:
    return replace(batch, tokens=tokens, targets=batch.targets | targets)
