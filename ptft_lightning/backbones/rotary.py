"""Rotary positions (Su et al. 2021) and how they are stretched; knows no attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ptft_lightning.backbones.transformer_config import RopeScaling


def rotary_angles(
    positions: Tensor, width: int, theta: float, dtype: torch.dtype, scaling: RopeScaling | None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of rotary positions, each (B or 1, 1, T, width / 2)."""
    frequencies = _frequencies(width, theta, scaling, positions.device)
    angles = positions[:, None, :, None].float() * frequencies
    size = _attention_factor(scaling)
    return (angles.cos() * size).to(dtype), (angles.sin() * size).to(dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply rotary positions to (B, H, T, D); pairs are (i, i + D/2), as in Llama's checkpoints."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cosine - right * sine, right * cosine + left * sine], dim=-1)


def _frequencies(
    width: int, theta: float, scaling: RopeScaling | None, device: torch.device
) -> Tensor:
    """Radians per position of each pair, (width / 2,)."""
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    plain = theta**-exponents
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    kept = _llama3(plain, scaling) if scaling.kind == "llama3" else _yarn(width, theta, scaling)
    kept = kept.to(device)
    return kept * plain + (1 - kept) * plain / scaling.factor


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """How far each frequency is kept, by wave length (Llama 3.1; Dubey et al. 2024)."""
    turns = scaling.original_length * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return ((turns - low) / (high - low)).clamp(0, 1)


def _yarn(width: int, theta: float, scaling: RopeScaling) -> Tensor:
    """How far each frequency is kept: a ramp over the pairs (YaRN; Peng et al. 2023)."""

    def pair(turns: float) -> float:
        """The pair that makes so many turns in the original length."""
        length = scaling.original_length / (turns * 2 * math.pi)
        return width * math.log(length) / (2 * math.log(theta))

    low = max(math.floor(pair(scaling.beta_fast)), 0)
    high = min(math.ceil(pair(scaling.beta_slow)), width - 1)
    ramp = (torch.arange(width // 2, dtype=torch.float32) - low) / max(high - low, 1e-3)
    return 1 - ramp.clamp(0, 1)


def _attention_factor(scaling: RopeScaling | None) -> float:
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0
