"""Stretched rotary angles are those of Hugging Face's functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ptft_lightning.backbones.rotary import rotary_angles
from ptft_lightning.backbones.transformer_config import RopeScaling

WIDTH, THETA = 64, 50000.0
SCALINGS: list[tuple[RopeScaling, dict[str, Any]]] = [
    (RopeScaling("linear", 4.0), {"rope_type": "linear", "factor": 4.0}),
    (
        RopeScaling("llama3", 8.0, 1024, low_freq_factor=1.5, high_freq_factor=5.0),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": 1024,
            "low_freq_factor": 1.5,
            "high_freq_factor": 5.0,
        },
    ),
    (
        RopeScaling("yarn", 4.0, 2048),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    ),
    (
        RopeScaling("yarn", 16.0, 512, beta_fast=20.0, beta_slow=2.0, attention_factor=0.9),
        {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "attention_factor": 0.9,
        },
    ),
]


@pytest.mark.parametrize(("scaling", "theirs"), SCALINGS, ids=lambda value: str(value)[:40])
def test_angles_equal_hugging_face(scaling: RopeScaling, theirs: dict[str, Any]) -> None:
    config = LlamaConfig(
        hidden_size=4 * WIDTH,
        num_attention_heads=4,
        max_position_embeddings=8192,
        rope_parameters={**theirs, "rope_theta": THETA},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, torch.device("cpu"))
    positions = torch.tensor([[0, 1, 7, 500, 8191]])
    angles = positions[0, :, None].double() * frequencies.double()
    cosine, sine = rotary_angles(positions, WIDTH, THETA, torch.float32, scaling)
    torch.testing.assert_close(cosine[0, 0].double(), angles.cos() * factor, atol=2e-3, rtol=0)
    torch.testing.assert_close(sine[0, 0].double(), angles.sin() * factor, atol=2e-3, rtol=0)
    plain, _ = rotary_angles(positions, WIDTH, THETA, torch.float32, None)
    assert (cosine - plain).abs().max() > 0.5
