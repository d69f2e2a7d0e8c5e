"""Pairs of texts with how well they match, read from files; knows no model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ptft_lightning.data.examples import Columns, Encoded, Example, blank, read_records, text_of
from ptft_lightning.data.findings import NO_LABEL, BadExamples
from ptft_lightning.data.framing import frame_example
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

Kind = Literal["number", "name"] | None


@dataclass(frozen=True)
class Pair(Example):
    """A text with one that may match it, how well it does, and texts that do not."""

    score: float | None = None
    negatives: tuple[str, ...] = ()

    @property
    def gold(self) -> Any:
        """Its score or its label."""
        return self.label if self.score is None else self.score


def read_pairs(
    path: str,
    columns: Columns,
    labelled: bool,
    kind: Kind,
    negatives: list[str],
    bad: BadExamples,
) -> list[Example]:
    """The pairs of a .jsonl, .csv or .tsv file, their labels of a `kind` (None: not read). Where no
    labels are needed, there need not be a second text either.

    Raises:
        UserError: see `read_examples`.
    """
    if labelled and columns.pair is None:
        raise UserError("data.columns.pair is missing: name the column of the second text")
    found = [*_pairs(path, columns, labelled, kind, negatives, bad)]
    if not found and not bad.found:
        raise UserError(f"'{path}' holds no examples")
    return found


def _pairs(
    path: str,
    columns: Columns,
    labelled: bool,
    kind: Kind,
    negatives: list[str],
    bad: BadExamples,
) -> Iterator[Example]:
    for place, record in read_records(path, columns):
        text, pair, label, score = _field(record, columns.text, place), None, None, None
        if columns.pair is not None and (labelled or columns.pair in record):
            pair = _field(record, columns.pair, place)
        if labelled and kind is not None:
            if columns.label in record and blank(record[columns.label]):
                bad.add(place, NO_LABEL)
                continue
            label = _field(record, columns.label, place)
        if label is not None and kind == "number":
            if (score := _number(label)) is None:
                bad.add(place, f"label '{label}' is not a number")
                continue
            label = None
        others = tuple(_field(record, name, place) for name in negatives * labelled)
        yield Pair(text, pair, label, place, score=score, negatives=others)


def _field(record: dict[str, Any], name: str, place: str) -> str:
    if record.get(name) is None:
        raise UserError(
            f"{place}: no column '{name}'; the columns are {list(record)}: set data.columns.text, "
            ".pair or .label (and .names for a file without a header), or model.task.negatives"
        )
    return text_of(record, name, place)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def encode_apart(
    examples: list[Example], tokenizer: Tokenizer, max_length: int, most: int
) -> list[Encoded]:
    """The texts of each example, up to `most`, each a document of its own of up to `max_length`.

    `targets["keys"]`, (most,): which text each is, equal ones the same; 0 where there is none.
    """
    texts = [_texts(e) for e in examples]
    parts = [
        Example(text, None, None, e.place)
        for e, several in zip(examples, texts, strict=True)
        for text in several
    ]
    documents = iter(frame_example(parts, tokenizer, max_length))
    encoded = []
    for number, several in enumerate(texts):
        item, *item.also = (next(documents) for _ in several)
        item.example = number
        keys = [_key(d.tokens) for d in (item, *item.also)]
        item.targets["keys"] = np.array(keys + [0] * (most - len(keys)))
        encoded.append(item)
    return encoded


def _texts(example: Example) -> list[str]:
    more = [] if example.pair is None else [example.pair]
    return [example.text, *more, *(example.negatives if isinstance(example, Pair) else ())]


def _key(tokens: list[int]) -> int:
    """Which text it is; never 0."""
    digest = hashlib.blake2b(np.array(tokens, np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) | 1
