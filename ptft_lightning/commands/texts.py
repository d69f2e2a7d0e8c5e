"""Texts that commands are given: on the command line or in files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import TypeVar

from ptft_lightning.data.bad_documents import BadDocuments
from ptft_lightning.data.documents import Reading, check_file, read_unit, split_units, text_size
from ptft_lightning.data.lines import text_lines
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError

# For commands that predict in steps: other processes would know nothing of the files between.
ONE_PROCESS = ("--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto")

T = TypeVar("T")


def texts_in(value: str, name: str) -> list[str]:
    """One text, or several written as a JSON list of strings; `[MASK]` is a text.

    Raises:
        UserError: such a list holds something else.
    """
    if not value.startswith('["'):
        return [value]
    try:
        texts = json.loads(value)
    except json.JSONDecodeError as error:
        raise UserError(f"--{name} begins like a JSON list and is none: {error}") from error
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"--{name} has {text!r} in its list: give texts in quotes")
    return list(texts)


def read_lines(file: str) -> Iterator[str]:
    """The lines of a .txt file that are not blank.

    Raises:
        UserError: missing or not UTF-8.
    """
    return (line for _, line in text_lines(file) if line.strip())


def read_documents(file: str, column: str) -> Iterator[str]:
    """The documents of a file; unreadable ones are left out and reported.

    Raises:
        UserError: there is none that can be read.
    """
    bad, reading = BadDocuments(), Reading(column)
    check_file(file, reading)
    size, found = text_size(file, column), False
    for unit in split_units(file, size, max(size, 1), column):
        for document in read_unit(unit, reading, bad):
            found = True
            yield document
    if not found:
        raise UserError(f"no documents in '{file}'; {bad.summary()}")
    if bad.count:
        say(bad.summary())


def batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """`size` items at a time."""
    while batch := list(islice(items, size)):
        yield batch
