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

SHOWN = 3  # files that are named

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


def read_texts(file: str, column: str) -> Iterator[str]:
    """The lines of a .txt file, of any other the documents."""
    return read_lines(file) if file.endswith(".txt") else read_documents([file], column)


def read_documents(files: list[str], column: str, told: bool = True) -> Iterator[str]:
    """The documents of files; unreadable ones are left out and, unless they were `told` of before,
    reported, as are files without any.

    Raises:
        UserError: there is none that can be read.
    """
    bad, reading, empty = BadDocuments(), Reading(column), list[str]()
    for file in files:
        check_file(file, reading)
        size, found = text_size(file, column), False
        for unit in split_units(file, size, max(size, 1), column):
            for document in read_unit(unit, reading, bad):
                found = True
                yield document
        empty += [] if found else [file]
    named = ", ".join(f"'{file}'" for file in empty[:SHOWN])
    if empty == files:
        raise UserError(f"no documents in {named}; {bad.summary()}")
    if told and empty:
        say(f"{len(empty)} of {len(files)} files hold no documents: {named}")
    if told and bad.count:
        say(bad.summary())


def batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """`size` items at a time."""
    while batch := list(islice(items, size)):
        yield batch
