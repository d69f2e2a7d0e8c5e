"""Files in, documents out: lines read here, tables by the file of their format; knows no tokens.

A `Unit` is a byte range of one file's text; the documents of a unit are those that start inside
it, so that units can be read alone, in any order, and together give every document once.

A `.txt` document is a block of lines; blank lines separate documents. A `.jsonl` document is the
text column of one line; of a table (`.csv`, `.tsv`, `.parquet`, a hub data set), that of one row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Protocol

from ptft_lightning.data.bad_documents import (
    BROKEN_JSON,
    DAMAGED_FILE,
    EMPTY_FILE,
    NO_TEXT,
    TOO_LONG,
    BadDocuments,
)
from ptft_lightning.data.decoding import Encoding, check_encoding, decode, fit_text
from ptft_lightning.data.sources import HUB, PARQUET, TABLES, suffix_of
from ptft_lightning.data.streams import (
    COMPRESSED,
    MAX_LINE,
    Damaged,
    bounded_lines,
    open_bytes,
    seek_line,
    stream_size,
)
from ptft_lightning.errors import UserError


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

    def read_rows(self, unit: Unit, column: str, bad: BadDocuments) -> Iterator[str]:
        """The documents of a unit."""
        ...


def _row_reader(path: str) -> RowReader | None:
    """The reader of a format whose rows are no lines, loaded when a file of it is there."""
    if path.startswith(HUB):
        from ptft_lightning.data import hub

        return hub
    if suffix_of(path) == PARQUET:
        from ptft_lightning.data import parquet

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
        from ptft_lightning.data.separated import record_starts

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

    def _lines(self, stream: IO[bytes], unit: Unit, bad: BadDocuments) -> Iterator[str]:
        suffix = suffix_of(unit.path)
        if suffix in TABLES:
            from ptft_lightning.data.separated import read_separated

            return read_separated(stream, unit, self.reading, bad)
        return (_read_jsonl if suffix == ".jsonl" else _read_txt)(stream, unit, self.reading, bad)


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


def _read_jsonl(
    stream: IO[bytes], unit: Unit, reading: Reading, bad: BadDocuments
) -> Iterator[str]:
    at = seek_line(stream, unit.start)
    if at >= unit.end:
        return
    for line, length in bounded_lines(stream):
        place = f"{unit.path} at byte {at}"
        if length > len(line):
            bad.add(TOO_LONG, place, f"a line of {length / 1e6:.0f} MB")
            text = None
        else:
            text = _json_text(line, reading, place, bad, first=at == 0)
        at += length
        if text is not None:
            yield text
        if at >= unit.end:
            return


def _json_text(
    raw: bytes, reading: Reading, place: str, bad: BadDocuments, first: bool
) -> str | None:
    if not raw.strip():
        return None
    line = decode(raw, reading.encoding, place, bad)
    if line is None:
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        bad.add(BROKEN_JSON, place, f"not a JSON line ({error})")
        return None
    if not isinstance(record, dict):
        bad.add(BROKEN_JSON, place, "not a JSON object")
    elif not isinstance(record.get(reading.column), str):
        if first:
            raise no_column(place, reading.column, sorted(record))
        bad.add(NO_TEXT, place, f"no text column '{reading.column}'")
    else:
        return fit_text(record[reading.column], place, bad)
    return None


def _read_txt(stream: IO[bytes], unit: Unit, reading: Reading, bad: BadDocuments) -> Iterator[str]:
    at = seek_line(stream, unit.start)
    inside = at > 0 and not _after_blank_line(stream, at)
    lines: list[bytes] = []
    began, size = at, 0  # of the document being read; size 0 between documents
    for line, length in bounded_lines(stream):
        if not size and at >= unit.end:
            return
        if length == len(line) and not line.strip():
            if size:
                yield from _join(lines, size, f"{unit.path} at byte {began}", reading, bad)
            lines, size, inside = [], 0, False
        elif not inside:
            began = began if size else at
            size += length
            lines.append(line)
            if size > MAX_LINE:
                lines = []
        at += length
    if size:
        yield from _join(lines, size, f"{unit.path} at byte {began}", reading, bad)


def _after_blank_line(stream: IO[bytes], at: int) -> bool:
    """Whether the line before byte `at` is blank (so that a document starts at `at`)."""
    back = 0
    while back < at:  # until the whole line is seen, or enough of it
        back = min(at, 2 * back + 4096)
        stream.seek(at - back)
        _, newline, line = stream.read(back)[:-1].rpartition(b"\n")
        if newline or line.strip():
            return not line.strip()
    return True


def _join(
    lines: list[bytes], size: int, place: str, reading: Reading, bad: BadDocuments
) -> Iterator[str]:
    if size > MAX_LINE:
        bad.add(TOO_LONG, place, f"a document of {size / 1e6:.0f} MB (blank lines divide)")
        return
    text = decode(b"".join(lines), reading.encoding, place, bad)
    text = None if text is None else fit_text(text.rstrip("\r\n"), place, bad)
    if text is not None:
        yield text
