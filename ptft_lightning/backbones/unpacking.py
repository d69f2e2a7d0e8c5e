"""Packed rows to one document a row and back, for backbones that cannot look past a border."""

from __future__ import annotations

import torch
from torch import Tensor


def document_places(documents: Tensor) -> Tensor:
    """(B, T) documents of packed rows -> (D, L) places of their tokens in the flattened rows.

    A row for each document, as long as the longest; -1 past a document's end. Padding is no
    document, unless there is nothing else: then the backbone still has something to read.
    """
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    begins = starts.flatten().nonzero()[:, 0]
    lengths = torch.diff(begins, append=begins.new_tensor([documents.numel()]))
    real = documents.flatten()[begins] != 0
    if real.any():
        begins, lengths = begins[real], lengths[real]
    offsets = torch.arange(int(lengths.max()), device=documents.device)
    return torch.where(offsets < lengths[:, None], begins[:, None] + offsets, -1)


def unpack(values: Tensor, places: Tensor) -> Tensor:
    """(B, T, ...) values of packed rows -> (D, L, ...), those of place 0 past a document's end."""
    return values.flatten(0, 1)[places.clamp(min=0)]


def pack_again(values: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """(D, L, ...) values of documents -> (B, T, ...) in their places; 0 at padding."""
    inside = places >= 0
    out = values.new_zeros(shape[0] * shape[1], *values.shape[2:])
    out = out.index_put((places[inside],), values[inside])
    return out.view(*shape, *values.shape[2:])
