"""Optimizer and schedule: who moves which parameter, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ptft_lightning.errors import UserError
from ptft_lightning.modules.nets import Net


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and schedule. All of it is a function of (config, step)."""

    kind: Literal["adamw", "muon"] = "adamw"
    """AdamW for all, or Muon for the matrices inside the layers and AdamW for the rest."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.1
    """For matrices; biases and norm weights are never decayed."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running means of gradient and squared gradient."""
    eps: float = 1e-8
    """Added to the root of the squared gradient's mean."""
    momentum: float = 0.95
    """muon: decay of the running mean of its gradients."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """After the warm-up: cosine or linear to the end, or warmup-stable-decay."""
    warmup: float = 0.02
    """Steps of linear warm-up: a share of all steps below 1, else a number of steps."""
    final: float = 0.1
    """Learning rate at the end, as a share of the peak."""
    decay: float = 0.2
    """wsd: the share of all steps, at the end, in which the rate falls (linearly)."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise UserError(f"optimizer.lr is {self.lr}: give a positive number")
        if self.warmup < 0:
            raise UserError(f"optimizer.warmup is {self.warmup}: give a share or a number of steps")
        if not 0 <= self.momentum < 1:
            raise UserError(f"optimizer.momentum is {self.momentum}: give a number in [0, 1)")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas is {self.betas}: give numbers in [0, 1)")
        for name in ("eps", "weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}: give 0 or more")
        for name in ("final", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}: give 0 to 1")


def learning_rate(config: OptimizerConfig, step: int, total: int) -> float:
    """The rate of optimizer step `step` (from 0) of `total`."""
    warmup = round(config.warmup * total) if config.warmup < 1 else int(config.warmup)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    span = max(1, total - warmup)
    done = min(1.0, (step - warmup) / span)
    return config.lr * (config.final + (1 - config.final) * _shape(config, done, span, total))


def _shape(config: OptimizerConfig, done: float, span: int, total: int) -> float:
    """From 1 to 0 over the share `done` of the steps after the warm-up."""
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "linear":
        return 1 - done
    if config.schedule == "wsd":
        falling = min(1.0, max(config.decay * total / span, 1e-9))
        return min(1.0, (1 - done) / falling)
    return 1.0


def parameter_groups(
    net: nn.Module,
    config: OptimizerConfig,
    elsewhere: Container[Tensor] = (),
    factors: Mapping[Tensor, float] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors without, apart by the `factors` of their learning rates;
    every trainable parameter in exactly one, but for those that `elsewhere` holds."""
    groups: dict[tuple[bool, float], list[Tensor]] = {}
    for p in net.parameters():
        if p.requires_grad and p not in elsewhere:
            groups.setdefault((p.ndim < 2, factors.get(p, 1.0)), []).append(p)
    return [
        {"params": members, "weight_decay": 0.0 if is_vector else config.weight_decay}
        for (is_vector, _), members in sorted(groups.items(), key=lambda group: group[0])
    ]


def build_optimizer(
    net: Net,
    config: OptimizerConfig,
    fused: bool,
    factors: Mapping[Tensor, float] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) over the parameter groups, behind Muon if asked.

    Raises:
        UserError: nothing trains, or nothing that Muon could move.
    """
    from ptft_lightning.modules.muon import Chained, Muon, hidden_matrices  # a leaf

    matrices = hidden_matrices(net) if config.kind == "muon" else {}
    groups = parameter_groups(net, config, matrices, factors)
    if not groups and not matrices:
        raise UserError("no parameter is left to train: choose another model.tuning")
    parts: list[torch.optim.Optimizer] = []
    if groups:
        lr, betas, eps = config.lr, config.betas, config.eps
        parts.append(torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused))
    if config.kind == "adamw":
        return parts[0]
    if not matrices:
        raise UserError(
            "optimizer.kind is 'muon', but no matrix inside the layers trains: choose 'adamw'"
        )
    muon = Muon(matrices, config.lr, config.weight_decay, config.momentum, factors)
    return Chained(muon, *parts)


def apply_settings(
    optimizer: torch.optim.Optimizer,
    config: OptimizerConfig,
    rate: float,
    factors: Mapping[Tensor, float] = MappingProxyType({}),
) -> None:
    """Write a step's settings into the optimizer: a restored state must not override the config."""
    for group in optimizer.param_groups:
        group["lr"] = rate * factors.get(group["params"][0], 1.0)
        group["weight_decay"] = config.weight_decay if group["params"][0].ndim >= 2 else 0.0
        if "momentum" in group:
            group["momentum"] = config.momentum
        else:
            group["betas"], group["eps"] = config.betas, config.eps
