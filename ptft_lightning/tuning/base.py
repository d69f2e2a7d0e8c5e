"""Which parameters train in phase two, and what is added for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch


class Tuning:
    """A way of tuning: applied to the backbone once, before sharding."""

    name: ClassVar[str]
    reserved: int = 0
    """Places kept free in front of every example, before packing."""
    reads: str = ""
    """How its reader reads, in a few words: a trained head goes on with the same alone."""
    tolerance: float = 0.0
    """How far, relatively, the metrics of a run may be from those of its bundle alone."""

    def config(self) -> dict[str, Any]:
        """Plain values that rebuild it, for the bundle."""
        return {}

    @property
    def described(self) -> dict[str, Any]:
        """Its name and config."""
        return {"name": self.name, "config": self.config()}

    def apply(self, backbone: Backbone) -> None:
        """Decide which parameters of the backbone train; it may get further ones."""
        raise NotImplementedError

    def adds(self, name: str) -> bool:
        """Whether the net's parameter `name` is one of its own, which no other tuning has."""
        return name.startswith("reader.")

    def settle(self, backbone: Backbone) -> None:
        """A last change, once the parameters have their values."""

    def build_reader(self, backbone: Backbone) -> Reader | None:
        """What stands between batch and backbone, with parameters of its own; None: nothing."""
        return None

    def before_fit(self, module: Any) -> None:
        """Called on every rank with the FinetuneModule, whose net and examples are there."""

    def rate_factor(self, name: str, layers: int) -> float:
        """What the learning rate of the parameter `name` of a net of so many layers is multiplied
        with."""
        return 1.0


class Reader(nn.Module):
    """A way of reading batches with a backbone that is not the plain one."""

    def forward(self, backbone: Backbone, batch: Batch) -> Tensor:
        """(B, T, dim) hidden states."""
        raise NotImplementedError

    def initial(self, name: str, value_of: Callable[[str], Tensor], seed: int) -> Tensor:
        """The value of a new parameter; `value_of(name)` is the usual one, or that of a loaded
        parameter."""
        return value_of(name)
