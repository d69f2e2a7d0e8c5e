"""Files in, documents out, by the reader of their format; knows no tokens.

A `Unit` is a byte range of one file's text; the documents of a unit are those that start inside
it, so that units can be read alone, in any order, and together give every document once.

A `.txt` document is a block of lines; blank lines separate documents. A `.jsonl` document is the
text column of one line; of a table (`.csv`, `.tsv`, `.parquet`, a hub data set), that of one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Protocol

from ptft_lightning.data.bad_documents import (
    DAMAGED_FILE,
    EMPTY_FILE,
    BadDocuments,
)
from ptft_lightning.data.decoding import Encoding, check_encoding
from ptft_lightning.data.sources import HUB, PARQUET, TABLES, suffix_of
from ptft_lightning.data.streams import (
    COMPRESSED,
    Damaged,
    open_bytes,
    stream_size,
)
from ptft_lightning.errors import UserError

# Where a document starts in its file (the byte of its text; of tables of rows, the row), its text.
Placed = tuple[int, str]


@dataclass(frozen=True)
class Unit:
    """The documents of `path` that start in bytes [start, end) of its uncompressed text."""

    path: str
    start: int
    end: int


@dataclass(frozen=True)
class Reading:
    """How documents are found in files."""

    column: str = "text"
    encoding: Encoding = "utf-8"
    """Of text files; .parquet and hub data sets are UTF-8 by definition."""


class RowReader(Protocol):
    """A reader of row groups; it opens its files itself, and its positions are its own."""

    def table_size(self, path: str, column: str) -> int:
        """Bytes of the column's text, about."""
        ...

    def table_starts(self, path: str, column: str) -> Iterable[int]:
        """Where in those bytes a unit may start."""
        ...

    def read_rows(self, unit: Unit, column: str, bad: BadDocuments) -> Iterator[Placed]:
        """The documents of a unit."""
        ...


def _row_reader(path: str) -> RowReader | None:
    """The reader of a format whose rows are no lines, loaded when a file of it is there."""
    if path.startswith(HUB):
        from ptft_lightning.data.formats import hub

        return hub
    if suffix_of(path) == PARQUET:
        from ptft_lightning.data.formats import parquet

        return parquet
    return None


def text_size(path: str, column: str = "text") -> int:
    """Bytes of text in `path`, uncompressed; a compressed file is read through to count them.

    Raises:
        UserError: the file is missing, of no format we read, or a table without the column.
    """
    rows = _row_reader(path)
    return stream_size(path) if rows is None else rows.table_size(path, column)


def split_units(path: str, size: int, unit_bytes: int, column: str = "text") -> list[Unit]:
    """Cut a file of `size` bytes into units of about `unit_bytes`, at line ends or between rows."""
    rows = _row_reader(path)
    if rows is not None:
        starts = _spaced(rows.table_starts(path, column), unit_bytes)
    elif suffix_of(path) in TABLES:
        from ptft_lightning.data.formats.separated import record_starts

        starts = _spaced(record_starts(path), unit_bytes)
    else:
        starts = list(range(0, max(size, 1), unit_bytes))
    ends = [*starts[1:], size]
    return [Unit(path, a, b) for a, b in zip(starts, ends, strict=True)]


def _spaced(possible: Iterable[int], step: int) -> list[int]:
    """For each multiple of `step` the first possible start there or later."""
    starts = [0]
    for start in possible:
        if start // step > starts[-1] // step:
            starts.append(start)
    return starts


class DocumentReader:
    """Reads units; a compressed file stays open, so that units in their order are one pass.

    A context manager.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.path: str | None = None
        self.stream: IO[bytes] | None = None

    def __enter__(self) -> DocumentReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            self.stream.close()

    def read(self, unit: Unit, bad: BadDocuments) -> Iterator[str]:
        """Yield the texts that `read_placed` gives."""
        return (text for _, text in self.read_placed(unit, bad))

    def read_placed(self, unit: Unit, bad: BadDocuments) -> Iterator[Placed]:
        """Yield the documents that start inside `unit`; unreadable ones are added to `bad`.

        Raises:
            UserError: the file is missing, or the first record has no such column.
        """
        rows = _row_reader(unit.path)
        if rows is not None:
            yield from rows.read_rows(unit, self.reading.column, bad)
            return
        stream = self._open(unit.path)
        try:
            yield from self._lines(stream, unit, bad)
            if unit.path.endswith(COMPRESSED):  # met here, too, if it is right after the last line
                stream.seek(unit.end)
                stream.read(1)
        except Damaged as damage:
            if damage.at == unit.end:  # a document cut off there belongs to an earlier unit
                place = f"{unit.path} at byte {damage.at} of its text"
                bad.add(DAMAGED_FILE, place, f"damaged, the rest is lost ({damage})")
        else:
            if unit.end == 0:
                bad.add(EMPTY_FILE, unit.path, "an empty file")

    def _open(self, path: str) -> IO[bytes]:
        if path != self.path or self.stream is None:
            if self.stream is not None:
                self.stream.close()
            self.stream, self.path = open_bytes(path), path
        return self.stream

    def _lines(self, stream: IO[bytes], unit: Unit, bad: BadDocuments) -> Iterator[Placed]:
        suffix = suffix_of(unit.path)
        if suffix in TABLES:
            from ptft_lightning.data.formats.separated import read_separated as read
        elif suffix == ".jsonl":
            from ptft_lightning.data.formats.jsonl import read_jsonl as read
        else:
            from ptft_lightning.data.formats.txt import read_txt as read
        return read(stream, unit, self.reading, bad)


def read_unit(unit: Unit, reading: Reading, bad: BadDocuments) -> Iterator[str]:
    """The documents of one unit alone."""
    with DocumentReader(reading) as reader:
        yield from reader.read(unit, bad)


def check_file(path: str, reading: Reading) -> None:
    """Look at the beginning of a file, to say what is wrong with all of it before work begins.

    Raises:
        UserError: not in the encoding, or no such column.
    """
    if _row_reader(path) is None:
        check_encoding(path, reading.encoding)
    next(read_unit(Unit(path, 0, 1), reading, BadDocuments()), None)


def no_column(place: str, column: str, names: list[str]) -> UserError:
    """What to say where the text column is missing from the first record."""
    return UserError(
        f"{place}: no text column '{column}'; its columns are {names}: "
        "name one with --data.column (or --column)"
    )
