"""Which parameters train in phase two, and what is added for it."""

from __future__ import annotations

from typing import Any, ClassVar

from ptft_lightning.backbones.base import Backbone


class Tuning:
    """A way of tuning: applied to the backbone once, before sharding."""

    name: ClassVar[str]

    def config(self) -> dict[str, Any]:
        """Plain values that rebuild it, for the bundle."""
        return {}

    def apply(self, backbone: Backbone) -> None:
        """Decide which parameters of the backbone train."""
        raise NotImplementedError
