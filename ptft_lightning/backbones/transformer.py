"""One Transformer that is BERT-, GPT-2-, Llama- or ModernBERT-like by config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ptft_lightning.backbones.attention import attention, attention_mask, rotary_angles, rotate
from ptft_lightning.backbones.base import Backbone
from ptft_lightning.errors import UserError


@dataclass(frozen=True)
class TransformerConfig:
    """Shape and kind of a Transformer (Vaswani et al. 2017)."""

    dim: int = 192
    """Width of the hidden states."""
    depth: int = 4
    """Number of blocks."""
    heads: int = 3
    """Attention heads; must divide dim."""
    hidden_dim: int | None = None
    """Width inside the feed-forward part; default 4 dim (GELU) or 8/3 dim (SwiGLU)."""
    max_length: int = 512
    """The longest document."""
    causal: bool = False
    """Whether a position sees only those before it (GPT) or all (BERT)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation."""
    norm_first: bool = True
    """Normalise before each part (GPT-2, Llama) or after the residual (BERT)."""
    norm_eps: float = 1e-5
    """Added under the root of the normalisation."""
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"
    """Feed-forward activation; GPT-2 uses the tanh form of GELU."""
    positions: Literal["learned", "rotary"] = "rotary"
    """Learned table (BERT, GPT-2) or rotary angles (Llama, ModernBERT)."""
    rope_theta: float = 10000.0
    """Base of the rotary angles."""
    token_types: int = 0
    """Rows of the sentence-type table (BERT: 2); 0 = none."""
    embedding_norm: bool = False
    """Normalise the embeddings (BERT)."""
    tie_embeddings: bool = True
    """Share the token embedding with the vocabulary projection of the head."""
    bias: bool = True
    """Biases in linear layers and LayerNorms."""
    dropout: float = 0.0
    """Probability on embeddings, attention weights and residual branches, in training."""

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "heads", "max_length"):
            if getattr(self, name) < 1:
                raise UserError(f"backbone.{name} is {getattr(self, name)}: give 1 or more")
        if self.dim % self.heads:
            raise UserError(f"backbone.heads {self.heads} does not divide backbone.dim {self.dim}")
        if self.positions == "rotary" and (self.dim // self.heads) % 2:
            raise UserError(
                f"backbone.dim / backbone.heads is {self.dim // self.heads}: rotary positions "
                "need an even number"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"backbone.dropout is {self.dropout}: give a number in [0, 1)")

    @property
    def ffn_dim(self) -> int:
        """Width inside the feed-forward part."""
        if self.hidden_dim is not None:
            return self.hidden_dim
        # 8/3 keeps SwiGLU's three matrices as large as GELU's two (Shazeer 2020).
        return 4 * self.dim if self.activation != "swiglu" else -(-8 * self.dim // 3 // 32) * 32


def build_norm(config: TransformerConfig) -> nn.Module:
    """The normalisation of `config` over the last dimension."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.dim, eps=config.norm_eps)
    return nn.LayerNorm(config.dim, eps=config.norm_eps, bias=config.bias)


class SelfAttention(nn.Module):
    """Multi-head self-attention: (B, T, dim) -> (B, T, dim)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = config.heads, config.causal, config.dropout
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.bias)
        self.out = nn.Linear(config.dim, config.dim, bias=config.bias)

    def forward(
        self, x: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """See the class; `mask` and `rotary` are shared by all blocks."""
        batch, length, dim = x.shape
        split = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        dropout = self.dropout if self.training else 0.0
        mixed = attention(query, key, value, mask, self.causal, dropout)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, dim))
        return out


class FeedForward(nn.Module):
    """The position-wise part: (B, T, dim) -> (B, T, dim)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = config.activation
        gated = 2 if config.activation == "swiglu" else 1
        self.up = nn.Linear(config.dim, gated * config.ffn_dim, bias=config.bias)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        hidden: Tensor = self.up(x)
        if self.activation == "swiglu":
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * hidden
        else:
            form = "tanh" if self.activation == "gelu_tanh" else "none"
            hidden = F.gelu(hidden, approximate=form)
        out: Tensor = self.down(hidden)
        return out


class Block(nn.Module):
    """Attention and feed-forward with residuals, normalised before (pre) or after (post)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention, self.ffn = SelfAttention(config), FeedForward(config)
        self.attention_norm, self.ffn_norm = build_norm(config), build_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), mask, rotary))
            x = x + self.dropout(self.ffn(self.ffn_norm(x)))
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, mask, rotary)))
            x = self.ffn_norm(x + self.dropout(self.ffn(x)))
        return x


class Transformer(Backbone):
    """A stack of blocks over token, position and type embeddings."""

    packs = True

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.dim, self.vocab_size = config.dim, vocab_size
        self.max_length, self.causal = config.max_length, config.causal
        self.norm_eps = config.norm_eps
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.position: nn.Embedding | None = None
        self.token_type: nn.Embedding | None = None
        self.embedding_norm: nn.Module | None = None
        self.final_norm: nn.Module | None = None
        if config.positions == "learned":
            self.position = nn.Embedding(config.max_length, config.dim)
        if config.token_types:
            self.token_type = nn.Embedding(config.token_types, config.dim)
        if config.embedding_norm:
            self.embedding_norm = build_norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        if config.norm_first:
            self.final_norm = build_norm(config)

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """(B, T) tokens with the fields of a `Batch` -> (B, T, dim) hidden states."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x = self._embed(tokens, positions, segments)
        dtype = _attention_dtype(x)
        rotary = None
        if self.config.positions == "rotary":
            width = self.dim // self.config.heads
            rotary = rotary_angles(positions, width, self.config.rope_theta, dtype)
        mask = attention_mask(documents, self.causal, dtype)
        for block in self.layers:
            if self.recompute and self.training:
                x = checkpoint(block, x, mask, rotary, use_reentrant=False)
            else:
                x = block(x, mask, rotary)
        return x if self.final_norm is None else self.final_norm(x)

    def _embed(self, tokens: Tensor, positions: Tensor, segments: Tensor | None) -> Tensor:
        x: Tensor = self.embedding(tokens)
        if self.position is not None:
            x = x + self.position(positions)
        if self.token_type is not None:
            x = x + self.token_type(torch.zeros_like(tokens) if segments is None else segments)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        out: Tensor = self.dropout(x)
        return out


def _attention_dtype(x: Tensor) -> torch.dtype:
    """What queries and keys will be: the autocast dtype, or that of the embeddings."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
