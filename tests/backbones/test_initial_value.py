"""New parameters: their size, and that nothing but (seed, name) decides them."""

from __future__ import annotations

import math

import pytest
import torch

from ptft_lightning.backbones.base import STD, initial_value


def test_depends_on_seed_and_name_alone() -> None:
    value = initial_value("backbone.embedding.weight", (50, 8), 4, seed=1)
    torch.manual_seed(7)
    torch.randn(3)  # the global generator plays no part
    assert torch.equal(initial_value("backbone.embedding.weight", (50, 8), 4, seed=1), value)
    assert not torch.equal(initial_value("backbone.embedding.weight", (50, 8), 4, seed=2), value)
    assert not torch.equal(initial_value("backbone.position.weight", (50, 8), 4, seed=1), value)


def test_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    wanted = torch.randn(3)
    torch.manual_seed(0)
    initial_value("backbone.embedding.weight", (50, 8), 4, seed=1)
    assert torch.equal(torch.randn(3), wanted)


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("backbone.embedding.weight", STD),
        ("backbone.layers.0.attention.qkv.weight", STD),
        ("backbone.layers.0.ffn.up.weight", STD),
        ("head.projection.weight", STD),
        ("backbone.layers.0.attention.out.weight", STD / math.sqrt(24)),
        ("backbone.layers.11.ffn.down.weight", STD / math.sqrt(24)),
    ],
)
def test_matrices_are_normal(name: str, std: float) -> None:
    value = initial_value(name, (400, 300), layers=12, seed=0)
    assert value.dtype == torch.float32
    assert float(value.std()) == pytest.approx(std, rel=0.02)
    assert abs(float(value.mean())) < std / 50
    within = float((value.abs() < std).float().mean())
    assert within == pytest.approx(0.6827, abs=0.01)


def test_vectors() -> None:
    for name in ("attention.qkv.bias", "final_norm.bias", "head.projection.bias"):
        assert not initial_value(f"backbone.{name}", (9,), 2, seed=0).any()
    for name in ("attention_norm.weight", "final_norm.weight", "embedding_norm.weight"):
        assert torch.equal(initial_value(f"backbone.{name}", (9,), 2, seed=0), torch.ones(9))
