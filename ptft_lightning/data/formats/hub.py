"""Data sets of the Hugging Face hub by name, over `datasets`; knows no tokens.

`hub:owner/name?config=NAME&split=NAME`; split is `train` unless given. The name may also be a local
folder. Positions are bytes of the text column, shared evenly among the rows. Needs the extra `hub`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from ptft_lightning.data.bad_documents import EMPTY_FILE, BadDocuments
from ptft_lightning.data.documents import Placed, Unit
from ptft_lightning.data.formats.arrow import ROWS, check_column, read_texts
from ptft_lightning.data.sources import HUB
from ptft_lightning.errors import UserError


def table_size(path: str, column: str) -> int:
    """Bytes of the text column.

    Raises:
        UserError: the data set cannot be loaded, or has no such column.
    """
    data = _load(path)
    check_column(path, data.features.arrow_schema, column)
    size: int = data.data.column(column).nbytes
    return size if len(data) else 0


def table_starts(path: str, column: str) -> Iterator[int]:
    """Where each row starts, were all of one length."""
    size, rows = table_size(path, column), len(_load(path))
    return (row * size // rows for row in range(rows))


def read_rows(unit: Unit, column: str, bad: BadDocuments) -> Iterator[Placed]:
    """Yield the documents of the rows that start in `unit`."""
    size, rows = table_size(unit.path, column), len(_load(unit.path))
    if not rows:
        bad.add(EMPTY_FILE, unit.path, "a data set without rows")
        return
    # The first row at or after a position: a row has several bytes, so its start is its own.
    first, end = (-(-position * rows // size) for position in (unit.start, unit.end))
    data = _load(unit.path).select_columns(column).with_format("arrow")
    for row in range(first, end, ROWS):
        yield from read_texts(data[row : min(row + ROWS, end)][column], unit.path, row, bad)


@lru_cache(maxsize=4)
def _load(path: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(
            f"reading '{path}' needs datasets: pip install 'ptft-lightning[hub]'"
        ) from error
    name, _, query = path.removeprefix(HUB).partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    if not name or not given.keys() <= {"config", "split"}:
        raise UserError(f"'{path}': expected {HUB}owner/name?config=NAME&split=NAME")
    try:
        return load_dataset(name, given.get("config"), split=given.get("split", "train"))
    except Exception as error:  # whatever network, hub, builders and their files may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot load '{path}': {reason}") from error
