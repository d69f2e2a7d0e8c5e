"""Labelled files in, examples out: jsonl, csv and tsv with named columns; knows no model."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ptft_lightning.data.streams import COMPRESSED, Damaged, bare_name, open_bytes
from ptft_lightning.errors import UserError

SHOWN = 60  # characters of what is no text


@dataclass(frozen=True)
class Columns:
    """Which columns of a file mean what."""

    text: str = "text"
    """The text, or the first sentence of a pair."""
    pair: str | None = None
    """The second sentence of a pair."""
    label: str = "label"
    """The label, or labels, or number; not needed for prediction."""
    separator: str | None = None
    """Cuts the text of the label column into several labels; a JSON list needs none."""
    names: list[str] | None = None
    """Names of the columns of a csv or tsv file that has no header line."""

    def __post_init__(self) -> None:
        if self.separator == "":
            raise UserError(
                "data.columns.separator is empty: name what stands between labels, or leave it out"
            )


@dataclass(frozen=True)
class Example:
    """One text or pair of texts, with its label or list of labels if any, and where it stood."""

    text: str
    pair: str | None
    label: str | None
    place: str
    labels: list[str] | None = None

    @property
    def said(self) -> dict[str, Any]:
        """What a line of predictions begins with."""
        return {"text": self.text} if self.pair is None else {"text": self.text, "pair": self.pair}

    @property
    def group(self) -> str:
        """Examples of one group are held out together."""
        return self.text

    @property
    def gold(self) -> Any:
        """What should have been predicted, in the form of a line of predictions."""
        return self.label if self.labels is None else self.labels

    def __post_init__(self) -> None:
        try:
            "".join([self.text, self.pair or "", self.label or "", *(self.labels or ())]).encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{self.place}: half of a surrogate pair (not valid Unicode)"
            ) from error


@dataclass
class Encoded:
    """An example, or one window of it, as the model reads it."""

    tokens: list[int]
    segments: list[int]
    cut: int = 0
    """Tokens that were too many."""
    targets: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    place: str = ""
    example: int = 0
    """Its example's number in the set."""
    count: int = 1
    """Targets that count in the loss."""
    spans: np.ndarray[Any, Any] | None = None
    """(tokens, 2): the characters each token covers, for tasks that answer with parts of a text."""
    also: list[Encoded] = field(default_factory=list)
    """Further texts of the example, each read as a document of its own."""
    fault: str = ""
    """Why the example cannot be used, if so."""


def documents_of(encoded: list[Encoded]) -> list[Encoded]:
    """Every document to be read: each example followed by its further texts."""
    return [document for item in encoded for document in (item, *item.also)]


def read_examples(path: str, columns: Columns, labelled: bool) -> list[Example]:
    """Read every example of a .jsonl, .csv or .tsv file, or of a .json list (also .gz or .zst).

    Raises:
        UserError: missing or empty file, broken line, or missing column, with its place.
    """
    wanted = (columns.text, columns.pair, columns.label if labelled else None)
    needed = [name for name in wanted if name]
    examples = [
        _example(record, columns, needed, place) for place, record in read_records(path, columns)
    ]
    if not examples:
        raise UserError(f"'{path}' holds no examples")
    return examples


def typed_example(text: str, columns: Columns, place: str) -> Example:
    """An example typed by a person; a pair is written with a tab between its sentences."""
    if columns.pair is None:
        return Example(text, None, None, place)
    first, tab, second = text.partition("\t")
    if not tab:
        raise UserError(f"{place}: this model reads pairs: put a tab between the two")
    return Example(first, second, None, place)


def _example(record: dict[str, Any], columns: Columns, needed: list[str], place: str) -> Example:
    for name in needed:
        if record.get(name) is None and not (name == columns.label and name in record):
            raise UserError(
                f"{place}: no column '{name}'; the columns are {list(record)}: set "
                "data.columns.text, .pair or .label (and .names for a file without a header)"
            )
    label = record[columns.label] if columns.label in needed else None
    if columns.label in needed and _missing(label):
        label = ""
    if columns.separator is not None and isinstance(label, str):
        label = [part.strip() for part in label.split(columns.separator) if part.strip()]
    labels = [str(name) for name in label if not blank(name)] if isinstance(label, list) else None
    return Example(
        text=text_of(record, columns.text, place),
        pair=text_of(record, columns.pair, place) if columns.pair else None,
        label=None if label is None or labels is not None else str(label),
        place=place,
        labels=labels,
    )


def blank(label: Any) -> bool:
    """Whether there is nothing to learn in a label, or in one of a list."""
    return _missing(label) or not str(label).strip()


def _missing(label: Any) -> bool:
    """Null, or NaN, which pandas writes for a field without a value."""
    return label is None or bool(label != label)


def text_of(record: dict[str, Any], name: str, place: str) -> str:
    """The text of a column, a number as it is written.

    Raises:
        UserError: there is a list or a mapping.
    """
    if isinstance(value := record[name], (list, dict)):
        raise UserError(f"{place}: '{name}' is {str(value)[:SHOWN]}, no text: name another column")
    return str(value)


def read_records(path: str, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a file, each with its place."""
    from ptft_lightning.data.lines import json_list  # a leaf

    bare = bare_name(path)
    with open_bytes(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            if bare.endswith(".jsonl"):
                yield from _jsonl(path, text)
            elif bare.endswith(".json"):
                yield from json_list(path)
            elif bare.endswith((".csv", ".tsv")):
                yield from _separated(path, text, columns, tabs=bare.endswith(".tsv"))
            else:
                raise UserError(
                    f"cannot read '{path}': expected .jsonl, .json, .csv or .tsv, also with "
                    f"{' or '.join(COMPRESSED)}"
                )
        except UnicodeDecodeError as error:
            raise UserError(f"'{path}' is not UTF-8: {error}") from error
        except Damaged as error:
            raise UserError(f"'{path}' is damaged, get it again: {error}") from error


def _jsonl(path: str, text: io.TextIOWrapper) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number}: not a JSON line ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f"{path} line {number}: not a JSON object")
        yield f"{path} line {number}", record


def _separated(
    path: str, text: io.TextIOWrapper, columns: Columns, tabs: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    # Tab-separated sets (GLUE and others) hold bare quotes; comma-separated ones quote fields.
    csv.field_size_limit(2**31 - 1)
    # Strict, because a quote never closed would swallow the lines after it without a word.
    if tabs:
        reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(text, strict=True)
    try:
        names = columns.names or next(reader, [])
        for row in reader:
            if not row:
                continue
            place = f"{path} line {reader.line_num}"
            if len(row) != len(names):
                raise UserError(f"{place}: {len(row)} columns, expected {len(names)} ({names})")
            yield place, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path} line {reader.line_num}: quotes do not match ({error}): write a quote inside "
            'a quoted field twice ("")'
        ) from error
