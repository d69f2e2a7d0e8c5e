"""What Linformer and Reformer both promise: packing, padding, ways of reading, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones.long_rows import (
    KINDS,
    LENGTH,
    build,
    difference,
    each_document,
    gradients,
    packed,
    weigh,
)

from ptft_lightning.backbones.linformer_config import LinformerConfig
from ptft_lightning.backbones.reformer_config import ReformerConfig
from ptft_lightning.errors import UserError

kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_packed_equals_alone(kind: str) -> None:
    backbone = build(kind).double()
    tokens, documents, positions = packed()
    hidden = backbone(tokens, documents, positions)
    alone, total = torch.zeros_like(hidden), hidden.new_zeros(())
    for row, at in each_document(documents):
        alone[row, at] = backbone(tokens[row, at][None])[0]
    inside = documents > 0
    assert difference(alone[inside], hidden[inside]) < 1e-9
    weigh(hidden[inside]).backward()
    together = gradients(backbone)
    total = weigh(alone[inside])
    total.backward()
    apart = gradients(backbone)
    assert list(together) == list(apart) == [n for n, _ in backbone.named_parameters()]
    for name, gradient in apart.items():
        assert difference(together[name], gradient) < 1e-7, name


@kinds
def test_padding_and_neighbours_have_no_part(kind: str) -> None:
    """Other tokens in the padding, more of it, and other rows: the same, bit for bit."""
    backbone = build(kind)
    tokens, documents, positions = packed()
    with torch.no_grad():
        before = backbone(tokens, documents, positions)
        changed = torch.where(documents == 1, tokens, (tokens + 7) % 40)
        after = backbone(changed, documents, positions)
        short = [x[:, :20] for x in (tokens, documents, positions)]
        cut = backbone(*short)
    first = documents == 1
    assert torch.equal(before[first], after[first])
    assert not torch.equal(before[documents == 2], after[documents == 2])
    whole = torch.zeros_like(first)
    whole[:2, :20] = documents[:2, :20] > 0
    assert difference(cut[:2][whole[:2, :20]], before[whole]) < 1e-5


@kinds
def test_no_gradient_between_documents(kind: str) -> None:
    backbone = build(kind)
    tokens, documents, positions = packed()
    embeds = backbone.embedding(tokens).detach().requires_grad_()
    hidden = backbone(tokens, documents, positions, embeds=embeds)
    (gradient,) = torch.autograd.grad(weigh(hidden[1, :17]), embeds)
    assert gradient[1, :17].abs().amax(-1).gt(0).all()
    assert not gradient[1, 17:].any()
    assert not gradient[[0, 2]].any()


@kinds
def test_padding_alone_gives_zero_gradients(kind: str) -> None:
    backbone = build(kind).train()
    tokens, documents, positions = packed()
    hidden = backbone(tokens, torch.zeros_like(documents), positions)
    (hidden.sum() * 0).backward()
    for name, p in backbone.named_parameters():
        assert p.grad is not None, name
        assert not p.grad.any(), name


@kinds
def test_ways_of_reading(kind: str) -> None:
    backbone = build(kind)
    tokens, documents, positions = packed()
    hidden = backbone(tokens, documents, positions)
    embeds = backbone.embedding(tokens)
    other = torch.zeros_like(tokens)  # the tokens themselves have no part in it
    assert torch.equal(backbone(other, documents, positions, embeds=embeds), hidden)
    states = backbone(tokens, documents, positions, all_layers=True)
    assert states.shape == (4, *hidden.shape)
    assert torch.equal(states[-1], hidden)
    assert len({float(s.detach().norm()) for s in states}) == 4
    with pytest.raises(UserError, match="prefix"):
        backbone(tokens, prefix=[(embeds, embeds)] * 3)


@kinds
def test_segments(kind: str) -> None:
    backbone = build(kind, token_types=2)
    tokens, documents, positions = packed()
    plain = backbone(tokens, documents, positions)
    other = backbone(tokens, documents, positions, torch.ones_like(tokens))
    assert torch.equal(plain, backbone(tokens, documents, positions, torch.zeros_like(tokens)))
    assert not torch.equal(plain, other)


@kinds
def test_gradients_are_the_numerical_ones(kind: str) -> None:
    """Of embeddings and a part of every kind of parameter, in float64. The hashes stay: what is
    changed by 1e-6 hashes as before."""
    backbone = build(kind, depth=2, dim=4).double()
    tokens, documents, positions = (x[:2, :12] for x in packed())
    embeds = backbone.embedding(tokens).detach().requires_grad_()
    named = dict(backbone.named_parameters())
    chosen = [name for name in named if name.startswith(("layers.1", "final", "projections"))]
    values = [named[name].detach().clone().requires_grad_() for name in chosen]

    def read(embeds: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        given = dict(zip(chosen, values, strict=True))
        fields = (tokens, documents, positions)
        out: torch.Tensor = torch.func.functional_call(backbone, given, fields, {"embeds": embeds})
        return out

    assert torch.autograd.gradcheck(read, (embeds, *values), fast_mode=True)


@kinds
def test_recomputing_gives_the_same(kind: str) -> None:
    plain = build(kind, dropout=0.2, **({"reversible": False} if "reformer" in kind else {}))
    fields = packed()
    results = []
    for recompute in (False, True):
        plain.train().recompute = recompute
        torch.manual_seed(3)
        hidden = plain(*fields)
        weigh(hidden).backward()
        results.append((hidden.detach(), gradients(plain)))
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        assert torch.equal(gradient, results[1][1][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linformer-none", "linformer-layerwise", "reformer-plain"])
def test_compiling_gives_the_same(kind: str) -> None:
    fields, results = packed(), []
    for compiled in (False, True):
        backbone = build(kind)
        for layer in backbone.layers if compiled else ():
            layer.compile()
        hidden = backbone(*fields)
        weigh(hidden).backward()
        results.append((hidden.detach(), gradients(backbone)))
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-4)
    for name, gradient in results[0][1].items():
        assert difference(results[1][1][name], gradient) < 1e-4, name


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (LinformerConfig, {"causal": True}, ["backbone.causal", "ReformerConfig"]),
        (LinformerConfig, {"projected_length": 600}, ["projected_length is 600", "512"]),
        (LinformerConfig, {"projected_length": 0}, ["projected_length is 0"]),
        (LinformerConfig, {"heads": 5}, ["backbone.heads 5"]),
        (ReformerConfig, {"heads": 5}, ["backbone.heads 5"]),
        (ReformerConfig, {"chunk_length": 0}, ["chunk_length is 0"]),
        (ReformerConfig, {"buckets": 3}, ["backbone.buckets is 3", "even"]),
        (ReformerConfig, {"buckets": 2**15}, ["backbone.buckets is 32768"]),
        (ReformerConfig, {"hash_rounds": 0, "local": False}, ["hash_rounds is 0", "local"]),
        (ReformerConfig, {"dropout": 1.0}, ["backbone.dropout"]),
        (ReformerConfig, {"dim": 9, "heads": 3}, ["rotary", "even"]),
    ],
)
def test_impossible_shapes_are_refused(config: Any, changes: dict[str, Any], words: list[str]):
    with pytest.raises(UserError) as refused:
        config(**changes)
    assert all(word in str(refused.value) for word in words), refused.value


def test_parameters_of_linformer_s_ways_of_sharing() -> None:
    rows = {}
    for kind in KINDS:
        if kind.startswith("linformer"):
            named = build(kind).named_parameters()
            rows[kind[10:]] = sum(p.shape[0] for n, p in named if n.endswith("_length"))
    # k = 6, 2 heads, 3 layers: E and F of each head; of all; one of both; one of all layers
    assert rows == {"none": 72, "headwise": 36, "key-value": 18, "layerwise": 6, "bert": 36}
    assert build("linformer-none").layers[0].attention.projections.key_length.shape[1] == LENGTH
