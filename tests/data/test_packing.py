"""Packing against plain references: nothing lost, nothing overflows, little wasted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.data.packing import (
    best_fit,
    pack_documents,
    read_block,
    read_pieces,
)

CAPACITY = 512


def lognormal(seed: int, count: int = 3000) -> np.ndarray:
    """Lengths of documents as text has them: median 90, some far longer."""
    drawn = np.random.default_rng(seed).lognormal(4.5, 1.0, count)
    return np.clip(drawn, 1, CAPACITY).astype(np.int64)


def fit_decreasing(lengths: list[int], capacity: int, best: bool) -> int:
    """Rows that best-fit or first-fit decreasing uses, in plain Python."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in range(len(free)) if free[row] >= length]
        if not fitting:
            free.append(capacity - length)
        else:
            free[min(fitting, key=free.__getitem__) if best else fitting[0]] -= length
    return len(free)


@st.composite
def items(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    capacity = draw(st.integers(1, 60))
    lengths = draw(st.lists(st.integers(0, capacity), max_size=60))
    return np.array(lengths, np.int64), capacity


@given(case=items())
def test_best_fit_places_every_item_once_and_never_overflows(case: tuple[np.ndarray, int]) -> None:
    lengths, capacity = case
    rows = best_fit(lengths, capacity)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(len(row) > 0 for row in rows)
    assert all(lengths[row].sum() <= capacity for row in rows)
    assert len(rows) == fit_decreasing(lengths.tolist(), capacity, best=True)
    assert rows == best_fit(lengths.copy(), capacity)


@pytest.mark.parametrize("seed", range(4))
def test_best_fit_wastes_little(seed: int) -> None:
    lengths = lognormal(seed)
    rows = best_fit(lengths, CAPACITY)
    assert len(rows) <= fit_decreasing(lengths.tolist(), CAPACITY, best=False)
    assert 1 - lengths.sum() / (len(rows) * CAPACITY) < 0.05
    padded = 1 - lengths.mean() / CAPACITY
    assert padded > 0.5  # what one document a row would waste


def test_ties_keep_their_order() -> None:
    assert best_fit(np.array([2, 3, 2, 3, 2]), 7) == [[1, 3], [0, 2, 4]]
    alike = best_fit(np.tile([3, 7], 600), 10)  # the last row opened is the first one filled
    assert alike == [[2 * i + 1, 1198 - 2 * i] for i in range(600)]


# Layout `documents`.

document_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def ends_of(lengths: list[int]) -> np.ndarray:
    return np.cumsum(np.array(lengths, np.int64))


def read_packed(ends: np.ndarray, length: int) -> list[tuple[list[int], list[int]]]:
    """Rows in layout `documents` of a shard whose tokens are 0, 1, 2, ..."""
    pieces = pack_documents(ends, length)
    rows = []
    for row in range(len(pieces.first) - 1):
        out, documents = np.full(length + 1, -1), np.zeros(length + 1, np.int64)
        read_pieces(np.arange(ends[-1]), pieces, row, out, documents)
        rows.append((out.tolist(), documents.tolist()))
    return rows


@given(lengths=document_lengths, length=st.integers(1, 25))
def test_packed_rows_hold_every_token_once(lengths: list[int], length: int) -> None:
    ends = ends_of(lengths)
    rows = read_packed(ends, length)
    filled = [token for tokens, _ in rows for token in tokens if token >= 0]
    assert sorted(filled) == list(range(ends[-1]))
    for tokens, documents in rows:
        assert documents[-1] == 0  # nothing follows a packed row
        assert [d > 0 for d in documents] == [t >= 0 for t in tokens]
        assert documents[0] == 1
        numbered = [d for d in documents if d]
        assert numbered == sorted(numbered)
        assert set(numbered) == set(range(1, max(numbered) + 1))
        assert documents[: len(numbered)] == numbered  # padding comes last


@given(lengths=document_lengths, length=st.integers(1, 25))
def test_packed_rows_keep_documents_whole(lengths: list[int], length: int) -> None:
    """Each numbered stretch is a document, or a cut of a longer one at a multiple of `length`."""
    ends = ends_of(lengths)
    begins = ends - np.array(lengths)
    expected = {
        (int(start), int(min(start + length, end)))
        for begin, end in zip(begins, ends, strict=True)
        for start in range(begin, end, length)
    }
    found = []
    for tokens, documents in read_packed(ends, length):
        for number in range(1, max(documents) + 1):
            at = [t for t, d in zip(tokens, documents, strict=True) if d == number]
            assert at == list(range(at[0], at[-1] + 1))
            found.append((at[0], at[-1] + 1))
    assert len(found) == len(expected)
    assert set(found) == expected


def test_documents_without_tokens_are_harmless() -> None:
    """A tokenizer without begin and end may give none (a text of control characters)."""
    ends = np.array([0, 3, 3, 8, 8], np.int64)
    pieces = pack_documents(ends, 4)
    rows = len(pieces.first) - 1
    seen: list[int] = []
    for row in range(rows):
        out, documents = np.full(5, -1), np.zeros(5, np.int64)
        read_pieces(np.arange(8), pieces, row, out, documents)
        seen += [t for t in out.tolist() if t >= 0]
    assert sorted(seen) == list(range(8))


def test_no_documents() -> None:
    pieces = pack_documents(np.zeros(0, np.int64), 8)
    assert pieces.first.tolist() == [0]
    assert pieces.starts.size == 0


# Layout `blocks`.


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any),
    length=st.integers(1, 25),
)
def test_blocks_are_the_stream_cut_everywhere(lengths: list[int], length: int) -> None:
    ends = ends_of(lengths)
    stream = list(range(100, 100 + int(ends[-1])))
    owner = [d for d, size in enumerate(lengths) for _ in range(size)]
    rows = -(-len(stream) // length)
    covered: list[int] = []
    for row in range(rows):
        out, documents = np.full(length + 1, -1), np.zeros(length + 1, np.int64)
        read_block(np.array(stream), ends, row, length, out, documents)
        piece = slice(row * length, row * length + length + 1)  # and the token that follows
        real = len(stream[piece])
        assert out.tolist() == stream[piece] + [-1] * (length + 1 - real)
        assert documents.tolist()[real:] == [0] * (length + 1 - real)
        assert documents[0] == 1
        for i in range(real):
            for j in range(i + 1, real):
                same = owner[piece][i] == owner[piece][j]
                assert (documents[i] == documents[j]) == same
        assert (np.diff(documents[:real]) >= 0).all()
        covered += [t for t in out[:length].tolist() if t >= 0]
    assert covered == stream
