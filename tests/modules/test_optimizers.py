"""Schedules against the formulas of their papers; groups; settings after a restored state."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from torch import nn

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.errors import UserError
from ptft_lightning.modules.optimizers import (
    OptimizerConfig,
    apply_settings,
    build_optimizer,
    learning_rate,
    parameter_groups,
)

TOTAL = 200


def rates(**settings: Any) -> list[float]:
    config = OptimizerConfig(lr=2.0, **settings)
    return [learning_rate(config, step, TOTAL) for step in range(TOTAL + 1)]


@pytest.mark.parametrize("warmup", [0.1, 20])
def test_warmup_as_share_or_steps(warmup: float) -> None:
    got = rates(warmup=warmup, schedule="constant")
    assert got[:20] == pytest.approx([2.0 * (s + 1) / 20 for s in range(20)])
    assert got[20:] == [2.0] * 181


def test_one_step_of_warmup_is_a_step_not_a_share() -> None:
    assert rates(warmup=1, schedule="constant") == [2.0] * (TOTAL + 1)


@pytest.mark.parametrize(("final", "warmup"), [(0.1, 0.1), (0.0, 0), (1.0, 50)])
def test_cosine(final: float, warmup: float) -> None:
    got = rates(schedule="cosine", final=final, warmup=warmup)
    steps = round(warmup * TOTAL) if warmup < 1 else int(warmup)
    for step in range(steps, TOTAL + 1):
        low, high = 2.0 * final, 2.0
        angle = math.pi * (step - steps) / (TOTAL - steps)
        assert got[step] == pytest.approx(low + (high - low) * (1 + math.cos(angle)) / 2)
    assert got[TOTAL] == pytest.approx(2.0 * final)


def test_linear() -> None:
    got = rates(schedule="linear", final=0.25, warmup=40)
    assert got[40] == 2.0
    assert got[120] == pytest.approx((2.0 + 0.5) / 2)
    assert got[TOTAL] == pytest.approx(0.5)
    drops = [a - b for a, b in pairwise(got[40:])]
    assert drops == pytest.approx([1.5 / 160] * 160)


def test_wsd() -> None:
    got = rates(schedule="wsd", final=0.1, warmup=0.1, decay=0.25)
    assert got[20:151] == [2.0] * 131
    assert got[175] == pytest.approx(2.0 * (1 + 0.1) / 2)
    assert got[TOTAL] == pytest.approx(0.2)
    drops = [a - b for a, b in pairwise(got[150:])]
    assert drops == pytest.approx([1.8 / 50] * 50)


def test_wsd_falls_from_the_end_of_the_warmup_at_the_latest() -> None:
    got = rates(schedule="wsd", final=0.0, warmup=0.5, decay=0.8)
    assert got[100] == 2.0
    assert got[150] == pytest.approx(1.0)


def test_after_the_end_the_rate_stays() -> None:
    for schedule in ("cosine", "linear", "wsd"):
        config = OptimizerConfig(lr=2.0, schedule=schedule, final=0.1)  # type: ignore[arg-type]
        assert learning_rate(config, 10 * TOTAL, TOTAL) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": 0.0}, "optimizer.lr is 0.0"),
        ({"final": 1.5}, "optimizer.final is 1.5"),
        ({"decay": -0.1}, "optimizer.decay is -0.1"),
        ({"warmup": -1.0}, "optimizer.warmup is -1.0"),
        ({"momentum": 1.0}, "optimizer.momentum is 1.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        OptimizerConfig(**settings)  # type: ignore[arg-type]


def net() -> Transformer:
    config = TransformerConfig(
        dim=16, depth=2, heads=2, max_length=8, positions="learned", token_types=2
    )
    return Transformer(config, 30)


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    model = net()
    decayed, plain = parameter_groups(model, OptimizerConfig(weight_decay=0.3))
    assert decayed["weight_decay"] == 0.3
    assert plain["weight_decay"] == 0.0
    names = {id(p): name for name, p in model.named_parameters()}
    kept = {names[id(p)] for p in plain["params"]}
    assert kept == {n for n in names.values() if n.endswith("bias") or "norm" in n}
    held = [id(p) for group in (decayed, plain) for p in group["params"]]
    assert sorted(held) == sorted(names)


def test_frozen_parameters_are_left_out() -> None:
    model = net()
    for p in model.layers[0].parameters():
        p.requires_grad_(False)
    held = [p for group in parameter_groups(model, OptimizerConfig()) for p in group["params"]]
    assert all(p.requires_grad for p in held)
    assert len(held) == len([p for p in model.parameters() if p.requires_grad])


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.tuning"):
        build_optimizer(net().requires_grad_(False), OptimizerConfig(), fused=True)


def test_only_vectors_make_one_group() -> None:
    (group,) = parameter_groups(nn.LayerNorm(4), OptimizerConfig())
    assert group["weight_decay"] == 0.0


def test_the_config_overrides_a_restored_state() -> None:
    model = net()
    old = build_optimizer(model, OptimizerConfig(lr=5.0, weight_decay=0.9), fused=True)
    config = OptimizerConfig(
        lr=2.0, betas=(0.8, 0.7), eps=1e-6, weight_decay=0.2, schedule="linear", warmup=0, final=0
    )
    optimizer = build_optimizer(model, config, fused=True)
    optimizer.load_state_dict(old.state_dict())
    assert optimizer.param_groups[0]["lr"] == 5.0, "torch restores settings with the state"
    apply_settings(optimizer, config, learning_rate(config, 50, 100))
    for group, decay in zip(optimizer.param_groups, (0.2, 0.0), strict=True):
        assert group["lr"] == pytest.approx(1.0)
        assert (group["betas"], group["eps"]) == ((0.8, 0.7), 1e-6)
        assert group["weight_decay"] == decay
