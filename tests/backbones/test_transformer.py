"""Recomputing and compiling change nothing; impossible shapes are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.errors import UserError

TOKENS = torch.arange(20).reshape(2, 10)


def build(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(dim=32, depth=2, heads=4, max_length=16, **changes)
    return Transformer(config, 20)


def loss_and_gradients(backbone: Transformer) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    loss = (backbone(TOKENS) * torch.linspace(-1, 1, 32)).square().sum()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}


def test_recomputing_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    ffn = type(build().layers[0].ffn)
    forward = ffn.forward
    monkeypatch.setattr(ffn, "forward", lambda *a: calls.append(1) or forward(*a))

    plain = build(dropout=0.2)  # dropout must draw the same again
    loss, gradients = loss_and_gradients(plain)
    assert len(calls) == 2
    recomputed = build(dropout=0.2)
    recomputed.recompute = True
    again, others = loss_and_gradients(recomputed)
    assert len(calls) == 6  # twice in each layer

    assert torch.equal(loss, again)
    assert list(gradients) == list(others) == [n for n, _ in plain.named_parameters()]
    for name, gradient in gradients.items():
        assert torch.equal(gradient, others[name]), name
    assert list(plain.state_dict()) == list(recomputed.state_dict())

    with torch.no_grad():
        recomputed(TOKENS)
    assert len(calls) == 8  # nothing to compute again


@pytest.mark.slow
def test_compiling_gives_the_same() -> None:
    plain, compiled = build(), build()
    for layer in compiled.layers:
        layer.compile()
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in compiled.named_parameters()]
    loss, gradients = loss_and_gradients(plain)
    again, others = loss_and_gradients(compiled)
    torch.testing.assert_close(again, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": 0}, ["backbone.dim", "0"]),
        ({"depth": 0}, ["backbone.depth"]),
        ({"heads": 5}, ["backbone.heads 5", "backbone.dim 192"]),
        ({"dim": 9, "heads": 3}, ["rotary", "3", "even"]),
        ({"dropout": 1.0}, ["backbone.dropout", "1.0"]),
        ({"max_length": 0}, ["backbone.max_length"]),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        TransformerConfig(**changes)
    assert all(word in str(refused.value) for word in words), refused.value


def test_parts_follow_the_config() -> None:
    net = build(positions="learned", token_types=2, embedding_norm=True, norm_first=False)
    names = {n.split(".")[0] for n, _ in net.named_parameters()}
    assert names == {"embedding", "position", "token_type", "embedding_norm", "layers"}
    net = build(bias=False, norm="rmsnorm", activation="swiglu", hidden_dim=40)
    assert not [n for n, _ in net.named_parameters() if n.endswith("bias")]
    assert net.layers[0].ffn.up.weight.shape == (80, 32)
    assert "final_norm.weight" in net.state_dict()
    # SwiGLU's three matrices are as large as GELU's two.
    sizes = [
        sum(p.numel() for p in build(activation=kind).layers[0].ffn.parameters() if p.ndim == 2)
        for kind in ("gelu", "swiglu")
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.15)


def test_segments_default_to_the_first() -> None:
    net = build(token_types=2)
    with torch.no_grad():
        net.token_type.weight.normal_()  # type: ignore[union-attr]
        default = net(TOKENS)
        assert torch.equal(default, net(TOKENS, segments=torch.zeros_like(TOKENS)))
        assert not torch.equal(default, net(TOKENS, segments=torch.ones_like(TOKENS)))
