"""Prefix tuning: trained keys and values in every layer (Li & Liang 2021; Liu et al. 2022).

Every token sees them; they have no position and take no place of an example. The backbone stays as
it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ptft_lightning.backbones.base import STD, Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.errors import UserError
from ptft_lightning.tuning.base import Reader, Tuning


class PrefixTuning(Tuning):
    """Keys and values before those of every example, and the head, train; nothing else.

    Args:
        length: Keys and values of each layer and head.
        hidden: Width of a small network that makes them from trained vectors, which steadies large
            learning rates (Li & Liang 2021); default: they are trained themselves.
    """

    name = "prefix"

    def __init__(self, length: int = 20, hidden: int | None = None) -> None:
        for setting, value in (("length", length), ("hidden", hidden)):
            if value is not None and value < 1:
                raise UserError(f"tuning.{setting} is {value}: give 1 or more")
        self.length, self.hidden = length, hidden
        self.reads = f"with a prefix of {length} keys"

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {"length": self.length, "hidden": self.hidden}

    def apply(self, backbone: Backbone) -> None:
        """Freeze the backbone."""
        backbone.requires_grad_(False)

    def build_reader(self, backbone: Backbone) -> Reader:
        """See `PrefixReader`."""
        return PrefixReader(backbone, self.length, self.hidden)


class PrefixReader(Reader):
    """Gives every layer its keys and values."""

    def __init__(self, backbone: Backbone, length: int, hidden: int | None) -> None:
        super().__init__()
        assert backbone.key_shape is not None, "what a backbone refuses was asked before"
        heads, width = backbone.key_shape
        self.shape = (len(backbone.layers), 2, heads, length, width)
        self.network: nn.Module | None = None
        if hidden is None:
            self.prefix = nn.Parameter(torch.empty(self.shape))
            return
        self.prefix = nn.Parameter(torch.empty(length, hidden))
        places = len(backbone.layers) * 2 * heads * width
        self.network = nn.Sequential(
            nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, places)
        )

    def forward(self, backbone: Backbone, batch: Batch) -> Tensor:
        """See `Reader`."""
        states: Tensor = self.prefix
        if self.network is not None:
            layers, two, heads, length, width = self.shape
            made = self.network(states).view(length, layers, two, heads, width)
            states = made.permute(1, 2, 3, 0, 4)
        prefix = [(keys, values) for keys, values in states]
        out: Tensor = backbone(
            batch.tokens, batch.documents, batch.positions, batch.segments, prefix=prefix
        )
        return out

    def initial(self, name: str, value_of: Callable[[str], Tensor], seed: int) -> Tensor:
        """What the network reads is of size 1, as is what its first layer makes of it."""
        value = value_of(name)
        if self.network is None:
            return value
        scale = {"reader.prefix": 1.0, "reader.network.0.weight": 1 / math.sqrt(value.shape[-1])}
        return value * scale[name] / STD if name in scale else value
