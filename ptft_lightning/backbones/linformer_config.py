"""Shape and kind of a Linformer; knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ptft_lightning.backbones.config import BackboneConfig
from ptft_lightning.backbones.likeness import like
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.errors import UserError


@dataclass(frozen=True)
class LinformerConfig(BackboneConfig):
    """Shape and kind of a Linformer (Wang et al. 2020): memory grows with the length, not with its
    square. It looks both ways, and has a learned table of positions."""

    kind: ClassVar[str] = "linformer"

    dim: int = 192
    """Width of the hidden states."""
    depth: int = 4
    """Number of blocks."""
    heads: int = 3
    """Attention heads."""
    hidden_dim: int | None = None
    """Width inside the feed-forward part; default 4 dim, or 8/3 dim where it is gated."""
    max_length: int = 512
    """The longest document, and the columns of the projections."""
    projected_length: int = 128
    """k: to how many places the keys and values of a document are projected."""
    sharing: Literal["none", "headwise", "key-value", "layerwise"] = "headwise"
    """Which projections are one: none; those of a layer's heads; these for keys and values, too;
    and these for all layers."""
    causal: bool = False
    """Must be false: a projected key mixes the whole document."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation."""
    norm_first: bool = True
    """Normalise before each part or after the residual."""
    norm_eps: float = 1e-5
    """Added under the root of the normalisation."""
    activation: Literal["gelu", "gelu_tanh", "swiglu", "geglu"] = "gelu"
    """Feed-forward activation."""
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
    attention_dropout: float | None = None
    """Probability on attention weights; default: as `dropout`."""

    def __post_init__(self) -> None:
        if self.causal:
            raise UserError(
                "backbone.causal is true: a Linformer projects the keys of a whole document onto "
                "each other, those to come included; take a ReformerConfig, or a Transformer with "
                "a window"
            )
        if not 1 <= self.projected_length <= self.max_length:
            raise UserError(
                f"backbone.projected_length is {self.projected_length}: give 1 to "
                f"backbone.max_length, {self.max_length}"
            )
        self.transformer()

    def transformer(self) -> TransformerConfig:
        """The Transformer it is but for its attention."""
        return like(self, positions="learned")

    def refusals(self) -> dict[str, str]:
        """See `BackboneConfig`."""
        return {"model.tuning prefix": PREFIX}


PREFIX = "the keys of a prefix have no position to project along; take PromptTuning or LoRA"
