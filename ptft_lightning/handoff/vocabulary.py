"""A bundle under an extended vocabulary: old rows as they were, new ones made of old ones.

A new token's row of the embedding (and of an untied output and its bias) begins as the mean of the
rows of the old tokens that its text was split into, so that the model reads it at once about as it
read the pieces.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.handoff.bundle import Bundle

ROWS = ("backbone.embedding.weight", "head.projection.weight", "head.projection.bias")


def grow(bundle: Bundle, tokenizer: Tokenizer) -> Bundle:
    """The bundle itself, or as it begins with a tokenizer that extends its own."""
    if tokenizer.extends is None or tokenizer.extends != bundle.tokenizer.fingerprint:
        return bundle
    return ExtendedBundle(bundle, tokenizer)


class ExtendedBundle(Bundle):
    """A bundle whose tokenizer got more tokens; everything that had a row keeps its bits."""

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer) -> None:
        self.old = bundle
        shape = bundle.config["backbone"]
        rows = max(shape["vocab_size"], tokenizer.size)
        config = bundle.config | {"backbone": shape | {"vocab_size": rows}}
        super().__init__(bundle.path, config, tokenizer.text, bundle.lineage)

    @cached_property
    def hash(self) -> str:
        """Of the bundle that was extended: that is the parent."""
        return self.old.hash

    @cached_property
    def splits(self) -> dict[int, list[int]]:
        """New id -> the old ids that its text was split into."""
        raw, model = self.tokenizer.raw, self.old.tokenizer.raw.model
        new = range(self.old.tokenizer.size, self.tokenizer.size)
        return {i: [t.id for t in model.tokenize(raw.id_to_token(i))] for i in new}

    def names(self) -> list[str]:
        """See `Bundle`."""
        return self.old.names()

    def known_as(self, name: str) -> str | None:
        """See `Bundle`."""
        return self.old.known_as(name)

    def tensor(self, name: str) -> Tensor:
        """See `Bundle`; the rows of new tokens are means of old ones."""
        value = self.old.tensor(name)
        return self._extend(value) if name in ROWS else value

    def _extend(self, value: Tensor) -> Tensor:
        rows: int = self.config["backbone"]["vocab_size"]
        grown = torch.zeros(rows, *value.shape[1:], dtype=value.dtype)
        grown[: len(value)] = value
        for new, old in self.splits.items():
            grown[new] = value[old].to(torch.float64).mean(0).to(value.dtype)
        return grown
