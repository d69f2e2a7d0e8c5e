"""Shape and kind of a Reformer; knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ptft_lightning.backbones.config import BackboneConfig
from ptft_lightning.backbones.likeness import like
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.errors import UserError

MOST_BUCKETS = 2**15 - 1  # their numbers are kept in 16 bits


@dataclass(frozen=True)
class ReformerConfig(BackboneConfig):
    """Shape and kind of a Reformer (Kitaev et al. 2020): each token attends to those that hash
    alike, and reversible layers keep no activations (Gomez et al. 2017)."""

    kind: ClassVar[str] = "reformer"

    dim: int = 192
    """Width of the hidden states."""
    depth: int = 4
    """Number of blocks."""
    heads: int = 3
    """Attention heads."""
    hidden_dim: int | None = None
    """Width inside the feed-forward part; default 4 dim, or 8/3 dim where it is gated."""
    max_length: int = 512
    """The longest document."""
    causal: bool = False
    """Whether a position sees only those before it or all."""
    hash_rounds: int = 4
    """How often tokens are hashed and sorted; 0 leaves the local round alone."""
    buckets: int | None = None
    """Hash values, an even number or 1; default: about max_length / chunk_length."""
    chunk_length: int = 64
    """How far a token looks back (and ahead, where it is not causal) in sorted order."""
    local: bool = True
    """A further round that is not sorted: a token sees its neighbourhood in the text."""
    hash_seed: int = 0
    """Decides the hashes, with the layer and, in training, the step."""
    reversible: bool = True
    """Compute each layer's input from its output in the backward pass, instead of keeping it; the
    weights and their gradients are the same either way."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation, before each part."""
    norm_eps: float = 1e-5
    """Added under the root of the normalisation."""
    activation: Literal["gelu", "gelu_tanh", "swiglu", "geglu"] = "gelu"
    """Feed-forward activation."""
    positions: Literal["learned", "rotary"] = "rotary"
    """Learned table or rotary angles."""
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
    attention_dropout: float | None = None
    """Probability on attention weights; default: as `dropout`."""

    def __post_init__(self) -> None:
        if self.chunk_length < 1:
            raise UserError(f"backbone.chunk_length is {self.chunk_length}: give 1 or more")
        if self.hash_rounds < (0 if self.local else 1):
            raise UserError(
                f"backbone.hash_rounds is {self.hash_rounds}: give 1 or more, or 0 with "
                "backbone.local true"
            )
        count = self.bucket_count
        if not 1 <= count <= MOST_BUCKETS or (count > 1 and count % 2):
            raise UserError(
                f"backbone.buckets is {count}: give 1 or an even number up to {MOST_BUCKETS - 1}, "
                "as each random direction makes two"
            )
        self.transformer()

    @property
    def bucket_count(self) -> int:
        """Hash values."""
        if self.buckets is not None:
            return self.buckets
        return 2 * max(1, round(self.max_length / self.chunk_length / 2))

    def transformer(self) -> TransformerConfig:
        """The Transformer it is but for its attention and its two streams."""
        return like(self)

    def refusals(self) -> dict[str, str]:
        """See `BackboneConfig`."""
        if not self.reversible:
            return {"model.tuning prefix": PREFIX}
        plain = "set model.backbone.reversible false"
        coarse = f"inputs cannot be computed back from outputs in two bytes; {plain}, or take"
        return {
            "model.tuning prefix": PREFIX,
            "model.compile_layers": f"reversible layers run their own backward pass; {plain}",
            "model.activation_checkpointing": (
                f"reversible layers keep no activations already; leave it out, or {plain}"
            ),
            "trainer.precision bf16-true": f"{coarse} bf16-mixed",
            "trainer.precision 16-true": f"{coarse} 16-mixed",
        }


PREFIX = "the keys of a prefix have no bucket that a token could hash to; take PromptTuning or LoRA"
