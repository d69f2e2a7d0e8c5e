"""Shape and kind of a Transformer; knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ptft_lightning.backbones.config import BackboneConfig
from ptft_lightning.errors import UserError

GATED = ("swiglu", "geglu")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary angles are stretched so that a model reads further than it was pretrained."""

    kind: Literal["linear", "llama3", "yarn"]
    """All angles alike, by wave length (Llama 3), or by wave length with a ramp (YaRN)."""
    factor: float
    """How many times further."""
    original_length: int = 8192
    """The longest document of the pretraining; llama3 and yarn."""
    low_freq_factor: float = 1.0
    """llama3: waves longer than original_length / this are stretched in full."""
    high_freq_factor: float = 4.0
    """llama3: waves shorter than original_length / this are left alone."""
    beta_fast: float = 32.0
    """yarn: from this many turns in original_length on, angles are left alone."""
    beta_slow: float = 1.0
    """yarn: up to this many turns in original_length, angles are stretched in full."""
    attention_factor: float | None = None
    """yarn: factor of queries and keys; default 0.1 ln(factor) + 1."""

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise UserError(f"backbone.rope_scaling.factor is {self.factor}: give 1 or more")


@dataclass(frozen=True)
class TransformerConfig(BackboneConfig):
    """Shape and kind of a Transformer (Vaswani et al. 2017)."""

    kind: ClassVar[str] = "transformer"

    dim: int = 192
    """Width of the hidden states."""
    depth: int = 4
    """Number of blocks."""
    heads: int = 3
    """Attention heads."""
    kv_heads: int | None = None
    """Heads of keys and values, each shared by heads / kv_heads queries (Ainslie et al. 2023)."""
    head_dim: int | None = None
    """Width of a head; default dim / heads."""
    hidden_dim: int | None = None
    """Width inside the feed-forward part; default 4 dim, or 8/3 dim where it is gated."""
    max_length: int = 512
    """The longest document."""
    causal: bool = False
    """Whether a position sees only those before it (GPT) or all (BERT)."""
    prefix_lm: bool = False
    """Of a causal one: tokens of segment 1 (a prefix, a prompt) see each other in both directions;
    all others, as a text without segments, those before them (Raffel et al. 2020)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation."""
    norm_first: bool = True
    """Normalise before each part (GPT-2, Llama) or after the residual (BERT)."""
    first_norm: bool = True
    """Whether the first attention has a norm before it; ModernBERT's embeddings already do."""
    norm_eps: float = 1e-5
    """Added under the root of the normalisation."""
    activation: Literal["gelu", "gelu_tanh", "swiglu", "geglu"] = "gelu"
    """Feed-forward activation; GPT-2 uses the tanh form of GELU (Shazeer 2020 for the gated)."""
    positions: Literal["learned", "rotary"] = "rotary"
    """Learned table (BERT, GPT-2) or rotary angles (Llama, ModernBERT)."""
    position_start: int = 0
    """Row of the learned table that the first token reads (RoBERTa: 2)."""
    rope_theta: float = 10000.0
    """Base of the rotary angles."""
    rope_scaling: RopeScaling | None = None
    """Stretched rotary angles."""
    window: int | None = None
    """Windowed blocks see no token further away than this; default: no block is windowed."""
    window_layers: list[int] | None = None
    """Which blocks, from 0, are windowed; default: all, once there is a window."""
    window_rope_theta: float | None = None
    """Base of the rotary angles in windowed blocks; default: as in the others."""
    token_types: int = 0
    """Rows of the sentence-type table (BERT: 2); 0 = none."""
    embedding_norm: bool = False
    """Normalise the embeddings (BERT)."""
    tie_embeddings: bool = True
    """Share the token embedding with the vocabulary projection of the head."""
    bias: bool = True
    """Biases in linear layers and LayerNorms."""
    qkv_bias: bool | None = None
    """Biases of queries, keys and values (Qwen2 has these alone); default: as `bias`."""
    qk_norm: bool = False
    """RMSNorm on each head's queries and keys (Qwen3)."""
    dropout: float = 0.0
    """Probability on embeddings, attention weights and residual branches, in training."""
    attention_dropout: float | None = None
    """Probability on attention weights; default: as `dropout`."""
    ffn_dropout: float = 0.0
    """Probability inside the feed-forward part (ModernBERT)."""

    def __post_init__(self) -> None:
        if isinstance(self.rope_scaling, dict):  # read from a bundle
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        for name in ("dim", "depth", "heads", "kv_heads", "head_dim", "max_length", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"backbone.{name} is {value}: give 1 or more")
        for name in ("hidden_dim", "norm_eps", "rope_theta"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(f"backbone.{name} is {getattr(self, name)}: give more than 0")
        for name in ("dropout", "attention_dropout", "ffn_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise UserError(
                    f"backbone.{name} is {getattr(self, name)}: give a number in [0, 1)"
                )
        if self.prefix_lm and not self.causal:
            raise UserError("backbone.prefix_lm needs backbone.causal true: others see everything")
        self._check_heads()
        self._check_positions()

    def _check_heads(self) -> None:
        if self.head_dim is None and self.dim % self.heads:
            raise UserError(f"backbone.heads {self.heads} does not divide backbone.dim {self.dim}")
        if self.heads % self.key_heads:
            raise UserError(
                f"backbone.kv_heads {self.key_heads} does not divide backbone.heads {self.heads}"
            )
        if self.positions == "rotary" and self.head_width % 2:
            raise UserError(
                f"the width of a head is {self.head_width}: rotary positions need an even number, "
                "change backbone.heads or backbone.head_dim"
            )

    def _check_positions(self) -> None:
        if self.positions == "learned" and (self.rope_scaling or self.window_rope_theta):
            raise UserError(
                "backbone.rope_scaling and window_rope_theta need backbone.positions rotary"
            )
        if self.positions == "rotary" and self.position_start:
            raise UserError("backbone.position_start needs backbone.positions learned")
        if self.window is None and (self.window_layers or self.window_rope_theta):
            raise UserError("backbone.window_layers and window_rope_theta need backbone.window")
        if outside := [i for i in self.window_layers or () if not 0 <= i < self.depth]:
            raise UserError(
                f"backbone.window_layers has {outside}: the blocks are 0 to {self.depth - 1}"
            )

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.dim // self.heads if self.head_dim is None else self.head_dim

    @property
    def ffn_dim(self) -> int:
        """Width inside the feed-forward part."""
        if self.hidden_dim is not None:
            return self.hidden_dim
        # 8/3 keeps a gated part's three matrices as large as two of 4 dim (Shazeer 2020).
        gated = self.activation in GATED
        return -(-8 * self.dim // 3 // 32) * 32 if gated else 4 * self.dim

    def is_windowed(self, layer: int) -> bool:
        """Whether a block sees only its neighbourhood."""
        if self.window is None:
            return False
        return self.window_layers is None or layer in self.window_layers
