"""Muon against torch's own and a float64 formula; chained optimizers against separate ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from faults.kit import (
    assert_same_weights,
    call,
    done,
    finish,
    launch,
    pretrain,
    read_metrics,
    weights,
    words,
)
from ranks import tiny
from torch import Tensor, nn

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.errors import UserError
from ptft_lightning.modules.muon import (
    COEFFICIENTS,
    STEPS,
    Chained,
    Muon,
    hidden_matrices,
    newton_schulz,
)
from ptft_lightning.modules.nets import PretrainNet, fill
from ptft_lightning.modules.optimizers import (
    OptimizerConfig,
    apply_settings,
    build_optimizer,
)
from ptft_lightning.objectives.causal import CausalLM

SHAPES = [(16, 16), (48, 16), (16, 40)]
MUON = OptimizerConfig(kind="muon", lr=0.02, weight_decay=0.1, momentum=0.9)
CONFIGS = Path(__file__).parent.parent.parent / "configs" / "trainer"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_bends_the_singular_values_alone(shape: tuple[int, int]) -> None:
    """The iteration is a polynomial of each singular value."""
    matrix = random(*shape)
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    a, b, c = COEFFICIENTS
    values = values / matrix.double().norm()
    for _ in range(STEPS):
        values = a * values + b * values**3 + c * values**5
    got = newton_schulz(matrix)
    wanted = u @ values.diag() @ v
    assert (got.double() - wanted).norm() / wanted.norm() < 1e-4
    rounded = newton_schulz(matrix.bfloat16()).double()
    assert (rounded - wanted).norm() / wanted.norm() < 0.03
    singular = torch.linalg.svdvals(got.float())
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def steps(optimizers: list[torch.optim.Optimizer], parameters: list[Tensor], count: int) -> None:
    for step in range(count):
        for i, parameter in enumerate(parameters):
            parameter.grad = random(*parameter.shape, seed=100 * step + i)
        for optimizer in optimizers:
            optimizer.step()


def copies(*values: Tensor) -> list[Tensor]:
    return [nn.Parameter(value.clone()) for value in values]


def torch_muon(parameters: list[Tensor]) -> torch.optim.Muon:
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    return torch.optim.Muon(parameters, **settings, adjust_lr_fn="match_rms_adamw")


def assert_same_way(mine: Tensor, theirs: Tensor) -> None:
    """torch's Muon computes in bfloat16 everywhere."""
    assert theirs.norm() > 0.1
    assert (mine - theirs).norm() / theirs.norm() < 0.02


def test_whole_matrices_move_as_in_torch() -> None:
    start = [random(*shape, seed=9) for shape in SHAPES]
    mine, theirs = copies(*start), copies(*start)
    steps([Muon({p: (p.shape[0],) for p in mine}, 0.02, 0.1, 0.9)], mine, 4)
    steps([torch_muon(theirs)], theirs, 4)
    for one, other, before in zip(mine, theirs, start, strict=True):
        assert_same_way(one - before, other - before)


def test_each_part_of_a_fused_matrix_moves_on_its_own() -> None:
    rows = (16, 8, 8)
    start = random(32, 16, seed=9)
    (fused,), apart = copies(start), copies(*start.split(rows))
    mine, theirs = Muon({fused: rows}, 0.02, 0.1, 0.9), torch_muon(apart)
    for step in range(4):
        fused.grad = random(32, 16, seed=step)
        for part, gradient in zip(apart, fused.grad.split(rows), strict=True):
            part.grad = gradient.clone()
        mine.step()
        theirs.step()
    assert_same_way(fused - start, torch.cat(apart) - start)


def net(**shape: Any) -> PretrainNet:
    settings = {"dim": 16, "depth": 2, "heads": 2, "max_length": 8, "causal": True, **shape}
    backbone = Transformer(TransformerConfig(**settings), 30)
    whole = PretrainNet(backbone, CausalLM().build_head(backbone, tied=False))
    fill(whole, torch.device("cpu"), lambda name: None, seed=0)
    return whole


def test_what_muon_moves() -> None:
    model = net(positions="learned", token_types=2, activation="swiglu", hidden_dim=24)
    names = {p: name for name, p in model.named_parameters()}
    found = {names[p]: rows for p, rows in hidden_matrices(model).items()}
    assert found == {
        f"backbone.layers.{layer}.{name}.weight": rows
        for layer in range(2)
        for name, rows in {
            "attention.qkv": (16, 16, 16),
            "attention.out": (16,),
            "ffn.up": (24, 24),
            "ffn.down": (16,),
        }.items()
    }
    optimizer = build_optimizer(model, MUON, fused=True)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_an_ungated_feed_forward_part_is_one_matrix() -> None:
    rows = {m.shape: r for m, r in hidden_matrices(net(activation="gelu")).items()}
    assert rows[torch.Size([64, 16])] == (64,)


def test_frozen_matrices_are_left_out_and_muon_for_nothing_is_refused() -> None:
    model = net()
    model.backbone.layers[0].requires_grad_(False)
    assert len(hidden_matrices(model)) == 4
    model.backbone.requires_grad_(False)
    with pytest.raises(UserError, match="kind is 'muon'"):
        build_optimizer(model, MUON, fused=True)
    with pytest.raises(UserError, match=r"model\.tuning"):
        build_optimizer(model.requires_grad_(False), MUON, fused=True)


