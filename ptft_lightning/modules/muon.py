"""Muon for the matrices inside a backbone's layers, and several optimizers chained into one.

Knows no schedules: see optimizers.py. torch's own Muon takes a
fused matrix (query, key and value in one) for a single one; here each part is orthogonalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ptft_lightning.backbones.fused import part_rows
from ptft_lightning.modules.nets import Net
from ptft_lightning.tuning.lora import LoraLinear

Rows = tuple[int, ...]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: the steepest quintic at 0
STEPS = 5
RMS = 0.2  # of AdamW's updates, so that its learning rates carry over (Liu et al. 2025)


def hidden_matrices(net: Net) -> dict[Tensor, Rows]:
    """What Muon moves: the trainable matrices inside the layers, with the rows of their parts.

    Neither embeddings nor anything outside the layers, as heads: their rows are tokens or labels,
    not directions (Jordan et al. 2024).
    """
    layers = net.backbone.layers
    named = dict(layers.named_parameters())
    tables = {m.weight for m in layers.modules() if isinstance(m, nn.Embedding)}
    shapes = {_stem(n): p.shape for n, p in named.items() if p.ndim == 2}
    adapters: dict[Tensor, Rows] = {}
    for layer in layers.modules():
        if isinstance(layer, LoraLinear):
            adapters[layer.lora_a] = (layer.rank,) * len(layer.rows)
            adapters[layer.lora_b] = tuple(layer.rows)
    return {
        matrix: adapters.get(matrix) or tuple(part_rows(_stem(name), shapes).values())
        for name, matrix in named.items()
        if matrix.ndim == 2 and matrix.requires_grad and matrix not in tables
    }


def _stem(name: str) -> str:
    return name.removesuffix(".weight")


def precision(device: torch.device) -> torch.dtype:
    """bfloat16 suffices (Jordan et al. 2024), but on CPUs its small products are 15 times slower
    than float32's."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def newton_schulz(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: (n, m) -> (n, m) in the precision it has.

    All singular values come to lie around 1 (0.7 to 1.2), except those that are zero beside the
    largest. Five steps of a quintic iteration on the singular values (Jordan et al. 2024).
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=1e-7)  # the largest singular value becomes at most 1
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def orthogonal_update(momentum: Tensor, rows: Rows) -> Tensor:
    """The update of a matrix (n, m) made of parts with so many `rows` each, for learning rate 1.

    A sharded matrix is gathered and every rank computes the same: each row of the result depends
    on all rows of the momentum.
    """
    whole = momentum.to(precision(momentum.device))
    if isinstance(whole, DTensor):
        whole = whole.full_tensor()
    parts = [
        newton_schulz(part).float() * (RMS * math.sqrt(max(part.shape)))
        for part in torch.split(whole, list(rows))
    ]
    update = torch.cat(parts).to(momentum.dtype)
    if isinstance(momentum, DTensor):
        mesh, places = momentum.device_mesh, momentum.placements
        return distribute_tensor(update, mesh, places, src_data_rank=None)
    return update


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al. 2024), with decoupled weight decay.

    Args:
        matrices: Parameters of two dimensions, each with the rows of its parts.
        lr: Learning rate, on AdamW's scale.
        weight_decay: Share of lr by which weights shrink.
        momentum: Decay of the running mean of gradients; applied in Nesterov's form.
        factors: What the learning rate of some is multiplied with; they are groups of their own.
    """

    def __init__(
        self,
        matrices: dict[Tensor, Rows],
        lr: float,
        weight_decay: float,
        momentum: float,
        factors: Mapping[Tensor, float] = MappingProxyType({}),
    ) -> None:
        settings = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        groups: dict[float, list[Tensor]] = {}
        for matrix in matrices:
            groups.setdefault(factors.get(matrix, 1.0), []).append(matrix)
        super().__init__([{"params": groups[factor]} for factor in sorted(groups)], settings)
        self.rows = matrices

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        assert closure is None, "Chained runs it"
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._move(matrix, group["lr"], group["weight_decay"], group["momentum"])

    def _move(self, matrix: Tensor, lr: float, weight_decay: float, momentum: float) -> None:
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        mean = state["momentum"].lerp_(gradient, 1 - momentum)
        update = orthogonal_update(gradient.lerp(mean, momentum), self.rows[matrix])
        matrix.mul_(1 - lr * weight_decay).add_(update, alpha=-lr)


class Chained(torch.optim.Optimizer):
    """Several optimizers as one, with one state dict: Lightning 2.6.6 takes a single optimizer.

    They share the groups and the state of the whole, each stepping its own groups.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also hand the loaded state to the parts."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Run `closure`, which computes the gradients, once; then step each part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
