"""Parquet files: units are row groups, and only the text column is read; knows no tokens.

Positions are bytes of the text column as its row groups add up, so that a unit's length says how
much text it holds. Needs the extra `parquet`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import IO, Any

from ptft_lightning.data.bad_documents import DAMAGED_FILE, EMPTY_FILE, BadDocuments
from ptft_lightning.data.documents import Placed, Unit
from ptft_lightning.data.formats.arrow import ROWS, check_column, read_texts
from ptft_lightning.data.streams import open_bytes
from ptft_lightning.errors import UserError


def table_size(path: str, column: str) -> int:
    """Bytes of the text column, as stored before compression; 0 for a damaged file.

    Raises:
        UserError: no such column, or pyarrow is not installed.
    """
    return _ends(path, column)[-1]


def table_starts(path: str, column: str) -> list[int]:
    """Where each row group starts in the text column."""
    return _ends(path, column)[:-1]


def read_rows(unit: Unit, column: str, bad: BadDocuments) -> Iterator[Placed]:
    """Yield the documents of the row groups that start in `unit`; a damaged one is left out."""
    with open_bytes(unit.path) as stream:
        if not stream.read(1):
            bad.add(EMPTY_FILE, unit.path, "an empty file")
            return
        try:
            file = _open(unit.path, stream)
        except _damage() as error:
            bad.add(DAMAGED_FILE, unit.path, f"damaged ({error})")
            return
        if not file.metadata.num_rows:
            bad.add(EMPTY_FILE, unit.path, "a table without rows")
        row = 0
        for group, start in enumerate(_group_ends(file, unit.path, column)[:-1]):
            count = file.metadata.row_group(group).num_rows
            if unit.start <= start < unit.end:
                yield from _read_group(file, group, column, unit.path, row, bad)
            row += count


def _read_group(
    file: Any, group: int, column: str, path: str, row: int, bad: BadDocuments
) -> Iterator[Placed]:
    try:
        for batch in file.iter_batches(ROWS, row_groups=[group], columns=[column]):
            yield from read_texts(batch.column(column), path, row, bad)
            row += len(batch)
    except _damage() as error:
        bad.add(DAMAGED_FILE, f"{path} row {row}", f"row group {group} is damaged ({error})")


def _ends(path: str, column: str) -> list[int]:
    with open_bytes(path) as stream:
        try:
            return _group_ends(_open(path, stream), path, column)
        except _damage():
            return [0]  # counted by who reads it


def _group_ends(file: Any, path: str, column: str) -> list[int]:
    """0, and where each row group ends in the text column."""
    check_column(path, file.schema_arrow, column)
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    chunks = [[group.column(i) for i in range(group.num_columns)] for group in groups]
    sizes = (
        sum(c.total_uncompressed_size for c in row if c.path_in_schema == column) for row in chunks
    )
    return [0, *accumulate(sizes)]


def _open(path: str, stream: IO[bytes]) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(
            f"reading '{path}' needs pyarrow: pip install 'ptft-lightning[parquet]'"
        ) from error
    return ParquetFile(stream)


def _damage() -> tuple[type[Exception], ...]:
    """What reading a damaged file raises."""
    try:
        from pyarrow import ArrowException
    except ImportError:  # said by `_open`
        return (OSError,)
    return (ArrowException, OSError)
