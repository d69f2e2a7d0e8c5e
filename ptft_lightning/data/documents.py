"""Files in, documents out: txt and jsonl, plain or gzipped, local or any fsspec URL.

Knows nothing of tokens. A `Unit` is a byte range of one file's uncompressed text; the documents of
a unit are those that start inside it, so that units can be read alone, in any order, and together
give every document once.

A `.txt` document is a block of lines; blank lines separate documents. A `.jsonl` document is the
text column of one line.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from gzip import BadGzipFile
from typing import IO, cast

import fsspec

from ptft_lightning.errors import UserError

SUFFIXES = (".txt", ".jsonl")
MAX_REPORTED = 10  # bad documents named one by one; all are counted
DAMAGED = (BadGzipFile, EOFError, zlib.error)  # what reading a broken .gz raises


@dataclass(frozen=True)
class Unit:
    """The documents of `path` that start in bytes [start, end) of its uncompressed text."""

    path: str
    start: int
    end: int


@dataclass
class BadDocuments:
    """What could not be read: a count, and the first few places with the reason."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str, reason: str) -> None:
        """Count one bad document and keep its place while there is room."""
        self.count += 1
        if len(self.places) < MAX_REPORTED:
            self.places.append(f"{place}: {reason}")


def _suffix(path: str) -> str:
    bare = path.removesuffix(".gz")
    for suffix in SUFFIXES:
        if bare.endswith(suffix):
            return suffix
    raise UserError(
        f"cannot read '{path}': expected a name ending in "
        f"{', '.join(SUFFIXES)} or one of these with .gz"
    )


def open_bytes(path: str) -> IO[bytes]:
    """Open a local path or URL for reading, uncompressed.

    Raises:
        UserError: the file is missing.
    """
    try:
        return cast(IO[bytes], fsspec.open(path, "rb", compression="infer").open())
    except FileNotFoundError as error:
        raise UserError(f"file not found: '{path}'") from error
    except IsADirectoryError as error:
        raise UserError(f"'{path}' is a directory: name the files in it") from error


def text_size(path: str) -> int:
    """Uncompressed bytes of `path`; a gzipped file is read through once to count them.

    Raises:
        UserError: the file is missing or damaged.
    """
    _suffix(path)
    with open_bytes(path) as stream:
        if not path.endswith(".gz"):
            return stream.seek(0, 2)
        try:
            return sum(len(block) for block in iter(lambda: stream.read(1 << 22), b""))
        except DAMAGED as error:
            raise UserError(f"'{path}' is damaged, get it again: {error}") from error


def split_units(path: str, size: int, unit_bytes: int) -> list[Unit]:
    """Cut a file of `size` uncompressed bytes into units of about `unit_bytes`."""
    starts = list(range(0, max(size, 1), unit_bytes))
    return [Unit(path, a, min(a + unit_bytes, size)) for a in starts]


def read_unit(unit: Unit, column: str, bad: BadDocuments) -> Iterator[str]:
    """Yield the documents that start inside `unit`; unreadable ones are added to `bad`.

    Raises:
        UserError: the file is missing, or the first record has no such column.
    """
    reader = _read_jsonl if _suffix(unit.path) == ".jsonl" else _read_txt
    with open_bytes(unit.path) as stream:
        yield from reader(stream, unit, column, bad)


def _read_jsonl(stream: IO[bytes], unit: Unit, column: str, bad: BadDocuments) -> Iterator[str]:
    at = _seek_line(stream, unit.start)
    while at < unit.end:
        line = stream.readline()
        if not line:
            return
        place = f"{unit.path} at byte {at}"
        text = _json_text(line, column, place, bad, first=at == 0)
        at += len(line)
        if text is not None:
            yield text


def _seek_line(stream: IO[bytes], start: int) -> int:
    """Move to the first line that starts at or after byte `start`."""
    if start == 0:
        return 0
    stream.seek(start - 1)
    return start - 1 + len(stream.readline())


def _json_text(line: bytes, column: str, place: str, bad: BadDocuments, first: bool) -> str | None:
    if not line.strip():
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        bad.add(place, f"not a JSON line ({error})")
        return None
    if not isinstance(record, dict):
        bad.add(place, "not a JSON object")
    elif not isinstance(record.get(column), str):
        if first:
            raise UserError(
                f"{place}: no text column '{column}'; its columns are {sorted(record)}: "
                "name one with --data.column (or --column)"
            )
        bad.add(place, f"no text column '{column}'")
    else:
        text: str = record[column]
        if not text.strip():
            return None
        try:
            text.encode()
        except UnicodeEncodeError:
            bad.add(place, "half of a surrogate pair (not valid Unicode)")
            return None
        return text
    return None


def _read_txt(stream: IO[bytes], unit: Unit, column: str, bad: BadDocuments) -> Iterator[str]:
    at = _seek_line(stream, unit.start)
    inside = at > 0 and not _after_blank_line(stream, at)
    lines: list[bytes] = []
    began = at
    while line := stream.readline():
        if not lines and at >= unit.end:
            return
        if not line.strip():
            if lines:
                yield from _decode(lines, f"{unit.path} at byte {began}", bad)
                lines = []
            inside = False
        elif not inside:
            began = began if lines else at
            lines.append(line)
        at += len(line)
    if lines:
        yield from _decode(lines, f"{unit.path} at byte {began}", bad)


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


def _decode(lines: list[bytes], place: str, bad: BadDocuments) -> Iterator[str]:
    try:
        text = b"".join(lines).decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        bad.add(place, f"not UTF-8 ({error.reason})")
    else:
        if text.strip():  # a byte order mark or an ideographic space alone is no document
            yield text
