"""The repeated parts of a Transformer: attention, feed-forward, block; knows no embeddings."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.backbones.attention import attention
from ptft_lightning.backbones.cache import LayerCache
from ptft_lightning.backbones.rotary import rotate
from ptft_lightning.backbones.transformer_config import GATED, TransformerConfig

Rotary = tuple[Tensor, Tensor]


def build_norm(config: TransformerConfig) -> nn.Module:
    """The normalisation of `config` over the last dimension."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.dim, eps=config.norm_eps)
    return nn.LayerNorm(config.dim, eps=config.norm_eps, bias=config.bias)


class SelfAttention(nn.Module):
    """Multi-head self-attention: (B, T, dim) -> (B, T, dim)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.key_heads = config.heads, config.key_heads
        self.width, self.causal = config.head_width, config.causal
        own = config.attention_dropout
        self.dropout = config.dropout if own is None else own
        places = (self.heads + 2 * self.key_heads) * self.width
        bias = config.bias if config.qkv_bias is None else config.qkv_bias
        self.qkv = nn.Linear(config.dim, places, bias=bias)
        self.out = nn.Linear(self.heads * self.width, config.dim, bias=config.bias)
        self.query_norm: nn.Module | None = None
        self.key_norm: nn.Module | None = None
        if config.qk_norm:
            self.query_norm = nn.RMSNorm(self.width, eps=config.norm_eps)
            self.key_norm = nn.RMSNorm(self.width, eps=config.norm_eps)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rotary: Rotary | None,
        cache: LayerCache | None,
        prefix: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """See the class; `mask` and `rotary` are shared by blocks."""
        batch, length, _ = x.shape
        split = self.qkv(x).view(batch, length, -1, self.width).transpose(1, 2)
        query, key, value = split.split([self.heads, self.key_heads, self.key_heads], dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        if cache is not None:
            key, value = cache.extend(key, value)
        if prefix is not None:
            before = [p.to(key.dtype).expand(batch, -1, -1, -1) for p in prefix]
            key, value = (torch.cat(p, dim=2) for p in zip(before, (key, value), strict=True))
        dropout = self.dropout if self.training else 0.0
        mixed = attention(query, key, value, mask, self.causal, dropout)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class FeedForward(nn.Module):
    """The position-wise part: (B, T, dim) -> (B, T, dim)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = config.activation
        gated = 2 if config.activation in GATED else 1
        self.up = nn.Linear(config.dim, gated * config.ffn_dim, bias=config.bias)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=config.bias)
        self.dropout = nn.Dropout(config.ffn_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        hidden: Tensor = self.up(x)
        if self.activation in GATED:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = (F.silu(gate) if self.activation == "swiglu" else F.gelu(gate)) * hidden
        else:
            form = "tanh" if self.activation == "gelu_tanh" else "none"
            hidden = F.gelu(hidden, approximate=form)
        out: Tensor = self.down(self.dropout(hidden))
        return out


class Block(nn.Module):
    """Attention and feed-forward with residuals, normalised before (pre) or after (post)."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention, self.ffn = SelfAttention(config), FeedForward(config)
        bare = config.norm_first and layer == 0 and not config.first_norm
        self.attention_norm = nn.Identity() if bare else build_norm(config)
        self.ffn_norm = build_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, *shared: Any) -> Tensor:
        """(B, T, dim) -> (B, T, dim); what blocks share is their attention's."""
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), *shared))
            x = x + self.dropout(self.ffn(self.ffn_norm(x)))
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, *shared)))
            x = self.ffn_norm(x + self.dropout(self.ffn(x)))
        return x
