"""Comma- and tab-separated files: where their records start, and the text column of each.

A record is one line, or several while a quote is open. Quotes that do not match cost one line: a
record of several lines counts only if all of it parses and has every column, else its first line
stands alone. As the lines themselves decide this, planning and reading agree on where records
start, whatever the units. Quotes in a tab-separated file may be bare: lines that have all columns
by themselves are not joined. Knows no tokens.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from typing import IO

from ptft_lightning.data.bad_documents import BROKEN_ROW, TOO_LONG, BadDocuments
from ptft_lightning.data.decoding import CODECS, decode, fit_text
from ptft_lightning.data.documents import Placed, Reading, Unit, no_column
from ptft_lightning.data.streams import MAX_LINE, Damaged, bare_name, bounded_lines, open_bytes
from ptft_lightning.errors import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

TAB = "\t"
csv.field_size_limit(2**31 - 1)  # of a document; the default is 128 KiB


def record_starts(path: str) -> Iterator[int]:
    """Where each record starts, the header too, in one pass over the file."""
    at = 0
    with open_bytes(path) as stream:
        try:
            columns, _ = _header(path)
            for _, length, _ in _records(stream, len(columns), _delimiter(path)):
                yield at
                at += length
        except Damaged:
            return  # counted by who reads the last unit


def read_separated(
    stream: IO[bytes], unit: Unit, reading: Reading, bad: BadDocuments
) -> Iterator[Placed]:
    """Yield the documents of the records in `unit`, which starts at a record.

    Raises:
        UserError: the header has no such column.
    """
    names, first = _header(unit.path)
    if not names:
        return
    names = [_bytes(name).decode(CODECS[reading.encoding], "replace") for name in names]
    if reading.column not in names:
        raise no_column(unit.path, reading.column, names)
    column = names.index(reading.column)
    at = max(unit.start, first)
    stream.seek(at)
    if at >= unit.end:
        return
    delimiter = _delimiter(unit.path)
    for raw, length, looked in _records(stream, len(names), delimiter):
        place = f"{unit.path} at byte {at}"
        fields = looked or _parse(raw, len(names), delimiter)
        if length > len(raw):
            bad.add(TOO_LONG, place, f"a line of {length / 1e6:.0f} MB")
        elif isinstance(fields, str):
            bad.add(BROKEN_ROW, place, fields)
        elif fields:
            text = decode(_bytes(fields[column]), reading.encoding, place, bad)
            text = None if text is None else fit_text(text, place, bad)
            if text is not None:
                yield at, text
        at += length
        if at >= unit.end:
            return


def _delimiter(path: str) -> str:
    return TAB if bare_name(path).endswith(".tsv") else ","


def _bytes(field: str) -> bytes:
    return field.encode("latin-1")


def _header(path: str) -> tuple[list[str], int]:
    """The names of the columns, and how many bytes they and blank lines before them take."""
    delimiter, at = _delimiter(path), 0
    with open_bytes(path) as stream:
        for raw, length, _ in _records(stream, None, delimiter):
            at += length
            fields = _parse(raw, None, delimiter)
            if isinstance(fields, str):
                raise UserError(f"{path}: its first line must name the columns, but {fields}")
            if fields:
                return fields, at
    return [], at


def _records(
    stream: IO[bytes], columns: int | None, delimiter: str
) -> Iterator[tuple[bytes, int, list[str] | None]]:
    """Each record: its bytes, their number, and its fields where they had to be looked at.

    Of a line that is too long the bytes are none. Begins at the start of a record.
    """
    lines = _Lookahead(stream)
    while first := lines.take():
        raw, length = first
        fields = None
        if raw.count(b'"') % 2 and (joined := _join(raw, lines)):
            together = b"".join(joined)
            parsed = _parse(together, columns, delimiter)
            alone = delimiter == TAB and all(x.count(b"\t") + 1 == columns for x in joined)
            if isinstance(parsed, list) and not alone:
                fields, raw, length = parsed, together, len(together)
                for _ in joined[1:]:
                    lines.take()
        yield raw, length, fields


class _Lookahead:
    """Lines that can be looked at before they are taken."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.source = bounded_lines(stream)
        self.waiting: deque[tuple[bytes, int]] = deque()
        self.damage: Damaged | None = None

    def take(self) -> tuple[bytes, int] | None:
        """The next line and its length; None at the end. Damage is met when all before is taken."""
        if self.look(0) is None:
            if self.damage is not None:
                raise self.damage
            return None
        return self.waiting.popleft()

    def look(self, ahead: int) -> tuple[bytes, int] | None:
        """The line so many after the next one."""
        if ahead == len(self.waiting):
            try:
                self.waiting.append(next(self.source))
            except StopIteration:
                return None
            except Damaged as damage:
                self.damage = damage
                return None
        return self.waiting[ahead]


def _join(raw: bytes, lines: _Lookahead) -> list[bytes]:
    """A line with an open quote and those after it, to the one that closes it; or nothing."""
    joined, size = [raw], len(raw)
    while following := lines.look(len(joined) - 1):
        line, length = following
        size += length
        if size > MAX_LINE:
            break
        joined.append(line)
        if line.count(b'"') % 2:
            return joined
    return []


def _parse(raw: bytes, columns: int | None, delimiter: str) -> list[str] | str:
    """The fields of one record, none if it is blank; or what is wrong with it.

    The fields' bytes are as Latin-1, so that the encoding of the text does not matter yet.
    """
    text = raw.removeprefix(BYTE_ORDER_MARK).decode("latin-1")
    if not text.strip():
        return []
    try:
        (fields,) = csv.reader([text], delimiter=delimiter, strict=True)
    except (csv.Error, ValueError) as error:
        if delimiter != TAB or raw.count(b"\n") > 1:
            return f"quotes do not match ({error})"
        fields = text.rstrip("\r\n").split(TAB)  # bare quotes
    if columns not in (None, len(fields)):
        return f"{len(fields)} columns, expected {columns}"
    return fields