def separate(model: PretrainNet) -> list[torch.optim.Optimizer]:
    matrices = hidden_matrices(model)
    rest = [p for p in model.parameters() if p not in matrices]
    groups = [
        {"params": [p for p in rest if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95), fused=True)
    return [Muon(matrices, 0.02, 0.1, 0.9), adamw]


def test_chained_is_separate_ones() -> None:
    one, other = net(), net()
    steps([build_optimizer(one, MUON, fused=True)], list(one.parameters()), 3)
    steps(separate(other), list(other.parameters()), 3)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_restored_state_goes_on_to_the_same_bits() -> None:
    whole, parts = net(), net()
    optimizer = build_optimizer(whole, MUON, fused=True)
    steps([optimizer], list(whole.parameters()), 2)
    first = build_optimizer(parts, MUON, fused=True)
    steps([first], list(parts.parameters()), 2)
    second = build_optimizer(parts, MUON, fused=True)
    second.load_state_dict(first.state_dict())
    for either, model in ((optimizer, whole), (second, parts)):
        steps([either], list(model.parameters()), 3)
    for mine, theirs in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_config_overrides_a_restored_state() -> None:
    model = net()
    old = build_optimizer(model, MUON, fused=True)
    config = OptimizerConfig(kind="muon", lr=1.0, weight_decay=0.3, momentum=0.5, eps=1e-6)
    optimizer = build_optimizer(model, config, fused=True)
    optimizer.load_state_dict(old.state_dict())
    apply_settings(optimizer, config, rate=0.7)
    muon, decayed, plain = optimizer.param_groups
    assert (muon["lr"], muon["momentum"], muon["weight_decay"]) == (0.7, 0.5, 0.3)
    assert (decayed["lr"], decayed["eps"], decayed["weight_decay"]) == (0.7, 1e-6, 0.3)
    assert (plain["lr"], plain["weight_decay"]) == (0.7, 0.0)
    assert isinstance(optimizer, Chained)
    assert optimizer.parts[0].param_groups[0] is muon, "the parts see what is written"


def test_a_closure_runs_once_with_gradients() -> None:
    model = net()
    optimizer = build_optimizer(model, MUON, fused=True)
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert calls == [True]


# Whole runs.

STEADY = {
    "model__backbone": {"dim": 32, "depth": 2, "heads": 2, "max_length": 32, "causal": True},
    "model__optimizer": {"kind": "muon", "schedule": "constant", "warmup": 0, "lr": 0.01},
    "trainer__val_check_interval": 100,
}


def test_a_resumed_run_ends_in_the_same_bits(store, bpe_path, tmp_path):
    def fit(run: str, steps: int, **more: Any) -> None:
        options = pretrain(tmp_path / run, store, bpe_path, **STEADY, trainer__max_steps=steps)
        done(words("fit", options | more))

    fit("whole", 7)
    fit("parts", 4)
    fit("parts", 7, ckpt_path="last")
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    change = {"model.optimizer": {"kind": "adamw"}, "trainer.max_steps": 8, "ckpt_path": "last"}
    run = call(words("fit", pretrain(tmp_path / "parts", store, bpe_path, **STEADY) | change))
    assert run.code == 2
    assert "optimizer was 'muon', is 'adamw'" in run.errors[0]


@pytest.fixture(scope="module")
def one_process(store: Path, bpe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("muon") / "run"
    done(words("fit", pretrain(run_dir, store, bpe_path, **STEADY, trainer__max_steps=5)))
    return run_dir


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks(strategy: str, one_process, store, bpe_path, tmp_path):
    """DDP in one go; FSDP2 stopped and resumed from a sharded checkpoint."""
    ranks = {"trainer.devices": 2, "config": str(CONFIGS / f"{strategy}.yaml")}
    options = pretrain(tmp_path / "run", store, bpe_path, **STEADY) | ranks
    for limit in (5,) if strategy == "ddp" else (3, 5):
        more = {"trainer.max_steps": limit, "ckpt_path": "last"}
        run = finish(launch(words("fit", options | more)))
        assert run.code == 0, run.err
    mine, theirs = weights(tmp_path / "run"), weights(one_process)
    start = tiny_weights(store, bpe_path, tmp_path)
    for name, value in theirs.items():
        moved = (value - start[name]).norm()
        assert moved > 0, name
        assert (mine[name] - value).norm() / moved < 0.02, name
    left, right = (read_metrics(path) for path in (tmp_path / "run", one_process))
    losses = [[float(row["train_loss"]) for row in rows] for rows in (left, right)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def tiny_weights(store: Path, bpe_path: Path, at: Path) -> dict[str, Tensor]:
    """Before the first step: the rate is as good as zero."""
    still = {"model.optimizer": {"lr": 1e-30}, "trainer.max_steps": 1}
    done(words("fit", pretrain(at / "start", store, bpe_path, **STEADY) | still))
    return weights(at / "start")


def test_clipping_and_mixed_precision(store, bpe_path):
    """Clipping does not turn an orthogonal update; it is there, and finite, in mixed precision."""
    ends = []
    for changes in ({}, {"gradient_clip_val": 1e-3, "precision": "bf16-mixed"}):
        module = tiny.pretrain(CausalLM(), optimizer=MUON)
        data = tiny.corpus(store, bpe_path, global_batch_size=6, micro_batch_size=6)
        tiny.fit(module, data, steps=1, **changes)
        ends.append(tiny.parameters(module))
    for name, value in ends[0].items():
        if name.endswith("out.weight"):
            torch.testing.assert_close(ends[1][name], value, rtol=0, atol=0.02)
            assert value.isfinite().all()
