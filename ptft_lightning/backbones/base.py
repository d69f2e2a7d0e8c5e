"""What every backbone promises; knows no architecture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ptft_lightning.backbones.cache import KeyValueCache
from ptft_lightning.backbones.config import BackboneConfig
from ptft_lightning.data.sample_order import random_key
from ptft_lightning.data.tokenizer import Tokenizer

Prefix = list[tuple[Tensor, Tensor]]


class Backbone(nn.Module):
    """Tokens in, hidden states out.

    Attributes:
        config_class: what says its shape.
        dim: width of the hidden states.
        input_dim: width of the vectors that its first layer takes for tokens.
        vocab_size: rows of the embedding.
        max_length: the longest document it can read.
        causal: whether a position sees only those before it.
        packs: whether several documents may share a row.
        prefix_lm: whether tokens of segment 1 see each other in both directions, though causal.
        layers: its repeated parts, the units of sharding, compiling and checkpointing.
        embedding: the token embedding, which heads may tie to.
        key_shape: heads and width of a layer's keys and values; None without attention.
        norm_eps: added under the root of its normalisations, and of those of heads.
        bias: whether its linear layers and norms have biases, and those of heads.
        tied: whether it was pretrained under a head that projects by its embedding.
        recompute: whether each layer's activations are computed again in the backward pass.
        step: the optimizer step in training, for what is drawn anew for each.
    """

    config_class: ClassVar[type[BackboneConfig]]
    dim: int
    input_dim: int
    vocab_size: int
    max_length: int
    causal: bool
    packs: bool
    prefix_lm: bool = False
    layers: nn.ModuleList
    embedding: nn.Embedding
    key_shape: tuple[int, int] | None = None
    norm_eps: float = 1e-5
    bias: bool = True
    tied: bool = True
    recompute: bool = False
    step: int = 0

    def read_whole(self) -> None:
        """Read a text as nothing but a prefix: from here on a prefix-LM is causal no longer."""
        raise NotImplementedError

    def spell(self, tokenizer: Tokenizer) -> None:
        """Learn how tokens are written, where it reads that; called before any is read."""

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        prefix: Prefix | None = None,
        cache: KeyValueCache | None = None,
        all_layers: bool = False,
    ) -> Tensor:
        """(B, T) tokens with the fields of a `Batch` -> (B, T, dim) hidden states.

        Args:
            embeds: (B, T, input_dim) in place of the tokens' embeddings.
            prefix: For each layer, keys and values that every token sees, (kv heads, P, width).
            cache: The tokens go on from those it has seen; it is extended.
            all_layers: Give (layers + 1, B, T, dim): the embeddings, then each layer's output, the
                last one as it is given otherwise.
        """
        raise NotImplementedError


STD = 0.02


def initial_value(name: str, shape: Sequence[int], layers: int, seed: int) -> Tensor:
    """The value of a new parameter: all initialisation is in this function.

    | parameter | value | source |
    |---|---|---|
    | embeddings, linear weights | normal, std 0.02 | Devlin et al. 2019; Radford et al. 2019 |
    | `out`, `down` (add to the residual) | normal, 0.02 / sqrt(2 layers) | Radford et al. 2019 |
    | norm weights | 1 | Ba et al. 2016 |
    | biases | 0 | |
    | projections along the length | normal, 1 / sqrt(length) | Wang et al. 2020 draw them so, too |
    | an LSTM's forget gate's bias | 1 | Gers et al. 2000; Jozefowicz et al. 2015 |
    | recurrent cells' and characters' weights | uniform, +- 1 / sqrt(inputs) | LeCun et al. 1998 |
    | `lora_a` | uniform, +- 1 / sqrt(inputs) | Hu et al. 2022, as in peft |
    | `lora_b` | 0 | Hu et al. 2022 |

    Each value depends on (seed, name) alone: neither the device, the sharding nor the order in
    which modules are built changes it, and a rank can make one tensor at a time.
    """
    # On the CPU by name: Lightning builds models under the accelerator's device.
    if len(shape) == 1:
        last = name.rpartition(".")[2]
        value = torch.full(tuple(shape), 0.0 if last.startswith("bias") else 1.0, device="cpu")
        if last.startswith("bias_ih") and "_lstm." in name:  # input, forget, cell and output gate
            value[shape[0] // 4 : shape[0] // 2] = 1.0
        return value
    if name.endswith("lora_b"):
        return torch.zeros(tuple(shape), device="cpu")
    residual = name.endswith(("out.weight", "down.weight"))
    std = STD / math.sqrt(2 * layers) if residual else STD
    if name.endswith("_length"):
        std = shape[1] ** -0.5
    generator = torch.Generator(device="cpu").manual_seed(random_key(seed, name) % 2**63)
    value = torch.empty(tuple(shape), device="cpu")
    if name.endswith("lora_a") or ".weight_" in name or ".cnn." in name:
        most = math.prod(shape[1:]) ** -0.5
        return value.uniform_(-most, most, generator=generator)
    return value.normal_(0.0, std, generator=generator)
