"""Attention within a window in blocks of it, so that time and memory grow with the length alone.

The window of a block of W queries lies in its own W keys and in those of the blocks beside it
(Beltagy et al. 2020): rows are cut into N blocks, each of which looks at S = 2 W keys, or at 3 W
where it looks both ways. The result is that of a mask of all pairs, up to the order of sums.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ptft_lightning.backbones.attention import attention

SMALLEST = 64  # queries in a block: in smaller ones the work is all in starting it
WORTH = 2  # rows of as many times a block's keys are cut (benchmarks/long_rows.py)
PAST_END, OUTSIDE = -1, -2  # numbers no document has


def cuts(length: int, window: int, causal: bool) -> bool:
    """Whether rows of `length` tokens are worth cutting; a length being traced is never asked."""
    if torch.compiler.is_exporting():
        return False
    return length > WORTH * _seen(block_size(window), causal)


def pairs(length: int, window: int | None, causal: bool) -> int:
    """Pairs of a query and a key that are computed for a row: T x T, or N W x S in blocks."""
    if window is None or not cuts(length, window, causal):
        return length * length
    size = block_size(window)
    return -(-length // size) * size * _seen(size, causal)


def window_mask(
    documents: Tensor | None,
    causal: bool,
    dtype: torch.dtype,
    shape: tuple[int, int],
    window: int,
    device: torch.device | None,
) -> Tensor:
    """The additive mask of each block of (B, T) tokens, (B, N, 1, W, S) with 0 and -inf; see
    `attention_mask`.

    What fills the last block attends to itself, so that no row of scores is empty.
    """
    size = block_size(window)
    seen = _seen(size, causal)
    if documents is None:
        documents = torch.zeros(shape, dtype=torch.long, device=device)
    queries = F.pad(documents, (0, -shape[1] % size), value=PAST_END)
    keys = F.pad(queries, (size, seen - 2 * size), value=OUTSIDE).unfold(1, seen, size)
    key = torch.arange(seen, device=documents.device)
    query = key[size : 2 * size, None]
    near = (query - key).abs() <= window
    if causal:
        near = near & (key <= query)
    allowed = near & (queries.reshape(len(queries), -1, size, 1) == keys[:, :, None])
    mask = torch.zeros(allowed.shape, dtype=dtype, device=documents.device)
    return mask.masked_fill_(~allowed, -math.inf)[:, :, None]


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float
) -> Tensor:
    """(B, H, T, D) each and a mask of `window_mask` -> (B, H, T, D)."""
    rows, length = query.shape[0], query.shape[2]
    count, size, seen = mask.shape[1], mask.shape[3], mask.shape[4]
    rest = count * size - length
    queries = _blocks(F.pad(query, (0, 0, 0, rest)), size)
    sides = (0, 0, size, rest + seen - 2 * size)
    keys, values = (_spans(_blocks(F.pad(x, sides), size), count) for x in (key, value))
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (queries, keys, values))
    mixed = attention(q, k, v, mask.flatten(0, 1), False, dropout)
    mixed = mixed.view(rows, count, *mixed.shape[1:]).transpose(1, 2)
    return mixed.flatten(2, 3)[:, :, :length]


def _blocks(x: Tensor, size: int) -> Tensor:
    """(B, H, N W, D) -> (B, H, N, W, D)."""
    return x.reshape(*x.shape[:2], -1, size, x.shape[-1])


def _spans(blocks: Tensor, count: int) -> Tensor:
    """(B, H, N + 1 or N + 2, W, D) -> (B, H, N, S, D): each block and those beside it."""
    beside = blocks.shape[2] - count
    return torch.cat([blocks[:, :, i : i + count] for i in range(beside + 1)], dim=3)


def block_size(window: int) -> int:
    """W: queries that are computed together."""
    return max(window, SMALLEST)


def _seen(size: int, causal: bool) -> int:
    return (2 if causal else 3) * size
