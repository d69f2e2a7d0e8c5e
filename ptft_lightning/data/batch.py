"""The one batch format of both phases; knows nothing of where rows come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.integer[Any]]


@dataclass
class Batch:
    """Rows of packed documents with what is to be predicted.

    B rows of T tokens. Attention never crosses documents.
    """

    tokens: Tensor
    """(B, T) int64 token ids."""
    documents: Tensor | None
    """(B, T) int64: 0 = padding, 1.. = which document of the row; None = one full document each."""
    positions: Tensor | None
    """(B, T) int64 position within the document; None = 0..T-1 in every row."""
    segments: Tensor | None
    """(B, T) int64: 0 for a first, 1 for a second sentence; None = all 0."""
    bounds: Tensor
    """(B*T + 1,) int32: where documents begin in the flattened rows, then B*T to the end; for
    kernels that take cumulative lengths."""
    samples: Tensor
    """(N,) int64: the number of each sample (phase one: a row; phase two: an example), -1 where
    a short micro-batch was filled up."""
    targets: dict[str, Tensor]
    """What the objective's or task's numpy half made for its torch half."""
    step_samples: int
    """Samples of the whole optimizer step, over all ranks and micro-batches."""
    real_tokens: int
    """Tokens that are not padding."""
    step_targets: int = 0
    """Targets of the whole optimizer step, where samples have different numbers of them."""
    sources: Tensor | None = None
    """(B,) int64: which text of a mixture each row is from; None where there is one."""
    hashes: Tensor | None = None
    """(N,) int64: hash of each sample's tokens, documents and targets; only for an audit."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """A copy on `device`."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy in pinned memory (called by the DataLoader)."""
        return self._map(lambda t: t.pin_memory())

    def _map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = move(value)
        targets = {name: move(value) for name, value in self.targets.items()}
        return replace(self, targets=targets, **moved)


def begins_of(documents: Ints) -> Ints:
    """Where documents begin in the flattened rows; a run of padding counts as one."""
    flat = documents.reshape(-1)  # in one piece: row by row takes three times as long
    starts = np.empty(flat.shape, bool)
    np.not_equal(flat[1:], flat[:-1], out=starts[1:])
    starts[:: documents.shape[1]] = True
    return np.flatnonzero(starts)


def positions_of(documents: Ints, begins: Ints | None = None) -> Ints:
    """Position of each token within its document, (B, T); `begins` where they are known."""
    begins = begins_of(documents) if begins is None else begins
    positions = np.repeat(begins, np.diff(bounds_of(documents, begins)[: len(begins) + 1]))
    np.subtract(np.arange(documents.size), positions, out=positions)
    return positions.reshape(documents.shape)


def bounds_of(documents: Ints, begins: Ints | None = None) -> Ints:
    """Cumulative lengths of the documents of all rows, (B*T + 1,) int32; see `positions_of`."""
    begins = begins_of(documents) if begins is None else begins
    bounds = np.full(documents.size + 1, documents.size, np.int32)
    bounds[: len(begins)] = begins
    return bounds


def build_batch(
    tokens: Ints,
    documents: Ints,
    samples: Ints,
    targets: dict[str, npt.NDArray[Any]],
    step_samples: int,
    segments: Ints | None = None,
    hashes: Ints | None = None,
    step_targets: int = 0,
    sources: Ints | None = None,
) -> Batch:
    """Numpy arrays (shapes as in `Batch`) to a batch; full one-document rows take the fast path."""
    documents = np.ascontiguousarray(documents, np.int64)
    begins, real = begins_of(documents), int(np.count_nonzero(documents))
    full = len(begins) == len(documents) and real == documents.size
    return Batch(
        tokens=torch.from_numpy(np.ascontiguousarray(tokens, np.int64)),
        documents=None if full else torch.from_numpy(documents),
        positions=None if full else torch.from_numpy(positions_of(documents, begins)),
        segments=None if segments is None else torch.from_numpy(segments.astype(np.int64)),
        bounds=torch.from_numpy(bounds_of(documents, begins)),
        samples=torch.from_numpy(np.array(samples, np.int64)),
        targets={k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in targets.items()},
        step_samples=step_samples,
        real_tokens=real,
        step_targets=step_targets,
        sources=None if sources is None else torch.from_numpy(sources),
        hashes=None if hashes is None else torch.from_numpy(hashes),
    )


def hash_rows(arrays: list[Ints]) -> Ints:
    """A hash of each row over several (B, ...) arrays, (B,) int64."""
    hashes = np.empty(len(arrays[0]), np.int64)
    for row in range(len(hashes)):
        digest = hashlib.blake2b(digest_size=8)
        for array in arrays:
            digest.update(np.ascontiguousarray(array[row]).tobytes())
        hashes[row] = int.from_bytes(digest.digest(), "little", signed=True)
    return hashes
