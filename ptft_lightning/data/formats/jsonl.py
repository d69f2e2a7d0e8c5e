"""Lines of JSON: a document is the text column of one line; knows no tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO

from ptft_lightning.data.bad_documents import BROKEN_JSON, NO_TEXT, TOO_LONG, BadDocuments
from ptft_lightning.data.decoding import decode, fit_text
from ptft_lightning.data.documents import Placed, Reading, Unit, no_column
from ptft_lightning.data.streams import bounded_lines, seek_line


def read_jsonl(
    stream: IO[bytes], unit: Unit, reading: Reading, bad: BadDocuments
) -> Iterator[Placed]:
    """Yield the documents of the lines that start in `unit`.

    Raises:
        UserError: the first line of the file has no such column.
    """
    at = seek_line(stream, unit.start)
    if at >= unit.end:
        return
    for line, length in bounded_lines(stream):
        place = f"{unit.path} at byte {at}"
        if length > len(line):
            bad.add(TOO_LONG, place, f"a line of {length / 1e6:.0f} MB")
        elif (text := _json_text(line, reading, place, bad, first=at == 0)) is not None:
            yield at, text
        at += length
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
        if first and reading.column not in record:
            raise no_column(place, reading.column, sorted(record))
        bad.add(NO_TEXT, place, f"no text in column '{reading.column}'")
    else:
        return fit_text(record[reading.column], place, bad)
    return None
