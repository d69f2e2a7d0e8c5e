"""What the shape of every backbone says; knows no tensors."""

from __future__ import annotations

from typing import ClassVar


class BackboneConfig:
    """Base of the frozen dataclasses that say a backbone's kind and shape."""

    kind: ClassVar[str]
    """Its name in a bundle's config."""
    dim: int
    """Width of the hidden states."""
    depth: int
    """Number of repeated parts."""
    max_length: int
    """The longest document."""
    causal: bool
    """Whether a position sees only those before it or all."""
    tie_embeddings: bool
    """Whether the vocabulary projection of the head shares the token embedding."""

    def refusals(self) -> dict[str, str]:
        """What it cannot do of what a fit may ask, by option and value -> the reason."""
        return {}
