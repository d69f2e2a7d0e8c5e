"""BitFit: the biases train, nothing else of the backbone does."""

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.errors import UserError
from ptft_lightning.tuning.base import Tuning


class BitFit(Tuning):
    """Train the biases of linear layers and norms (Ben Zaken et al. 2022)."""

    name = "bitfit"

    def apply(self, backbone: Backbone) -> None:
        """Freeze all but the biases.

        Raises:
            UserError: there are none, as in Llama.
        """
        backbone.requires_grad_(False)
        named = backbone.named_parameters()
        biases = [p for name, p in named if name.rpartition(".")[2].startswith("bias")]
        if not biases:
            raise UserError(
                "model.tuning is BitFit, which trains biases, and the backbone has none: choose "
                "LoRA, or another init_from"
            )
        for bias in biases:
            bias.requires_grad_(True)
