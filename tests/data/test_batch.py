"""The batch format: derived fields against slow references, moves that forget nothing."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from ptft_lightning.data.batch import Batch, bounds_of, build_batch, positions_of

shapes = st.tuples(st.integers(1, 5), st.integers(1, 12))
document_rows = shapes.flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(0, 2)))


def batch_of(documents: Any, **more: Any) -> Batch:
    documents = np.array(documents)
    tokens = np.arange(documents.size, dtype=np.uint16).reshape(documents.shape)
    samples = np.arange(len(documents))
    targets = {"labels": np.array(tokens, np.int64), "slots": np.zeros((2, 3), np.int64)}
    return build_batch(tokens, documents, samples, targets, step_samples=9, **more)


@given(documents=document_rows)
def test_positions_count_from_each_documents_start(documents: np.ndarray) -> None:
    expected = np.zeros_like(documents)
    for row in range(documents.shape[0]):
        position = 0
        for column in range(1, documents.shape[1]):
            same = documents[row, column] == documents[row, column - 1]
            position = position + 1 if same else 0
            expected[row, column] = position
    assert (positions_of(documents) == expected).all()


@given(documents=document_rows)
def test_bounds_are_the_cumulative_lengths_of_all_documents(documents: np.ndarray) -> None:
    cumulative = [0]
    for row in documents.tolist():
        for column in range(1, len(row)):
            if row[column] != row[column - 1]:
                cumulative.append(cumulative[-1] + column - (cumulative[-1] % len(row)))
        cumulative.append((cumulative[-1] // len(row) + 1) * len(row))
    size = documents.size
    expected = cumulative + [size] * (size + 1 - len(cumulative))
    bounds = bounds_of(documents)
    assert bounds.tolist() == expected
    assert bounds.dtype == np.int32
    assert bounds.shape == (size + 1,)  # fixed, so that compiled code sees one shape


@pytest.mark.parametrize(
    ("documents", "fast"),
    [
        ([[1, 1, 1], [1, 1, 1]], True),
        ([[1, 1, 1], [1, 1, 0]], False),  # padding
        ([[1, 1, 1], [1, 2, 2]], False),  # two documents
        ([[0, 0, 0], [1, 1, 1]], False),  # an empty row
        ([[0, 0, 0], [0, 0, 0]], False),
    ],
)
def test_fast_path_only_where_every_row_is_one_full_document(
    documents: list[list[int]], fast: bool
) -> None:
    batch = batch_of(documents)
    assert (batch.documents is None) == (batch.positions is None) == fast
    if not fast:
        assert batch.documents is not None
        assert batch.documents.tolist() == documents
    assert batch.bounds.tolist() == bounds_of(np.array(documents)).tolist()
    assert batch.real_tokens == np.count_nonzero(documents)


def test_types_are_what_kernels_take() -> None:
    batch = batch_of([[1, 1, 2], [1, 0, 0]], segments=np.ones((2, 3), np.uint8))
    for name in ("tokens", "documents", "positions", "segments", "samples"):
        assert getattr(batch, name).dtype == torch.int64
    assert batch.bounds.dtype == torch.int32
    assert batch.step_samples == 9
    assert batch.hashes is None


def tensors(batch: Batch) -> dict[str, Tensor]:
    own = {f.name: getattr(batch, f.name) for f in fields(batch)}
    found = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    return found | {f"target {name}": value for name, value in batch.targets.items()}


@pytest.mark.parametrize("full", [True, False])
def test_to_moves_every_field(full: bool) -> None:
    batch = batch_of([[1, 1], [1, 1 if full else 0]], hashes=np.array([5, 6], np.int64))
    moved = batch.to("meta")
    assert {name: t.shape for name, t in tensors(moved).items()} == {
        name: t.shape for name, t in tensors(batch).items()
    }
    assert all(t.device.type == "meta" for t in tensors(moved).values())
    assert all(t.device.type == "cpu" for t in tensors(batch).values())  # a copy
    same = batch.to("cpu")
    assert all((t == tensors(batch)[name]).all() for name, t in tensors(same).items())
    assert (same.step_samples, same.real_tokens) == (batch.step_samples, batch.real_tokens)
    assert (same.documents is None) == full


def test_pin_memory_pins_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device, pinning is replaced by a mark."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self + 1000)
    batch = batch_of([[1, 1, 2], [1, 0, 0]], segments=np.ones((2, 3), np.int64))
    pinned = batch.pin_memory()
    for name, tensor in tensors(batch).items():
        assert (tensors(pinned)[name] == tensor + 1000).all(), name
    assert (pinned.step_samples, pinned.real_tokens) == (batch.step_samples, batch.real_tokens)
