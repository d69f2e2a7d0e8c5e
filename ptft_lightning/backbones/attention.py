"""Attention over packed documents: one function, one signature, the kernel from a static table.

| device | dtype, length | kernel |
|---|---|---|
| CPU | bfloat16, at most 256 tokens | plain batched products |
| CPU | otherwise | torch SDPA |
| CUDA | one full document a row | torch SDPA without a mask (flash) |
| CUDA | packed rows | torch SDPA with a mask (memory-efficient) |
| any | windowed, rows longer than some of them | the same in blocks (`windows.py`) |

Never timed at run time: a resumed run uses the kernel it used before.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN_MAX_LENGTH = 256  # benchmarks/attention.py


def attention_mask(
    documents: Tensor | None,
    causal: bool,
    dtype: torch.dtype,
    span: tuple[int, int],
    window: int | None = None,
    device: torch.device | None = None,
    front: Tensor | None = None,
    cut: int = 0,
) -> Tensor | None:
    """The additive mask of `span` = (queries, keys) tokens, (B or 1, 1, Q, K) with 0 and -inf.

    None where it would say no more than `causal` does. The queries are the last of the keys;
    `documents` (B, K) are those of the keys; a `window` hides what is further away; keys in `front`
    (B, K) are seen by all queries in it, also causally. Made once per forward and shared by layers.
    Padding attends padding, so that no row of scores is empty. So many rows as may be `cut` into
    blocks of their window get the mask of `windows.window_mask` instead, where they are long.
    """
    queries, keys = span
    if window is not None and front is None and cut:
        from ptft_lightning.backbones.windows import cuts, window_mask  # a leaf

        if cuts(keys, window, causal):
            return window_mask(documents, causal, dtype, (cut, keys), window, device)
    plain = documents is None and front is None and (not causal or queries in (1, keys))
    # Whether rows are wider than the window is asked last: a traced length has no answer.
    if plain and (window is None or keys <= window + 1):
        return None
    device = device if documents is None else documents.device
    key = torch.arange(keys, device=device)
    query = key[keys - queries :, None]
    allowed = torch.ones(1, queries, keys, dtype=torch.bool, device=device)
    if documents is not None:
        allowed = documents[:, keys - queries :, None] == documents[:, None, :]
    if causal:
        seen = key <= query
        if front is not None:
            seen = seen | (front[:, keys - queries :, None] & front[:, None, :])
        allowed = allowed & seen
    if window is not None:
        allowed = allowed & ((query - key).abs() <= window)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~allowed, -math.inf)[:, None]


def see_prefix(
    mask: Tensor | None, length: int, causal: bool, queries: int, like: Tensor
) -> Tensor | None:
    """The mask of `attention_mask` where every query also sees `length` keys before all others;
    a new one is `like` a tensor in dtype and device."""
    if mask is None:
        if not causal or queries == 1:
            return None
        mask = like.new_full((1, 1, queries, queries), -math.inf).triu(1)
    return F.pad(mask, (length, 0))


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """Scaled dot-product attention, (B, H, T, D) each -> (B, H, T, D).

    Keys and values may have fewer heads, each shared by several of the queries, and more tokens,
    of which the queries are the last. `mask` is that of `attention_mask` and already holds the
    causal part; without one, `causal` decides. `dropout` is the probability applied to the
    attention weights (0 in evaluation).
    """
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    if mask is not None and mask.dim() == 5:
        from ptft_lightning.backbones.windows import window_attention  # a leaf

        return window_attention(query, key, value, mask, dropout)
    causal = causal and query.shape[2] == key.shape[2]  # a single last token sees all
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
