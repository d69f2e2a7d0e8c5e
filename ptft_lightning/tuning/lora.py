"""Low-rank adapters beside the linear layers of a frozen backbone (LoRA)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.backbones.fused import part_rows
from ptft_lightning.errors import UserError
from ptft_lightning.tuning.base import Tuning

ADDED = (".lora_a", ".lora_b")
Parts = list[tuple[int, bool]]  # of a layer: rows of each part, and whether it has an adapter


class LoRA(Tuning):
    """W x + scale B A x with W frozen, A and B of a low rank (Hu et al. 2022).

    Queries, keys and values have each their own A and B, so have the gate and the other half of a
    gated feed-forward part.

    Args:
        rank: Rows of A and columns of B.
        alpha: scale is alpha / rank.
        dropout: Probability on what A reads, in training.
        rank_stabilised: scale is alpha / sqrt(rank) (rsLoRA; Kalajdzievski 2023).
        targets: What gets adapters: query, key, value, out, gate, up, down, or patterns of longer
            names such as `layers.0.*` or `attention.*`; default: all of them.
        quantize: Keep the adapted layers' own weights in 4 bits (QLoRA; Dettmers et al. 2023);
            needs a CUDA device and bitsandbytes.
    """

    name = "lora"

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        rank_stabilised: bool = False,
        targets: list[str] | None = None,
        quantize: Literal["nf4", "fp4"] | None = None,
    ) -> None:
        if rank < 1:
            raise UserError(f"tuning.rank is {rank}: give 1 or more")
        if alpha <= 0:
            raise UserError(f"tuning.alpha is {alpha}: give a positive number")
        if not 0 <= dropout < 1:
            raise UserError(f"tuning.dropout is {dropout}: give a probability from 0 to below 1")
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.rank_stabilised, self.targets, self.quantize = rank_stabilised, targets, quantize

    def config(self) -> dict[str, Any]:
        """See `Tuning`."""
        names = ("rank", "alpha", "dropout", "rank_stabilised", "targets", "quantize")
        return {name: getattr(self, name) for name in names}

    @property
    def scale(self) -> float:
        """What the product of B and A is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def adds(self, name: str) -> bool:
        """See `Tuning`."""
        return name.endswith(ADDED)

    def apply(self, backbone: Backbone) -> None:
        """Freeze the backbone and put layers with adapters in place of those chosen."""
        if self.quantize is not None:
            from ptft_lightning.tuning.quantized import require_quantization

            require_quantization()
        backbone.requires_grad_(False)
        linears = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.Linear)}
        shapes = {name: tuple(linear.weight.shape) for name, linear in linears.items()}
        for name, parts in self.choose(shapes).items():
            adapted = LoraLinear(linears[name], parts, self.rank, self.scale, self.dropout)
            backbone.set_submodule(name, adapted)

    def settle(self, backbone: Backbone) -> None:
        """See `Tuning`: quantise what was filled."""
        if self.quantize is not None:
            if any(isinstance(p, DTensor) for p in backbone.parameters()):
                raise UserError(
                    "model.tuning.quantize keeps whole matrices in 4 bits, which FSDP2 cannot "
                    "shard: use --trainer.strategy ddp, or leave quantize out"
                )
            from ptft_lightning.tuning.quantized import quantize_layers

            quantize_layers(backbone, self.quantize)

    def before_fit(self, module: Any) -> None:
        """Weights in 4 bits are not stored: their base must stay where it is."""
        start = None if module.from_scratch else module.bundle
        if self.quantize is not None and (start is None or start.path.endswith(".ckpt")):
            raise UserError(
                "model.tuning.quantize needs weights that stay where they are: give a bundle, a "
                "run or a Hugging Face folder as model.init_from, no checkpoint, no from_scratch"
            )

    def choose(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Parts]:
        """The parts of each layer that gets an adapter, of layers with these (outputs, inputs).

        Raises:
            UserError: a pattern matches nothing.
        """
        rows = {name: part_rows(name, shapes) for name in shapes}
        patterns = ["*" if t == "all" else t for t in self.targets or ["all"]]
        for pattern in patterns:
            if not any(_matches(n, part, pattern) for n, parts in rows.items() for part in parts):
                known = dict.fromkeys(part for parts in rows.values() for part in parts)
                raise UserError(
                    f"model.tuning.targets: {pattern!r} matches no layer of the backbone, which "
                    f"has {', '.join(known)} (or all)"
                )
        chosen = {}
        for name, parts in rows.items():
            taken = [
                (size, any(_matches(name, part, pattern) for pattern in patterns))
                for part, size in parts.items()
            ]
            if any(is_taken for _, is_taken in taken):
                chosen[name] = taken
        return chosen


def _matches(name: str, part: str, pattern: str) -> bool:
    """Whether a pattern means a part by its own name or by that of the fused layer; `up` of a
    gated feed-forward layer is the part alone."""
    stem, dot, last = name.rpartition(".")
    paths = [f"{stem}{dot}{part}", *([name] if last == "qkv" else [])]
    return any(fnmatchcase(path, form) for path in paths for form in (pattern, f"*.{pattern}"))


class LoraLinear(nn.Linear):
    """A linear layer whose chosen parts have adapters; its own tensors keep their names.

    `lora_a` holds A of all parts below each other, (parts x rank, inputs), `lora_b` their B,
    (outputs of the parts, rank).
    """

    def __init__(
        self, plain: nn.Linear, parts: Parts, rank: int, scale: float, dropout: float
    ) -> None:
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, "meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.parts, self.rank, self.scale = parts, rank, scale
        self.rows = [rows for rows, chosen in parts if chosen]
        inner, where = len(self.rows) * rank, plain.weight.device
        self.lora_a = nn.Parameter(torch.empty(inner, self.in_features, device=where))
        self.lora_b = nn.Parameter(torch.empty(sum(self.rows), rank, device=where))
        self.lora_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        low = F.linear(self.lora_dropout(x), self.lora_a)
        each_b = torch.split(self.lora_b, self.rows)
        pairs = zip(torch.split(low, self.rank, -1), each_b, strict=True)
        each = iter([F.linear(part, b) for part, b in pairs])
        added = [next(each) if c else low.new_zeros(*low.shape[:-1], n) for n, c in self.parts]
        return self.plain(x) + self.scale * torch.cat(added, -1)

    def plain(self, x: Tensor) -> Tensor:
        """Without adapters."""
        return super().forward(x)


def merge(weight: Tensor, a: Tensor, b: Tensor, parts: Parts, lora: LoRA) -> Tensor:
    """W + scale B A, in the dtype of W: the layer without adapters that computes the same."""
    rows = [n for n, chosen in parts if chosen]
    pairs = zip(torch.split(a.double(), lora.rank), torch.split(b.double(), rows), strict=True)
    each = iter([below @ above for above, below in pairs])
    added = [next(each) if c else weight.new_zeros(n, weight.shape[1]).double() for n, c in parts]
    return (weight.double() + lora.scale * torch.cat(added)).to(weight.dtype)
