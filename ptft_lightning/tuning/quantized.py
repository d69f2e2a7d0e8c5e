"""4-bit weights under adapters (QLoRA), through bitsandbytes; needs a CUDA device."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ptft_lightning.errors import UserError
from ptft_lightning.tuning.lora import LoraLinear


def require_quantization() -> None:
    """Raises:
    UserError: no CUDA device, or no bitsandbytes.
    """
    if not torch.cuda.is_available():
        raise UserError(
            "model.tuning.quantize needs a CUDA device, and there is none: leave it out"
        )
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "model.tuning.quantize needs bitsandbytes: pip install 'ptft-lightning[quantized]'"
        )


class QuantizedLoraLinear(LoraLinear):
    """A layer with adapters whose own weight is kept in 4 bits, with double quantisation.

    The packed weight is no parameter: neither optimizer nor checkpoint sees it.
    """

    packed: Tensor
    state: Any

    def quantize(self, kind: str) -> None:
        """Replace the filled weight by its packed form."""
        library: Any = import_module("bitsandbytes.functional")
        values = self.weight.detach()
        del self.weight
        self.packed, self.state = library.quantize_4bit(
            values, quant_type=kind, compress_statistics=True
        )

    def plain(self, x: Tensor) -> Tensor:
        """See `LoraLinear`; the weight is unpacked for the product alone."""
        library: Any = import_module("bitsandbytes")
        kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        out: Tensor = library.matmul_4bit(
            x.to(kind), self.packed.t(), bias=bias, quant_state=self.state
        )
        return out


def quantize_layers(backbone: nn.Module, kind: str) -> None:
    """Quantise the weights of all layers with adapters, once they are filled on their device.

    Raises:
        UserError: they are sharded.
    """
    for layer in backbone.modules():
        if isinstance(layer, LoraLinear):
            if isinstance(layer.weight, DTensor):
                raise UserError(
                    "model.tuning.quantize does not go with a sharded model: use ddp or one device"
                )
            layer.__class__ = QuantizedLoraLinear
            assert isinstance(layer, QuantizedLoraLinear)
            layer.quantize(kind)
