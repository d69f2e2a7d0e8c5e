"""Feature extraction: the backbone stays as it is, the head trains on its hidden states."""

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.tuning.base import Tuning


class Frozen(Tuning):
    """No parameter of the backbone trains."""

    name = "frozen"

    def apply(self, backbone: Backbone) -> None:
        """Freeze the backbone."""
        backbone.requires_grad_(False)
