"""Optimizer and schedule: parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ptft_lightning.errors import UserError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule. All of it is a function of (config, step)."""

    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.1
    """For matrices; biases and norm weights are never decayed."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running means of gradient and squared gradient."""
    eps: float = 1e-8
    """Added to the root of the squared gradient's mean."""
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


def parameter_groups(net: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors without; every trainable parameter in exactly one."""
    trainable = [p for p in net.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2]
    plain = [p for p in trainable if p.ndim < 2]
    assert len(decayed) + len(plain) == len({id(p) for p in trainable}), "a parameter was forgotten"
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(net: nn.Module, config: OptimizerConfig, fused: bool) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over the parameter groups.

    Raises:
        UserError: nothing trains.
    """
    groups = parameter_groups(net, config)
    if not groups:
        raise UserError("no parameter is left to train: choose another model.tuning")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def apply_settings(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, total: int
) -> float:
    """Write the settings of `step` into the optimizer: a restored state must not override the
    config. Returns the learning rate."""
    rate = learning_rate(config, step, total)
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["betas"], group["eps"] = config.betas, config.eps
        group["weight_decay"] = config.weight_decay if _decayed(group) else 0.0
    return rate


def _decayed(group: dict[str, Any]) -> bool:
    return bool(group["params"][0].ndim >= 2)
