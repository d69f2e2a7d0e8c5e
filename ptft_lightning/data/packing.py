"""Documents -> rows without waste: where the tokens of each row lie; knows no files and no models.

Layouts of rows of T tokens: `blocks` cuts the stream of a shard every T tokens, whatever begins or
ends there; `documents` keeps documents whole (longer ones are cut), packed best-fit;
`sentence_pairs` frames neighbouring sentences as pairs (`pair_packing`).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Layout = Literal["blocks", "documents", "sentence_pairs"]
Index = npt.NDArray[np.int64]
Ids = npt.NDArray[np.integer[Any]]


class Pieces(NamedTuple):
    """Stretches of a shard's tokens and the row each goes to; sorted by row."""

    starts: Index
    lengths: Index
    first: Index
    """(rows + 1,): pieces first[r]..first[r+1] make row r."""


def best_fit(lengths: Index, capacity: int) -> list[list[int]]:
    """Pack items of `lengths` (each <= capacity) into rows: best-fit decreasing (Johnson 1973).

    Returns the items of each row. Ties keep the given order, so the result is deterministic.
    """
    rows: list[list[int]] = []
    # rows_with[c]: rows with c free places; `available` has bit c set where there are any.
    rows_with: list[list[int]] = [[] for _ in range(capacity + 1)]
    available = 0
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        fitting = available >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = rows_with[free].pop()
            if not rows_with[free]:
                available &= ~(1 << free)
            rows[row].append(item)
        else:
            free, row = capacity, len(rows)
            rows.append([item])
        rows_with[free - length].append(row)
        available |= 1 << (free - length)
    return rows


def pack_documents(ends: Index, length: int) -> Pieces:
    """The rows of a shard in layout `documents`; documents longer than `length` are cut."""
    begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    sizes = ends - begins
    cuts = np.maximum(1, -(-sizes // length))
    document = np.repeat(np.arange(len(ends)), cuts)
    part = np.arange(len(document)) - np.repeat(np.cumsum(cuts) - cuts, cuts)
    starts = begins[document] + part * length
    lengths = np.minimum(length, ends[document] - starts)
    rows = best_fit(lengths, length)
    order = np.array([item for row in rows for item in row], np.int64)
    first = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    return Pieces(starts[order], lengths[order], first)


def document_rows(ends: Index, length: int) -> int:
    """Rows of a shard in layout `documents`."""
    return len(pack_documents(ends, length).first) - 1


class Stream(Protocol):
    """What there is for each token of a shard, read by slices."""

    def __getitem__(self, at: slice, /) -> Ids: ...


def read_block(tokens: Stream, ends: Ids, row: int, length: int, out: Ids, documents: Ids) -> None:
    """Fill `out` and `documents` (T + 1,) with row `row` and the token after it."""
    start = row * length
    piece = tokens[start : start + length + 1]
    stop = start + len(piece)
    out[: len(piece)] = piece
    first, last = ends.searchsorted((start + 1, stop)).tolist()
    at = 0
    for number, end in enumerate((*ends[first:last].tolist(), stop), start=1):
        documents[at : end - start] = number
        at = end - start


def read_pieces(tokens: Stream, pieces: Pieces, row: int, out: Ids, documents: Ids) -> None:
    """Fill `out` and `documents` (T + 1,) with the whole documents of row `row`."""
    at = 0
    first, last = int(pieces.first[row]), int(pieces.first[row + 1])
    for number, piece in enumerate(range(first, last), start=1):
        start, length = int(pieces.starts[piece]), int(pieces.lengths[piece])
        out[at : at + length] = tokens[start : start + length]
        documents[at : at + length] = number
        at += length
