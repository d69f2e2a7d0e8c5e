"""Full fine-tuning: every parameter trains, lower layers perhaps more slowly."""

import re
from typing import Any

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.errors import UserError
from ptft_lightning.tuning.base import Tuning

LAYER = re.compile(r"backbone\.layers\.(\d+)\.")


class Full(Tuning):
    """Every parameter of the backbone trains.

    Args:
        layer_decay: What the learning rate is multiplied with from each layer to the one below, the
            head's being 1, that of embeddings and of what all layers share the lowest (Howard &
            Ruder 2018; Clark et al. 2020).
    """

    name = "full"

    def __init__(self, layer_decay: float = 1.0) -> None:
        if not 0 < layer_decay <= 1:
            raise UserError(f"tuning.layer_decay is {layer_decay}: give more than 0 and at most 1")
        self.layer_decay = layer_decay

    def config(self) -> dict[str, Any]:
        """See `Tuning`."""
        return {} if self.layer_decay == 1 else {"layer_decay": self.layer_decay}

    def apply(self, backbone: Backbone) -> None:
        """Nothing to change."""
        backbone.requires_grad_(True)

    def rate_factor(self, name: str, layers: int) -> float:
        """decay^(layers - layer), layers counted from 0; embeddings are below layer 0."""
        if found := LAYER.match(name):
            return float(self.layer_decay ** (layers - int(found[1])))
        above = not name.startswith("backbone.") or name.startswith("backbone.final_norm")
        return 1.0 if above else float(self.layer_decay ** (layers + 1))
