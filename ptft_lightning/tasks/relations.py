"""Relation extraction: what holds between two entities that are marked in a text."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.examples import Columns, Encoded, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.relation_files import (
    MARKS,
    Related,
    RelationFormat,
    marked,
    read_relations,
)
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.unusable import unusable
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import Arrays, Task, TaskHead, labels_in_order
from ptft_lightning.tasks.class_weights import ClassWeights, weigh_examples
from ptft_lightning.tasks.classification import ClassificationHead, likeliest
from ptft_lightning.tasks.marking import Stretch, mark, signs_of, tokens_apart
from ptft_lightning.tasks.pooling import pool
from ptft_lightning.tasks.relation_scores import relation_scores
from ptft_lightning.terms import IGNORE

Reading = Literal["auto", "start", "mean", "end"]


class RelationExtraction(Task):
    """One of several relations between two entities of a text, head and tail.

    Signs are put around the entities, `@` or the like around the head and another one around the
    tail; what the model says at them is put side by side and goes through a linear layer (entity
    starts of Baldini Soares et al. 2019).

    Args:
        marks: Four pieces of text that stand before and after head and tail in the files, such as
            [<e1>, </e1>, <e2>, </e2>]; default, or none: head and tail are fields of their own.
        head: The field of the head: a name, or a stretch [start, end] of characters, or of words
            where the text is a list of words.
        tail: The field of the tail.
        types: Two fields with the types of head and tail, which are then written into their signs.
        last: Whether a stretch names its last character or word, not the one after it.
        joiner: What stands between the words of a list; empty for Chinese.
        negative: The label that means no relation, left out of micro- and macro-F1.
        reading: What the model says where: at the signs before the entities (`start`), in the mean
            over each entity (`mean`), or at the signs after them and at the text's end (`end`);
            `auto` is `end` for a causal model, which knows nothing of what follows, else `start`.
        dropout: Probability on what is read, in training.
        class_weights: What an example of a label counts in the training loss, see Classification.
        label_smoothing: Share of the target spread over all labels, in training.
        monitor: The validation metric that decides which bundle is best.
    """

    name = "relations"
    shaping = ("reading", "types")
    judged = True

    def __init__(
        self,
        marks: list[str] | None = None,
        head: str = "head",
        tail: str = "tail",
        types: list[str] | None = None,
        last: bool = False,
        joiner: str = " ",
        negative: str | None = None,
        reading: Reading = "auto",
        dropout: float = 0.1,
        class_weights: ClassWeights | None = None,
        label_smoothing: float = 0.0,
        monitor: Literal["macro_f1", "micro_f1", "accuracy", "loss"] = "micro_f1",
    ) -> None:
        self.marks, self.head, self.tail, self.types = marks or None, head, tail, types
        self.last, self.joiner, self.negative = last, joiner, negative
        self.reading, self.dropout = reading, dropout
        self.class_weights, self.label_smoothing = class_weights, label_smoothing
        self.watch(monitor)
        if marks and (len(set(marks)) != 4 or not all(marks)):
            raise UserError(f"task.marks is {marks}: give four different pieces, {[*MARKS]}")
        if types is not None and (len(types) != 2 or marks):
            raise UserError(f"task.types is {types}: give two fields, and leave out task.marks")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"task.label_smoothing is {label_smoothing}: give 0 to less than 1")

    def config(self) -> dict[str, Any]:
        """All settings."""
        names = (
            *("marks", "head", "tail", "types", "last", "joiner", "negative", "reading"),
            *("dropout", "class_weights", "label_smoothing"),
        )
        own = {name: getattr(self, name) for name in names}
        return own | {"monitor": self.monitor.removeprefix("val_")}

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Example]:
        """See `read_relations`."""
        how = RelationFormat(
            marks=None if self.marks is None else tuple(self.marks),
            head=self.head,
            tail=self.tail,
            types=None if self.types is None else (self.types[0], self.types[1]),
            last=self.last,
            joiner=self.joiner,
        )
        return read_relations(path, columns, how, labelled, bad)

    def typed(self, text: str, columns: Columns, place: str) -> Example:
        """A text with marks around its entities."""
        if self.types is not None:
            raise UserError(f"{place}: this model reads types: give a file with --data.predict")
        marks = MARKS if self.marks is None else tuple(self.marks)
        try:
            return marked(text, marks, None, place)
        except ValueError as error:
            raise UserError(f"{place}: {error}: write {' head '.join(marks[:2])} ...") from error

    def labels_of(self, example: Example) -> list[str]:
        """Its relation, if it has one."""
        return [] if example.label is None else [example.label]

    def schema(self, examples: list[Example]) -> list[str]:
        """The relations that occur, sorted."""
        labels = labels_in_order({label for e in examples for label in self.labels_of(e)})
        if len(labels) < 2:
            raise UserError(f"relations need two labels or more, the training file has {labels}")
        if self.negative is not None and self.negative not in labels:
            raise UserError(f"task.negative '{self.negative}' is none of the labels {labels}")
        return labels

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """Token ids of each example with signs around its entities, its label's id and (2, 4)
        places of the signs; cut to `max_length` around the entities, then between them."""
        related = [e for e in examples if isinstance(e, Related)]
        ids = {label: i for i, label in enumerate(labels)}
        signs = signs_of(tokenizer, 2)
        kinds = sorted({kind for e in related for kind in e.types or ()})
        names = dict(zip(kinds, tokenizer.encode(kinds), strict=True))
        cuts = [sorted((*e.head, *e.tail)) for e in related]
        whole = tokens_apart([e.text for e in related], cuts, tokenizer)
        encoded: list[Encoded] = []
        for example, (tokens, spans) in zip(related, whole, strict=True):
            stretches = [
                Stretch(span, [*sign, *names[kind], *sign] if kind else sign, sign)
                for span, sign, kind in zip(
                    (example.head, example.tail), signs, example.types or ("", ""), strict=True
                )
            ]
            of, place = (example.text, tokens, spans, stretches), example.place
            try:
                item = mark(*of, tokenizer, max_length, place)
            except UserError as error:
                encoded.append(unusable(len(encoded), place, error))
                continue
            item.example = len(encoded)
            item.targets["places"] = np.array(item.places, np.int64)
            if example.label is not None:
                item.targets["label"] = np.array(ids[example.label])
            encoded.append(item)
        return encoded

    def weigh(self, examples: list[Encoded], labels: list[str]) -> None:
        """Give training examples the weight of their label."""
        weigh_examples(self.class_weights, examples, labels)

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> Arrays:
        """(E,) row, last place, label (IGNORE in an empty slot) and weight, and (E, 2, 4) places of
        the signs of head and tail."""
        nowhere = np.tile(np.array([0, 0, 1, 1]), (2, 1))
        places = np.stack([e.targets.get("places", nowhere) for e in packed])
        lengths = np.array([max(1, len(e.tokens)) for e in packed], np.int64)
        targets: Arrays = {
            "row": rows,
            "end": starts + lengths - 1,
            "places": starts[:, None, None] + places,
            "label": np.array([e.targets.get("label", IGNORE) for e in packed], np.int64),
        }
        if self.class_weights is not None:
            weights = [e.targets.get("weight", 1.0) for e in packed]
            targets["weight"] = np.array(weights, np.float32)
        return targets

    def uniform_loss(self, labels: list[str]) -> float:
        """One label of C: ln C."""
        return math.log(len(labels))

    def build_head(self, backbone: Backbone, labels: list[str]) -> TaskHead:
        """A linear layer on what is read of head and tail."""
        reading = self.reading
        if reading == "auto":
            reading = "end" if backbone.causal else "start"
        return RelationHead(backbone.dim, len(labels), reading, self.dropout, self.label_smoothing)

    def record(self, scores: Tensor, labels: list[str]) -> dict[str, Any]:
        """The most likely relation and every relation's probability."""
        return likeliest(scores, labels)

    def judge(
        self, examples: list[Example], records: dict[int, dict[str, Any]]
    ) -> dict[str, float]:
        """See `relation_scores`."""
        pairs = [(examples[n].label, record["label"]) for n, record in sorted(records.items())]
        gold = [str(label) for label, _ in pairs]
        return relation_scores(gold, [label for _, label in pairs], self.negative)


class RelationHead(ClassificationHead):
    """A classification of what is read of two entities."""

    def __init__(
        self, dim: int, classes: int, reading: Reading, dropout: float, smoothing: float
    ) -> None:
        width = dim * (3 if reading == "end" else 2)
        super().__init__(width, classes, "auto", dropout, smoothing)
        self.reading = reading

    def read(self, hidden: Tensor, at: dict[str, Tensor]) -> Tensor:
        """(B, T, dim) hidden states -> (E, 2 or 3, dim) what is read of each example."""
        row, places = at["row"][:, None], at["places"]
        if self.reading == "start":
            return hidden[row, places[..., 0]]
        if self.reading == "end":
            last = torch.cat([places[..., 2], at["end"][:, None]], 1)
            return hidden[row, last]
        # An entity that is no token is read at its sign.
        first, after = places[..., 1], torch.maximum(places[..., 2], places[..., 1] + 1)
        return pool(hidden, {"row": row, "start": first, "end": after}, "mean")

    def project(self, hidden: Tensor, at: dict[str, Tensor]) -> Tensor:
        """(B, T, dim) hidden states -> (E, classes) in float32."""
        read = self.read(hidden, at).flatten(1)
        out: Tensor = self.classifier(self.dropout(read)).float()
        return out
