"""A text column as Arrow holds it, to documents; knows neither files nor tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ptft_lightning.data.bad_documents import BAD_BYTES, NO_TEXT, BadDocuments
from ptft_lightning.data.decoding import fit_text
from ptft_lightning.data.documents import Placed, no_column
from ptft_lightning.errors import UserError

ROWS = 1024  # rows in memory at once


def check_column(path: str, schema: Any, column: str) -> None:
    """Whether an Arrow schema has the text column.

    Raises:
        UserError: it has not, or the column holds something else.
    """
    from pyarrow import types

    if column not in schema.names:
        raise no_column(path, column, schema.names)
    kind = schema.field(column).type
    inner = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner)):
        raise UserError(
            f"{path}: the column '{column}' holds {kind}, not text: name one with --data.column "
            "(or --column)"
        )


def read_texts(values: Any, path: str, row: int, bad: BadDocuments) -> Iterator[Placed]:
    """The documents in an Arrow array or chunked array whose first value is that of row `row`."""
    for number, text in enumerate(_python(values), row):
        place = f"{path} row {number}"
        if text is None:
            bad.add(NO_TEXT, place, "no text in the column")
        elif isinstance(text, bytes):
            bad.add(BAD_BYTES, place, "not UTF-8")
        elif fit_text(text, place, bad) is not None:
            yield number, text


def _python(values: Any) -> list[str | bytes | None]:
    """The values as Python's; those that are not valid UTF-8, as no writer checks, as bytes."""
    try:
        listed: list[str | bytes | None] = values.to_pylist()
    except UnicodeDecodeError:
        listed = [_one(value) for value in values]
    return listed


def _one(value: Any) -> str | bytes | None:
    try:
        text: str | None = value.as_py()
    except UnicodeDecodeError:
        return bytes(value.as_buffer())
    return text
