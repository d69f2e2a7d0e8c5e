"""Span corruption: spans of the text are cut out of a prefix and written behind it, one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.packing import Ids, Index
from ptft_lightning.data.sample_order import Numbers, Words, random_words
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.tokenizer_training import SENTINEL
from ptft_lightning.errors import UserError
from ptft_lightning.objectives.base import Objective, PretrainHead
from ptft_lightning.objectives.causal import CausalHead
from ptft_lightning.terms import IGNORE, LossMean, Output, projected_cross_entropy, token_term

TERM = "span_corruption"


class SpanCorruption(Objective):
    """Span corruption (Raffel et al. 2020) by a decoder alone (Wang et al. 2022; UL2, Tay et al.
    2023).

    Of each document spans are chosen, every set of them as likely as any other of its size:

        text    [CLS] thank you for inviting me to your party last week [SEP]
        row     [CLS] thank you <0> me to your <1> week | <0> for inviting <1> party last [SEP]

    What stands before the bar is the prefix (segment 1). The loss is that of the part behind it
    (segment 0), -sum_t log p(x_t | x_<t) over its tokens, sentinels included; what ends the
    document ends the target, where the row holds it. With `backbone.prefix_lm` the tokens of a
    prefix see each other in both directions, else those before them.

    A row of T places is made of the longest text of L tokens with L + 2 S <= T, where
    N = max(1, round(L * rate)) tokens are cut out in S = max(1, round(N / mean_length)) spans (as
    in T5): each adds its sentinel twice. At most 2
    places a row stay unused, and where 2 S does not fit the last step, rows have fewer places than
    T. Documents of a row are corrupted each on its own, sentinels counted anew; they share the
    row's S by their lengths, so that a short one may keep its text whole (and have no target).
    Which spans depends on (seed, sample number) alone.

    Args:
        rate: Share of the text that is cut out.
        mean_length: Tokens of a span, on average.
        loss_mean: Whether every target weighs the same, or every row (see `token_term`).
    """

    name = TERM
    causal = True
    per_byte = False
    goes_on_from: ClassVar[tuple[str, ...]] = ("causal",)

    def __init__(
        self, rate: float = 0.15, mean_length: float = 3.0, loss_mean: LossMean = "target"
    ) -> None:
        if not 0 < rate < 1:
            raise UserError(f"objective.rate is {rate}: give a share between 0 and 1")
        if not 1 <= mean_length < math.inf:
            raise UserError(f"objective.mean_length is {mean_length}: give 1 or more tokens")
        self.rate, self.mean_length, self.loss_mean = rate, mean_length, loss_mean

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {
            "rate": self.rate,
            "mean_length": self.mean_length,
            "loss_mean": self.loss_mean,
        }

    def noise(self, tokens: int) -> int:
        """How many tokens a text of so many loses."""
        return max(1, round(tokens * self.rate))

    def spans(self, tokens: int) -> int:
        """In how many spans."""
        return max(1, round(self.noise(tokens) / self.mean_length))

    def places(self, text: int) -> int:
        """K: tokens cut out of a row, and for each span its sentinel and perhaps what ends its
        document."""
        return self.noise(text) + 2 * self.spans(text)

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer without sentinels."""
        if not len(sentinels(tokenizer, 1)):
            raise UserError(
                f"span corruption needs sentinels, and the tokenizer has no special token "
                f"{SENTINEL.format(0)}: train one with `ptft_lightning tokenizer --sentinels 100`"
            )

    def problems(self, shape: dict[str, Any]) -> list[str]:
        """Token types would tell the prefix from the rest, here alone."""
        config = shape["config"]
        if config.get("token_types", 0) < 2 or config.get("prefix_lm"):
            return []
        return [
            f"objective '{self.name}' needs model.backbone.token_types 0 or prefix_lm true: "
            "nothing but a prefix-LM reads a prompt of another type than its answer"
        ]

    def slots(self, length: int) -> int:
        """See `Objective`."""
        return self.places(self._text(length))

    def _text(self, length: int) -> int:
        """The longest text that fits with its sentinels; 0 where none does."""
        return next((n for n in range(length, 0, -1) if n + 2 * self.spans(n) <= length), 0)

    def text_length(self, length: int, tokenizer: Tokenizer) -> int:
        """The tokens of text of a row of `length` places (see the class).

        Raises:
            UserError: too few places or sentinels.
        """
        text = self._text(length)
        if text < 2:
            raise UserError(
                f"data.length is {length}: too short for a text with the sentinels of "
                f"objective.rate {self.rate} and mean_length {self.mean_length:g}: raise it, or "
                "mean_length"
            )
        wanted = self.spans(text)
        if (found := len(sentinels(tokenizer, wanted))) < wanted:
            raise UserError(
                f"rows of data.length {length} have {wanted} spans, and the tokenizer has {found} "
                f"sentinels ({SENTINEL.format(0)} ...): train one with more (`ptft_lightning "
                "tokenizer --sentinels 100`), lower data.length, or raise objective.mean_length"
            )
        return text

    def make(
        self,
        tokens: Ids,
        documents: Ids,
        samples: Numbers,
        seed: int,
        tokenizer: Tokenizer,
        words: Ids | None = None,
    ) -> tuple[Ids, dict[str, Ids]]:
        """(B, L + 1) text -> (B, L + 2 S) tokens.

        Targets are `slots` (B, K), the places before those to be predicted, and `labels` (B, K),
        K = N + 2 S; also `documents` and `segments` of the rows made.
        """
        text, documents = tokens[:, :-1], documents[:, :-1]
        rows, length = text.shape
        most = self.spans(length)
        width, places = length + 2 * most, self.places(length)
        drawn = random_words(seed, TERM, samples, 2 * length + 1)
        marks = sentinels(tokenizer, most)
        out = Row(*(np.zeros((rows, width), np.int64) for _ in range(3)))
        out.tokens[:] = tokenizer.pad
        slots, labels = np.zeros((rows, places), np.int64), np.full((rows, places), IGNORE)
        for row in range(rows):
            at, targets = 0, 0
            for start, stop, front, cut in self._cut(
                text[row], documents[row], drawn[row], tokenizer
            ):
                prefix, target = write(text[row, start:stop], front, cut, marks)
                middle, end = at + len(prefix), at + len(prefix) + len(target)
                out.tokens[row, at:middle], out.tokens[row, middle:end] = prefix, target
                out.documents[row, at:end] = documents[row, start]
                out.segments[row, at:middle] = 1
                here = slice(targets, targets + len(target))
                slots[row, here], labels[row, here] = np.arange(middle - 1, end - 1), target
                at, targets = end, here.stop
        made = {"documents": out.documents, "segments": out.segments}
        return out.tokens, {"slots": slots, "labels": labels} | made

    def _cut(
        self, text: Ids, documents: Ids, drawn: Words, tokenizer: Tokenizer
    ) -> Iterator[tuple[int, int, tuple[int, int], Index]]:
        """Start and stop of each document of a row, where its text begins and ends within it, and
        (s, 2) spans in it."""
        edges = np.flatnonzero(np.diff(documents, prepend=0, append=0))
        pairs = [(a, b) for a, b in pairwise(edges.tolist()) if documents[a] > 0]
        inner = [_inside(text[a:b], tokenizer) for a, b in pairs]
        sizes = np.array([stop - start for start, stop in inner], np.int64)
        if not sizes.sum():
            yield from (
                (a, b, i, np.zeros((0, 2), np.int64))
                for (a, b), i in zip(pairs, inner, strict=True)
            )
            return
        # Systematic sampling: by their lengths, and always as many spans in all.
        offset = float(drawn[-1] >> np.uint64(32)) / 2**32
        total = int(sizes.sum())
        noise, most = self.noise(total), self.spans(total)
        shares = sizes.cumsum() / total * most
        counts = np.diff(np.floor(shares + offset).astype(np.int64), prepend=0)
        losses = np.diff(noise * counts.cumsum() // most, prepend=0)
        half = len(text)
        for (a, b), own, size, count, loss in zip(
            pairs, inner, sizes.tolist(), counts.tolist(), losses.tolist(), strict=True
        ):
            number = min(count, size // 2)
            lost = min(loss, size - number)
            keys = drawn[a:b], drawn[half + a : half + b]
            yield a, b, own, choose_spans(size, number, lost, *keys)

    def uniform_loss(self, vocab_size: int) -> float:
        """One token of the vocabulary: ln V."""
        return math.log(vocab_size)

    def build_head(self, backbone: Backbone, tied: bool) -> PretrainHead:
        """That of `CausalLM`."""
        return SpanHead(backbone, tied, self.loss_mean)


class Row(NamedTuple):
    """What the backbone reads, (B, L + 2 S) each."""

    tokens: Ids
    documents: Ids
    segments: Ids


def sentinels(tokenizer: Tokenizer, most: int) -> Index:
    """Ids of the first sentinels, up to `most`."""
    found = [tokenizer.raw.token_to_id(SENTINEL.format(n)) for n in range(most)]
    return np.array([i for i in found if i is not None and i in tokenizer.specials], np.int64)


def _inside(document: Ids, tokenizer: Tokenizer) -> tuple[int, int]:
    """Where the text of a document lies, without what begins and ends it."""
    start = int(document[0] == tokenizer.begin)
    return start, max(start, len(document) - int(document[-1] == tokenizer.end))


def choose_spans(size: int, number: int, noise: int, gaps: Words, cuts: Words) -> Index:
    """(number, 2) starts and stops of spans of `noise` tokens in all, in a text of `size`.

    Every choice is as likely as any other: the spans stand in different ones of the gaps before,
    between and behind the size - noise tokens that stay, and their lengths are `noise` cut at
    different places. `gaps` and `cuts` are random words, `size` or more each.
    """
    if not number:
        return np.zeros((0, 2), np.int64)
    kept = size - noise
    place = np.sort(np.argsort(gaps[: kept + 1], kind="stable")[:number])
    cut = np.sort(np.argsort(cuts[: noise - 1], kind="stable")[: number - 1]) + 1
    ends = np.append(cut, noise)
    begins = np.insert(cut, 0, 0)
    return np.stack([place + begins, place + ends], axis=1)


def write(document: Ids, inside: tuple[int, int], spans: Index, marks: Ids) -> tuple[Ids, Ids]:
    """Prefix and target of a document, whose text lies at `inside`; no target without spans."""
    if not len(spans):
        return document, document[:0]
    start, stop = inside
    spans = spans + start
    bounds = np.append(spans[:, 0], stop), np.insert(spans[:, 1], 0, 0)
    prefix, target = [document[: bounds[0][0]]], []
    for n, (first, after) in enumerate(spans.tolist()):
        prefix += [marks[n : n + 1], document[after : bounds[0][n + 1]]]
        target += [marks[n : n + 1], document[first:after]]
    return np.concatenate(prefix), np.concatenate([*target, document[stop:]])


class SpanHead(CausalHead):
    """Vocabulary logits at the slots alone; the tensors of `CausalHead`."""

    def forward(self, hidden: Tensor, batch: Batch, embedding: Tensor) -> Output:
        """(B, T, dim) hidden states -> the `span_corruption` term over B*K slots."""
        slots, labels = batch.targets["slots"], batch.targets["labels"]
        index = slots[..., None].expand(-1, -1, hidden.shape[-1])
        chosen = torch.gather(hidden, 1, index).flatten(0, 1)
        projection = self.projection.matrices(embedding)
        losses, right = projected_cross_entropy(chosen, *projection, labels.flatten())
        term = token_term(losses.view_as(labels), labels, self.loss_mean)
        return Output({TERM: term}, {"accuracy": right})
