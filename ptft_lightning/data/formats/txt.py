"""Plain text: a document is a block of lines, blank lines divide; knows no tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from ptft_lightning.data.bad_documents import TOO_LONG, BadDocuments
from ptft_lightning.data.decoding import decode, fit_text
from ptft_lightning.data.documents import Placed, Reading, Unit
from ptft_lightning.data.streams import MAX_LINE, bounded_lines, seek_line


def read_txt(
    stream: IO[bytes], unit: Unit, reading: Reading, bad: BadDocuments
) -> Iterator[Placed]:
    """Yield the documents that start in `unit`."""
    at = seek_line(stream, unit.start)
    inside = at > 0 and not _after_blank_line(stream, at)
    lines: list[bytes] = []
    began, size = at, 0  # of the document being read; size 0 between documents
    for line, length in bounded_lines(stream):
        if not size and at >= unit.end:
            return
        if length == len(line) and not line.strip():
            if size:
                yield from _join(lines, size, unit.path, began, reading, bad)
            lines, size, inside = [], 0, False
        elif not inside:
            began = began if size else at
            size += length
            lines.append(line)
            if size > MAX_LINE:
                lines = []
        at += length
    if size:
        yield from _join(lines, size, unit.path, began, reading, bad)


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
    lines: list[bytes], size: int, path: str, began: int, reading: Reading, bad: BadDocuments
) -> Iterator[Placed]:
    place = f"{path} at byte {began}"
    if size > MAX_LINE:
        bad.add(TOO_LONG, place, f"a document of {size / 1e6:.0f} MB (blank lines divide)")
        return
    text = decode(b"".join(lines), reading.encoding, place, bad)
    text = None if text is None else fit_text(text.rstrip("\r\n"), place, bad)
    if text is not None:
        yield began, text
