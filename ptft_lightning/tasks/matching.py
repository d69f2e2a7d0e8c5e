"""Matching: whether two texts belong together, each read on its own as one vector."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.examples import Columns, Encoded, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.module import say
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import Arrays, Scored, Task, TaskHead, labels_in_order
from ptft_lightning.tasks.matching_head import Loss, MatchingHead
from ptft_lightning.tasks.matching_scores import (
    agreement,
    best_cutoff,
    classes,
    decisions,
    detection,
    places,
    retrieval,
)
from ptft_lightning.tasks.pairs import Kind, Pair, encode_apart, read_pairs
from ptft_lightning.tasks.pooling import Pooling, spans_of
from ptft_lightning.terms import IGNORE

Monitor = Literal[
    "spearman",
    "pearson",
    "mrr",
    "recall_at_1",
    "recall_at_5",
    "recall_at_10",
    "average_precision",
    "accuracy",
    "f1",
    "macro_f1",
    "loss",
]
MONITORS: dict[str, str] = {"contrastive": "mrr", "cosine": "spearman", "softmax": "accuracy"}


class Matching(Task):
    """How well two texts match, by the cosine of their vectors (Reimers & Gurevych 2019).

    Each text is read on its own (a bi-encoder), so that vectors can be kept and searched; a model
    that reads both at once is Classification or Regression with `data.columns.pair`. A text alone
    is predicted as its vector. Both losses on cosines add no parameters: any phase-one model, or a
    published encoder, can be tested and can predict before it is tuned.

    Args:
        loss: `contrastive`: a text's match against the other texts of the micro-batch (InfoNCE);
            `cosine`: squared error of the cosine against the label, a number; `softmax`: a linear
            layer on u, v and |u - v| chooses one of several labels (InferSent).
        pooling: How the hidden states of a text become one vector; `auto` is the mean.
        threshold: Pairs whose label is a number of at least this match. Without one `contrastive`
            reads no labels, and all pairs match. With one, the cosine from which on pairs are
            called a match is found on the validation examples and kept in the bundle.
        low: The label that means a cosine of 0, for `cosine`.
        high: The label that means a cosine of 1, for `cosine`.
        temperature: What cosines are divided by, for `contrastive`.
        symmetric: Also look for the first text among all first ones, for `contrastive`.
        negatives: Columns of texts that do not match the first one, for `contrastive`.
        gather: Look also among the texts of all ranks' micro-batches, for `contrastive`. The texts
            of other micro-batches of a step are never negatives: data.micro_batch_size decides how
            many there are, and accumulation does not make them more.
        monitor: The validation metric that decides which bundle is best; default by the loss.
    """

    name = "matching"
    shaping = ("pooling",)
    judged: ClassVar[bool] = True

    def __init__(
        self,
        loss: Loss = "contrastive",
        pooling: Pooling = "auto",
        threshold: float | None = None,
        low: float = 0.0,
        high: float = 1.0,
        temperature: float = 0.05,
        symmetric: bool = False,
        negatives: list[str] | None = None,
        gather: bool = False,
        monitor: Monitor | None = None,
    ) -> None:
        self.loss, self.pooling, self.threshold = loss, pooling, threshold
        self.low, self.high, self.temperature = low, high, temperature
        self.symmetric, self.negatives, self.gather = symmetric, negatives or [], gather
        self.zero_shot = loss != "softmax"
        if high <= low:
            raise UserError(f"task.high is {high}: give more than task.low, which is {low}")
        if temperature <= 0:
            raise UserError(f"task.temperature is {temperature}: give a positive number")
        given = {"negatives": negatives, "symmetric": symmetric, "gather": gather}
        for name, value in given.items():
            if value and loss != "contrastive":
                raise UserError(f"task.{name} is for task.loss contrastive, it is '{loss}'")
        if threshold is not None and loss == "softmax":
            raise UserError("task.threshold is for labels that are numbers, task.loss is 'softmax'")
        self.watch(monitor or MONITORS[loss])
        self._check_monitor()

    def _check_monitor(self) -> None:
        given = self.monitor.removeprefix("val_")
        known = {"softmax": ["accuracy", "macro_f1"], "contrastive": [*retrieval([])]}
        measured = [*known.get(self.loss, []), "loss"]
        if self.loss == "cosine" or self.threshold is not None:
            measured += ["spearman", "pearson"]
        if self.threshold is not None:
            measured += ["average_precision", "accuracy", "f1"]
        if given not in measured:
            raise UserError(
                f"task.monitor is '{given}', with these settings there are {', '.join(measured)}"
            )

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {
            "loss": self.loss,
            "pooling": self.pooling,
            "threshold": self.threshold,
            "low": self.low,
            "high": self.high,
            "temperature": self.temperature,
            "symmetric": self.symmetric,
            "negatives": self.negatives or None,
            "gather": self.gather,
            "monitor": self.monitor.removeprefix("val_"),
        }

    @property
    def numeric(self) -> bool:
        """Whether labels are read as numbers."""
        return self.loss == "cosine" or self.threshold is not None

    def matches(self, example: Example) -> bool:
        """Whether an example is a pair known to match."""
        assert isinstance(example, Pair)
        if example.pair is None or self.loss == "softmax":
            return False
        score = example.score
        return self.threshold is None or (score is not None and score >= self.threshold)

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Example]:
        """Pairs with their labels; for prediction single texts as well."""
        kind: Kind = "number" if self.numeric else "name" if self.loss == "softmax" else None
        return read_pairs(path, columns, labelled, kind, self.negatives, bad)

    def typed(self, text: str, columns: Columns, place: str) -> Example:
        """A text, or a pair with a tab between."""
        first, tab, second = text.partition("\t")
        return Pair(first, second if tab else None, None, place)

    def labels_of(self, example: Example) -> list[str]:
        """Its label, if it has one."""
        return [] if example.label is None else [example.label]

    def schema(self, examples: list[Example]) -> list[str]:
        """The labels for `softmax`; else none, and how many pairs match is told."""
        if self.loss == "softmax":
            return labels_in_order({label for e in examples for label in self.labels_of(e)})
        if self.loss == "contrastive":
            count = sum(map(self.matches, examples))
            why = "no labels are read" if self.threshold is None else f"from {self.threshold} on"
            say(f"{count} of {len(examples)} pairs match ({why})")
            if not count:
                raise UserError(
                    f"no pair of the training file has a label of task.threshold {self.threshold} "
                    "or more: lower it"
                )
        return []

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """Each text of an example as a document of its own, cut to `max_length`."""
        ids = {label: i for i, label in enumerate(labels)}
        encoded = encode_apart(examples, tokenizer, max_length, 2 + len(self.negatives))
        for example, item in zip(examples, encoded, strict=True):
            match = self.matches(example)
            item.targets["match"] = np.array(match)
            if self.loss == "contrastive":
                item.count = int(match)
            if isinstance(example, Pair) and example.score is not None:
                item.targets["score"] = np.array(example.score, np.float32)
            for label in self.labels_of(example):
                item.targets["label"] = np.array(ids[label])
        return encoded

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> Arrays:
        """Row, start and end of each example's 2 + K texts, (N, 2 + K) each (those of a text that
        is not there are the first's), and what is known of the pair."""
        firsts, number = [], 0
        while number < len(packed):
            firsts.append(number)
            number += 1 + len(packed[number].also)
        parts = range(2 + len(self.negatives))
        at = np.array([[n + p * (p <= len(packed[n].also)) for p in parts] for n in firsts])
        given = [packed[n].targets for n in firsts]
        return {
            **{name: place[at] for name, place in spans_of(packed, rows, starts).items()},
            "keys": np.stack([t.get("keys", np.zeros(len(parts), np.int64)) for t in given]),
            "match": np.array([t.get("match", False) for t in given]),
            "score": np.array([t.get("score", np.nan) for t in given], np.float32),
            "label": np.array([t.get("label", IGNORE) for t in given], np.int64),
        }

    def build_head(self, backbone: Backbone, labels: list[str]) -> TaskHead:
        """Pooling and the loss."""
        return MatchingHead(
            dim=backbone.dim,
            classes=len(labels),
            loss=self.loss,
            pooling=self.pooling,
            span=(self.low, self.high),
            temperature=self.temperature,
            symmetric=self.symmetric,
            gather=self.gather,
        )

    def records(self, scored: Scored) -> dict[int, dict[str, Any]]:
        """Vectors of single texts; the cosine of pairs, and the place of a match among all second
        texts, or the label."""
        if not scored.scores:
            return {}
        numbers = [scored.windows[n].example for n in scored.scores]
        examples = [scored.examples[n] for n in numbers]
        vectors, logits = _split(torch.stack([*scored.scores.values()]), len(scored.labels))
        cosines = (vectors[:, 0] * vectors[:, 1]).sum(1).tolist()
        lines = [
            self._line(e, float(cosine), vector)
            for e, cosine, vector in zip(examples, cosines, vectors[:, 0], strict=True)
        ]
        pairs = [i for i, e in enumerate(examples) if e.pair is not None]
        if self.loss == "softmax":
            for i, record in zip(pairs, classes(logits[pairs], scored.labels), strict=True):
                lines[i] |= record
        if self.loss == "contrastive":
            texts = [(examples[i].text, examples[i].pair or "") for i in pairs]
            found = places(vectors[pairs], texts, [self.matches(examples[i]) for i in pairs])
            for at, place in found.items():
                lines[pairs[at]]["rank"] = place
        return dict(zip(numbers, lines, strict=True))

    def _line(self, example: Example, cosine: float, vector: Tensor) -> dict[str, Any]:
        if example.pair is None:
            return {"embedding": [round(x, 6) for x in vector.tolist()]}
        line: dict[str, Any] = {"cosine": round(cosine, 6)}
        if "cutoff" in self.found:
            line["match"] = line["cosine"] >= self.found["cutoff"]
        return line

    def settle(self, examples: list[Example], records: dict[int, dict[str, Any]]) -> None:
        """The cosine from which on most pairs are rightly called a match."""
        if self.threshold is not None:
            right = [self.matches(examples[n]) for n in records]
            cutoff = best_cutoff([line["cosine"] for line in records.values()], right)
            self.found = {"cutoff": cutoff}

    def judge(
        self, examples: list[Example], records: dict[int, dict[str, Any]]
    ) -> dict[str, float]:
        """Correlation with the labels, the places of matches, and right decisions."""
        gold = [examples[n] for n in records]
        lines = [*records.values()]
        values: dict[str, float] = {}
        if self.loss == "softmax":
            return decisions([e.label for e in gold], [line["label"] for line in lines])
        if self.loss == "contrastive":
            values |= retrieval([line["rank"] for line in lines if "rank" in line])
        if self.numeric:
            cosines = [line["cosine"] for line in lines]
            values |= agreement(cosines, [_score(e) for e in gold])
            if self.threshold is not None:
                right = [self.matches(e) for e in gold]
                values |= detection(cosines, right, self.found.get("cutoff"))
        return values


def _score(example: Example) -> float:
    assert isinstance(example, Pair)
    return math.nan if example.score is None else example.score


def _split(scores: Tensor, labels: int) -> tuple[Tensor, Tensor]:
    """(N, 2 dim + labels) scores -> (N, 2, dim) vectors and (N, labels) logits."""
    size = scores.shape[1] - labels
    return scores[:, :size].reshape(len(scores), 2, -1), scores[:, size:]
