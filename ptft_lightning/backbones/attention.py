"""Attention over packed documents: one function, one signature, the kernel from a static table.

| device | dtype, length | kernel |
|---|---|---|
| CPU | bfloat16, at most 256 tokens | plain batched products |
| CPU | otherwise | torch SDPA |
| CUDA | one full document a row | torch SDPA without a mask (flash) |
| CUDA | packed rows | torch SDPA with a mask (memory-efficient) |

Never timed at run time: a resumed run uses the kernel it used before.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN_MAX_LENGTH = 256  # benchmarks/attention.py


def attention_mask(documents: Tensor | None, causal: bool, dtype: torch.dtype) -> Tensor | None:
    """The additive mask of packed rows, (B, 1, T, T) with 0 and -inf; None where rows are full.

    Made once per forward and shared by all layers. Padding attends padding, so that no row of
    scores is empty.
    """
    if documents is None:
        return None
    allowed = documents[:, :, None] == documents[:, None, :]
    if causal:
        allowed = allowed.tril()
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, -math.inf)[:, None]


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """Scaled dot-product attention, (B, H, T, D) each -> (B, H, T, D).

    `mask` is that of `attention_mask` and already holds the causal part; without one, `causal`
    decides. `dropout` is the probability applied to the attention weights (0 in evaluation).
    """
    short = query.dtype == torch.bfloat16 and query.shape[2] <= PLAIN_MAX_LENGTH
    if query.device.type == "cpu" and short:
        return _plain(query, key, value, mask, causal, dropout)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal and mask is None
    )


def _plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    length, width = query.shape[2:]
    if mask is None and causal:
        future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        mask = torch.zeros(length, length, dtype=query.dtype, device=query.device)
        mask = mask.masked_fill_(future, -math.inf)
    scores = torch.matmul(query * width**-0.5, key.transpose(-1, -2))
    if mask is not None:
        scores = scores + mask
    weights = F.dropout(scores.softmax(-1), dropout)
    return torch.matmul(weights, value)


def rotary_angles(
    positions: Tensor, width: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of rotary positions, each (B or 1, 1, T, width / 2) (Su et al. 2021)."""
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = positions[:, None, :, None].float() * theta**-exponents
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply rotary positions to (B, H, T, D); pairs are (i, i + D/2), as in Llama's checkpoints."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cosine - right * sine, right * cosine + left * sine], dim=-1)
