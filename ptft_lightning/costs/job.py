"""The numbers that decide what a fit costs; everything else here follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.sample_order import micro_batches
from ptft_lightning.errors import UserError
from ptft_lightning.modules.muon import hidden_matrices
from ptft_lightning.modules.nets import Net
from ptft_lightning.terms import CHUNK_ELEMENTS

Strategy = Literal["single", "ddp", "fsdp2"]
DTYPES = {"64": torch.float64, "32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class Sizes:
    """Elements of a net's parameters, by what they cost."""

    total: int
    trained: int
    layer: int
    """Of the largest layer: what FSDP2 gathers at a time."""
    outside: int
    """Outside the layers, in FSDP2's root: gathered from the first use to the last."""
    states: int
    """Values an optimizer keeps: two a trained parameter (AdamW), one where Muon moves it."""
    matrices: int
    """Of the matrices inside the layers: each multiplies every token once."""
    input_gradients: int
    """Of those whose input needs a gradient, since something trains before them."""
    trained_matrices: int
    """Of those that train themselves."""
    attentions: int
    """Layers whose attention passes gradients on, since something trains before it."""

    @property
    def backward(self) -> int:
        """Elements of matrices that multiply a token again in the backward pass."""
        return self.input_gradients + self.trained_matrices


def sizes_of(net: Net, optimizer: str) -> Sizes:
    """Count a net's parameters, on any device (also `meta`); `optimizer` is adamw or muon."""
    parameters = list(net.parameters())
    layers = [sum(p.numel() for p in layer.parameters()) for layer in net.backbone.layers]
    muon = hidden_matrices(net) if optimizer == "muon" else {}
    trained = [p for p in parameters if p.requires_grad]
    total = sum(p.numel() for p in parameters)
    inside = {id(p) for p in net.backbone.layers.parameters()}
    embeddings = [p for p in net.backbone.parameters() if id(p) not in inside]
    reader = getattr(net, "reader", None)
    before = [*embeddings, *(reader.parameters() if reader is not None else [])]
    flows = any(p.requires_grad for p in before)
    matrices = with_input = moved = attentions = 0
    for name, parameter in _in_turn(net):
        attentions += flows and name == "attention.out.weight"
        if parameter.ndim == 2:
            matrices += parameter.numel()
            with_input += parameter.numel() * flows
            moved += parameter.numel() * parameter.requires_grad
        flows = flows or parameter.requires_grad
    return Sizes(
        total=total,
        trained=sum(p.numel() for p in trained),
        layer=max(layers),
        outside=total - sum(layers),
        states=sum(p.numel() * (1 if p in muon else 2) for p in trained),
        matrices=matrices,
        input_gradients=with_input,
        trained_matrices=moved,
        attentions=attentions,
    )


def _in_turn(net: Net) -> Iterator[tuple[str, Tensor]]:
    """The layers' parameters, named within each, in the order in which a token meets them."""
    for layer in net.backbone.layers:
        first = ("attention_norm", "attention", "ffn_norm", "ffn")
        parts = first if getattr(layer, "norm_first", True) else (*first[1::2], *first[::2])
        for part in parts:
            module: nn.Module = layer.get_submodule(part)
            yield from module.named_parameters(prefix=part)


@dataclass(frozen=True)
class Job:
    """One micro-batch of one rank, and how often it comes."""

    config: TransformerConfig
    vocab_size: int
    sizes: Sizes
    rows: int
    """Rows of a micro-batch, B."""
    length: int
    """Tokens of a row, T."""
    targets: int
    """Places of a micro-batch whose vocabulary logits are made; 0 in phase two."""
    head_matrices: int
    """Elements of a pretraining head's matrices that targets meet before the projection, as BERT's
    dense layer."""
    precision: str
    """Lightning's, such as bf16-mixed."""
    device: str
    """cpu or cuda."""
    strategy: Strategy
    ranks: int
    global_batch: int
    """Samples of an optimizer step over all ranks."""
    beside: int = 0
    """FLOPs forward of what a pretraining head computes of every place, as ELECTRA's generator."""
    recompute: bool = False
    """Whether layers are computed again in the backward pass."""

    @property
    def tokens(self) -> int:
        """Places of a micro-batch, padding included."""
        return self.rows * self.length

    @property
    def micro_batches(self) -> int:
        """Of a rank and optimizer step."""
        return micro_batches(self.global_batch, self.ranks, self.rows)

    @property
    def tokens_per_step(self) -> int:
        """Places of an optimizer step, over all ranks."""
        return self.global_batch * self.length

    @property
    def chunk(self) -> int:
        """Targets whose logits are made at once."""
        return max(1, CHUNK_ELEMENTS // self.vocab_size)

    @property
    def chunked(self) -> bool:
        """Whether there are more targets than that."""
        return self.targets > self.chunk

    @property
    def dtype(self) -> torch.dtype:
        """In which matrices are multiplied."""
        name = self.precision.partition("-")[0]
        if name not in DTYPES:
            raise UserError(
                f"trainer.precision is {self.precision!r}: plan knows 32, bf16, 16 and 64, as "
                "-true or -mixed"
            )
        return DTYPES[name]

    @property
    def stored(self) -> int:
        """Bytes of a parameter, its gradient and each of its optimizer states."""
        return self.dtype.itemsize if self.precision.endswith("true") else 4
