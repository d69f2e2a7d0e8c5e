"""Lines of text and JSON files with their places, for formats of single tasks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from ptft_lightning.data.streams import Damaged, open_bytes
from ptft_lightning.errors import UserError


def text_lines(path: str) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines without their ends; also of .gz and .zst.

    Raises:
        UserError: the file is missing, damaged or not UTF-8.
    """
    with open_bytes(path) as stream:
        try:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig")
            for number, line in enumerate(text, start=1):
                yield number, line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"'{path}' is not UTF-8: {error}") from error
        except Damaged as error:
            raise UserError(f"'{path}' is damaged, get it again: {error}") from error


def json_records(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Places and objects of a .jsonl file.

    Raises:
        UserError: naming the line that is not a JSON object.
    """
    for number, line in text_lines(path):
        if line.strip():
            place = f"{path} line {number}"
            yield place, _object(place, line)


def json_list(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Places and objects of a .json file that holds a list of them.

    Raises:
        UserError: the file is no such list.
    """
    text = "\n".join(line for _, line in text_lines(path))
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise UserError(f"'{path}' is not a list of JSON objects, as exports are")
    yield from ((f"{path} record {n}", record) for n, record in enumerate(records, start=1))


def _object(place: str, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not a JSON line ({error})") from error
    if not isinstance(record, dict):
        raise UserError(f"{place}: not a JSON object")
    return record
