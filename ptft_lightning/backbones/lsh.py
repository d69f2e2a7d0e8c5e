"""Attention among tokens that hash alike (Kitaev et al. 2020); knows no layers.

All documents of a batch stand in one line of N tokens. In every round tokens are sorted by document
and bucket, and the line is cut into chunks; a token attends to those of its document that are at
most a chunk's length away in that order, computed as its own chunk, the one before and, where it
looks both ways, the one behind. Two things are stricter than in the paper, where what a token sees
depends on where chunks begin, and so on later tokens and on its neighbours in the row:

* It is the distance that counts, so that a document gives the same wherever it stands.
* A causal token sees its own bucket alone: those before it in the bucket stay the same whatever
  comes after it. So losses are likelihoods, and a text grows by one token with the same states.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.backbones.cache import LayerCache
from ptft_lightning.backbones.reformer_config import ReformerConfig
from ptft_lightning.backbones.rotary import rotate
from ptft_lightning.data.sample_order import random_key

Rotary = tuple[Tensor, Tensor]
UNSEEN = -1e9
ITSELF = -1e5  # above what is unseen: a token attends to itself where there is nothing else


def hash_rotations(config: ReformerConfig, layer: int, step: int | None) -> Tensor | None:
    """Random directions of a layer's hashes, (rounds, heads, width, buckets / 2), on the CPU.

    A function of the config's seed, the layer and the optimizer step (None in evaluation), so that
    neither ranks nor micro-batches nor a resume change them. None where there is nothing to hash.
    """
    if config.bucket_count == 1 or config.hash_rounds == 0:
        return None
    key = random_key("hash", config.hash_seed, layer, "evaluation" if step is None else step)
    generator = torch.Generator(device="cpu").manual_seed(key % 2**63)
    width = config.dim // config.heads
    shape = (config.hash_rounds, config.heads, width, config.bucket_count // 2)
    return torch.randn(shape, generator=generator, device="cpu")


def document_line(documents: Tensor | None, rows: int, length: int, device: torch.device) -> Tensor:
    """(B, T) documents, None for one a row -> (B T,) numbers that grow with every document."""
    if documents is None:
        return torch.arange(rows, device=device).repeat_interleave(length)
    starts = torch.ones_like(documents)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return starts.flatten().cumsum(0) - 1


class LSHAttention(nn.Module):
    """Multi-head attention whose queries are also its keys: (B, T, dim) -> (B, T, dim)."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.heads, self.width = config.heads, config.dim // config.heads
        self.rounds, self.local = config.hash_rounds, config.local
        self.count, self.chunk = config.bucket_count, config.chunk_length
        self.causal = config.causal
        own = config.attention_dropout
        self.dropout = config.dropout if own is None else own
        self.query_key = nn.Linear(config.dim, config.dim, bias=config.bias)
        self.value = nn.Linear(config.dim, config.dim, bias=config.bias)
        self.out = nn.Linear(config.dim, config.dim, bias=config.bias)

    def forward(
        self,
        x: Tensor,
        line: Tensor,
        rotary: Rotary | None,
        rotations: Tensor | None,
        cache: LayerCache | None = None,
        buckets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Also gives the tokens' buckets, (rounds, heads, N), which a second pass may be given.

        With a cache, `line` is that of all tokens so far; their attention is computed again, which
        gives the last ones theirs.
        """
        batch, length, _ = x.shape
        heads = (batch, length, self.heads, self.width)
        key, value = (part(x).view(heads).transpose(1, 2) for part in (self.query_key, self.value))
        if rotary is not None:
            key = rotate(key, *rotary)
        if cache is not None:
            key, value = cache.extend(key, value)
        key, value = (part.transpose(0, 1).flatten(1, 2) for part in (key, value))
        if buckets is None:
            buckets = self.hash(key.detach(), rotations)
        dropout = self.dropout if self.training else 0.0
        settings = self.count, self.chunk, self.causal, dropout
        mixed = bucket_attention(key, value, line, buckets, *settings)
        mixed = mixed.view(self.heads, batch, -1, self.width)[:, :, -length:]
        out: Tensor = self.out(mixed.permute(1, 2, 0, 3).reshape(batch, length, -1))
        return out, buckets

    def hash(self, key: Tensor, rotations: Tensor | None) -> Tensor:
        """(H, N, width) vectors -> buckets of every round, the local one first, where all are 0.

        The bucket is the nearest of random directions and their opposites (Andoni et al. 2015).
        """
        alike = torch.zeros(key.shape[:2], dtype=torch.int16, device=key.device)
        rounds = [alike] if self.local else []
        if rotations is None:
            return torch.stack([*rounds, *[alike] * self.rounds])
        for directions in rotations.to(key):
            turned = key @ directions
            nearest = turned.abs().argmax(-1, keepdim=True)
            opposite = turned.gather(-1, nearest) < 0
            rounds.append((2 * nearest + opposite)[..., 0].to(torch.int16))
        return torch.stack(rounds)


def bucket_attention(
    key: Tensor,
    value: Tensor,
    line: Tensor,
    buckets: Tensor,
    count: int,
    chunk: int,
    causal: bool,
    dropout: float,
) -> Tensor:
    """(H, N, D) queries that are keys, and values -> (H, N, D).

    Logits are q . k / |k|: keys of root mean square 1, scaled by 1 / sqrt(D). Rounds are mixed by
    their sums of exponentials, so that a token that is seen in n of them counts n times, as in the
    paper's code.

    Args:
        line: (N,) documents.
        buckets: (rounds, H, N), below `count`.
    """
    rounds, (heads, length, width) = len(buckets), key.shape
    group = line * count + buckets
    order = group.argsort(dim=-1, stable=True)
    places = torch.arange(length, device=key.device).expand_as(order)
    inverse = torch.empty_like(order).scatter_(-1, order, places)
    starts = torch.arange(rounds * heads, device=key.device).view(rounds, heads, 1) * length
    take, back = (order + starts % (heads * length)).flatten(), (inverse + starts).flatten()
    fill = -length % chunk

    def chunks(x: Tensor) -> Tensor:
        """(H, N, D) -> (rounds, H, chunks, chunk, D) in sorted order."""
        rows = take_rows(x.reshape(heads * length, width), take, back)
        rows = F.pad(rows.view(rounds, heads, length, width), (0, 0, 0, fill))
        return rows.view(rounds, heads, -1, chunk, width)

    query, values = chunks(key), chunks(value)
    scores = query @ _around(F.normalize(query, dim=-1), causal).transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    group = group.gather(-1, order) if causal else line.expand(1, 1, -1)
    group = F.pad(group, (0, fill), value=-1)
    group = group.view(*group.shape[:2], -1, chunk, 1)
    distance = _distances(chunk, causal, key.device)
    seen = (distance.abs() <= chunk) & (group == _around(group, causal, -2).transpose(-1, -2))
    seen = seen & (distance >= 0) if causal else seen
    scores = scores.masked_fill(~seen, UNSEEN).masked_fill(distance == 0, ITSELF)
    total = scores.logsumexp(-1, keepdim=True)
    weights = F.dropout((scores - total).exp(), dropout).to(values.dtype)
    mixed = (weights @ _around(values, causal)).flatten(2, 3)[:, :, :length]
    mixed = take_rows(mixed.reshape(-1, width), back, (order + starts).flatten())
    share = total.flatten(2)[..., :length].gather(-1, inverse).softmax(0)[..., None]
    out: Tensor = (mixed.view(rounds, heads, length, width) * share.to(mixed.dtype)).sum(0)
    return out


def _around(x: Tensor, causal: bool, value: float = 0) -> Tensor:
    """(..., chunks, chunk, D) -> (..., chunks, 2 or 3 chunk, D): those beside each chunk, too."""
    before = F.pad(x[..., :-1, :, :], (0, 0, 0, 0, 1, 0), value=value)
    if causal:
        return torch.cat([before, x], dim=-2)
    return torch.cat([before, x, F.pad(x[..., 1:, :, :], (0, 0, 0, 0, 0, 1), value=value)], dim=-2)


def _distances(chunk: int, causal: bool, device: torch.device) -> Tensor:
    """How far each key that `_around` gives is before each query, (chunk, 2 or 3 chunk)."""
    key = torch.arange((2 if causal else 3) * chunk, device=device) - chunk
    return torch.arange(chunk, device=device)[:, None] - key


def take_rows(table: Tensor, index: Tensor, back: Tensor) -> Tensor:
    """Rows of a (M, D) table by `index`, each of them n times -> (n M, D).

    `back` are the places where each row went, all first times before all second times. The
    gradient is a sum in a fixed order, without scattering.
    """
    out: Tensor = _Rows.apply(table, index, back)  # type: ignore[no-untyped-call]
    return out


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, back: Tensor) -> Tensor:
        """(M, D) -> (n M, D)."""
        ctx.save_for_backward(back)
        ctx.shape = table.shape
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """(n M, D) -> (M, D)."""
        (back,) = ctx.saved_tensors
        rows = gradients[0].index_select(0, back)
        return rows.view(-1, *ctx.shape).sum(0), None, None
