"""Shape and kind of a recurrent backbone; knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ptft_lightning.backbones.config import BackboneConfig
from ptft_lightning.errors import UserError


@dataclass(frozen=True)
class LSTMConfig(BackboneConfig):
    """Stacked recurrent layers: one stack that reads forwards, or, where it is not causal, another
    that reads backwards beside it, neither seeing the other (ELMo; Peters et al. 2018)."""

    kind: ClassVar[str] = "lstm"

    dim: int = 256
    """Width of the hidden states; half of it is each direction's where there are two."""
    depth: int = 2
    """Layers of each direction."""
    cell: Literal["lstm", "gru"] = "lstm"
    """LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014)."""
    hidden_dim: int | None = None
    """lstm: width inside the cell, whose output is projected to a direction's width (Sak et al.
    2014; ELMo: 8 times it); default: that width, without a projection."""
    max_length: int = 512
    """The longest document."""
    causal: bool = False
    """Whether there is one direction, forwards, or two."""
    residual: bool = True
    """Add each layer's input to its output, from the second layer on (ELMo)."""
    dropout: float = 0.0
    """Probability on each layer's input and the last one's output, in training (Zaremba et al.
    2014)."""
    tie_embeddings: bool = False
    """Share the token embedding, a direction's width wide, with the vocabulary projection of the
    head: CausalLM may if causal, BidirectionalLM if not, MaskedLM, which reads both, never."""
    input: Literal["tokens", "characters"] = "tokens"
    """A vector of each token, or a convolution of the bytes it is written with (Kim et al. 2016;
    ELMo); that has no embedding to tie."""
    max_characters: int = 50
    """characters: bytes of a token that are read, its begin and end among them."""
    character_dim: int = 16
    """characters: width of a byte's vector."""
    filters: list[list[int]] = field(
        default_factory=lambda: [[1, 32], [2, 32], [3, 64], [4, 128], [5, 256]]
    )
    """characters: [bytes that a filter sees, filters of that kind]."""
    highways: int = 1
    """characters: highway layers (Srivastava et al. 2015)."""

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "max_length", "character_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"backbone.{name} is {getattr(self, name)}: give 1 or more")
        if not 0 <= self.dropout < 1:
            raise UserError(f"backbone.dropout is {self.dropout}: give a number in [0, 1)")
        if self.dim % self.directions:
            raise UserError(f"backbone.dim is {self.dim}: two directions need an even number")
        self._check_cell()
        if self.input == "characters":
            self._check_characters()

    def _check_cell(self) -> None:
        if self.hidden_dim is None:
            return
        if self.cell == "gru":
            raise UserError("backbone.hidden_dim needs backbone.cell lstm: a GRU has no projection")
        if self.hidden_dim <= self.width:
            raise UserError(
                f"backbone.hidden_dim is {self.hidden_dim}, and is projected to the "
                f"{self.width} of a direction: give more, or leave it out"
            )

    def _check_characters(self) -> None:
        if self.tie_embeddings:
            raise UserError(
                "backbone.tie_embeddings needs backbone.input tokens: characters have no vector "
                "of each token that a head could share"
            )
        if self.highways < 0:
            raise UserError(f"backbone.highways is {self.highways}: give 0 or more")
        if not self.filters:
            raise UserError("backbone.filters is empty: give some, as [[1, 32], [2, 32], [3, 64]]")
        for pair in self.filters:
            fits = len(pair) == 2 and 1 <= pair[0] <= self.max_characters and pair[1] >= 1
            if not fits:
                raise UserError(
                    f"backbone.filters has {pair}: give [bytes, filters], 1 to "
                    f"backbone.max_characters {self.max_characters} bytes and 1 filter or more"
                )

    def refusals(self) -> dict[str, str]:
        """See `BackboneConfig`."""
        return {
            "model.tuning prefix": (
                "it trains keys and values, and this backbone has no attention; choose "
                "PromptTuning, BitFit, Frozen or Full"
            ),
            "model.tuning lora": (
                "it adapts linear layers, and those of this backbone are recurrent cells; choose "
                "BitFit, PromptTuning, Frozen or Full"
            ),
        }

    @property
    def directions(self) -> int:
        """Stacks side by side."""
        return 1 if self.causal else 2

    @property
    def width(self) -> int:
        """Of one direction's states and of what it reads."""
        return self.dim // self.directions
