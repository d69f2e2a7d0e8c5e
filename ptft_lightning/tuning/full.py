"""Full fine-tuning: every parameter trains."""

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.tuning.base import Tuning


class Full(Tuning):
    """Every parameter of the backbone trains."""

    name = "full"

    def apply(self, backbone: Backbone) -> None:
        """Nothing to change."""
        backbone.requires_grad_(True)
