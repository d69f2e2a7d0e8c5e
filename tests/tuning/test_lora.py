"""Low-rank adapters, biases alone, and rates by layer: what trains, and how fast."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import tiny
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tuning.conftest import trained

from ptft_lightning.backbones.base import initial_value
from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.modules.muon import hidden_matrices
from ptft_lightning.modules.nets import PretrainNet, fill
from ptft_lightning.modules.optimizers import OptimizerConfig, apply_settings, build_optimizer
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.tuning.bitfit import BitFit
from ptft_lightning.tuning.full import Full
from ptft_lightning.tuning.lora import LoRA, LoraLinear, merge

GATED = {"activation": "swiglu", "kv_heads": 2, "hidden_dim": 48}


def backbone(**shape: Any) -> Transformer:
    settings = {"dim": 32, "depth": 2, "heads": 4, "max_length": 16, **shape}
    return Transformer(TransformerConfig(**settings), 50)


def adapted(lora: LoRA, **shape: Any) -> dict[str, LoraLinear]:
    """The layers with adapters of a backbone, all of whose values are random."""
    body = backbone(**shape)
    lora.apply(body)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.normal_(generator=generator)
    return {name: m for name, m in body.named_modules() if isinstance(m, LoraLinear)}


def by_hand(layer: LoraLinear, x: Tensor, rows: list[int], chosen: list[int], lora: LoRA) -> Tensor:
    """W x + b, and alpha / rank B A x of each chosen part in its rows."""
    y = F.linear(x, layer.weight, layer.bias)
    begins = [sum(rows[:i]) for i in range(len(rows))]
    taken = 0
    for place, part in enumerate(chosen):
        a = layer.lora_a[place * lora.rank : (place + 1) * lora.rank]
        b = layer.lora_b[taken : taken + rows[part]]
        y[..., begins[part] : begins[part] + rows[part]] += lora.alpha / lora.rank * (x @ a.T @ b.T)
        taken += rows[part]
    return y


@pytest.mark.parametrize(
    ("targets", "shape", "name", "rows", "chosen"),
    [
        (None, {}, "attention.qkv", [32, 32, 32], [0, 1, 2]),
        (None, GATED, "attention.qkv", [32, 16, 16], [0, 1, 2]),
        (["query", "value"], GATED, "attention.qkv", [32, 16, 16], [0, 2]),
        (["key"], {}, "attention.qkv", [32, 32, 32], [1]),
        (["all"], GATED, "ffn.up", [48, 48], [0, 1]),
        (["up"], GATED, "ffn.up", [48, 48], [1]),
        (["up"], {}, "ffn.up", [128], [0]),
        (["out", "down"], GATED, "ffn.down", [32], [0]),
    ],
)
@torch.no_grad()
def test_each_part_has_its_own_adapter(
    targets: list[str] | None, shape: dict[str, Any], name: str, rows: Any, chosen: Any
) -> None:
    lora = LoRA(rank=3, alpha=5.0, targets=targets)
    layer = adapted(lora, **shape)[f"layers.1.{name}"]
    x = torch.randn(2, 7, layer.in_features)
    wanted = by_hand(layer, x, rows, chosen, lora)
    torch.testing.assert_close(layer(x), wanted, atol=1e-4, rtol=1e-5)
    weight = merge(layer.weight, layer.lora_a, layer.lora_b, layer.parts, lora)
    torch.testing.assert_close(F.linear(x, weight, layer.bias), wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (["qkv"], {"0.attention.qkv", "1.attention.qkv"}),
        (["layers.1.attention.*"], {"1.attention.qkv", "1.attention.out"}),
        (["layers.0.*", "down"], {f"0.{n}" for n in ("attention.qkv", "attention.out", "ffn.up")}),
        (["ffn.*"], {f"{i}.ffn.{n}" for i in (0, 1) for n in ("up", "down")}),
    ],
)
def test_patterns_choose_layers(targets: list[str], wanted: set[str]) -> None:
    found = {name.removeprefix("layers.") for name in adapted(LoRA(targets=targets))}
    both = {"0.ffn.down", "1.ffn.down"} if "down" in targets else set()
    assert found == wanted | both


@pytest.mark.parametrize(("shape", "parts"), [(GATED, ", gate, up, "), ({}, "value, out, up, ")])
def test_a_pattern_that_matches_nothing_is_refused(shape: dict[str, Any], parts: str) -> None:
    with pytest.raises(UserError, match=r"targets: 'q_proj' matches no layer") as refusal:
        LoRA(targets=["query", "q_proj"]).apply(backbone(**shape))
    assert parts in str(refusal.value)


def test_scales() -> None:
    assert LoRA(rank=16, alpha=8.0).scale == 0.5
    assert LoRA(rank=16, alpha=8.0, rank_stabilised=True).scale == 2.0


@pytest.mark.parametrize(
    "settings", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"quantize": "nf4"}]
)
def test_settings_that_cannot_be(settings: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"tuning.{next(iter(settings))}"):
        LoRA(**settings).apply(backbone())


def test_quantisation_without_its_library_names_the_extra(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("ptft_lightning.tuning.quantized.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ptft-lightning\[quantized\]'"):
        LoRA(quantize="nf4").apply(backbone())


def test_initial_values_are_peft_s() -> None:
    a = initial_value("backbone.layers.0.attention.qkv.lora_a", (400, 64), 2, seed=0)
    bound = math.sqrt(6 / ((1 + 5) * 64))  # Kaiming's, a = sqrt(5)
    assert float(a.abs().max()) <= bound
    assert float(a.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not initial_value("backbone.layers.0.attention.qkv.lora_b", (9, 4), 2, seed=0).any()


@pytest.mark.parametrize("name", ["lora", "bitfit"])
def test_the_rest_stays_bit_for_bit(name: str, base: Path, file: Path) -> None:
    tuning = LoRA(rank=2, dropout=0.1) if name == "lora" else BitFit()
    module = trained(base, file, tuning, optimizer=OptimizerConfig(lr=0.01))
    bundle = open_bundle(base)
    mine = (".lora_a", ".lora_b") if name == "lora" else ("bias",)
    moved = [n for n, v in tiny.parameters(module).items() if not torch.equal(v, module.began[n])]
    assert moved == [n for n in module.began if n.endswith(mine) or n.startswith("head.")]
    assert any(n.startswith("backbone.") for n in moved)
    for key, value in tiny.parameters(module).items():
        if key.startswith("backbone.") and not key.endswith(mine):
            assert torch.equal(value, bundle.tensor(key)), key


def test_recomputed_activations_give_the_same_gradient(base: Path, file: Path) -> None:
    gradients = []
    for recompute in (False, True):
        seen = tiny.Gradients()
        module = tiny.finetune(
            init_from=str(base), tuning=LoRA(dropout=0.2), activation_checkpointing=recompute
        )
        tiny.fit(module, tiny.examples(file, None), steps=2, callbacks=[seen])
        gradients.append(seen.steps[1])
    for key, value in gradients[0].items():
        assert torch.equal(gradients[1][key], value), key


def test_a_backbone_without_biases_is_refused(bpe: Tokenizer, tmp_path: Path, file: Path) -> None:
    bare = tiny.bundle(tmp_path / "bundle", bpe, bias=False)
    with pytest.raises(UserError, match="BitFit, which trains biases, and the backbone has none"):
        trained(bare, file, BitFit())


# Optimizers.


def net(lora: LoRA | None = None) -> PretrainNet:
    body = backbone(**GATED, positions="learned")
    if lora is not None:
        lora.apply(body)
    whole = PretrainNet(body, CausalLM().build_head(body, tied=False))
    fill(whole, torch.device("cpu"), lambda name: None, seed=0)
    return whole


def test_muon_moves_each_part_of_an_adapter_by_itself() -> None:
    model = net(LoRA(rank=3, targets=["query", "value", "down"]))
    names = {p: name.partition(".layers.0.")[2] for name, p in model.named_parameters()}
    rows = {names[p]: rows for p, rows in hidden_matrices(model).items() if names[p]}
    assert rows == {
        "attention.qkv.lora_a": (3, 3),
        "attention.qkv.lora_b": (32, 16),
        "ffn.down.lora_a": (3,),
        "ffn.down.lora_b": (32,),
    }


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_rates_fall_layer_by_layer_also_after_a_restored_state(kind: Any) -> None:
    """decay^(layers - layer): the head's is 1, embeddings are below layer 0."""
    tuning, config = Full(layer_decay=0.5), OptimizerConfig(kind=kind, lr=0.25)
    model = net()
    named = dict(model.named_parameters())
    factors = {p: tuning.rate_factor(name, 2) for name, p in named.items()}
    optimizer = build_optimizer(model, config, True, factors)
    plain = build_optimizer(model, config, True, factors)
    for group in plain.param_groups:
        group["lr"] = 7.0
    optimizer.load_state_dict(plain.state_dict())
    apply_settings(optimizer, config, 0.25, factors)
    found = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == len(named)
    for name, p in named.items():
        below = {"layers.1": 1, "layers.0": 2, "embedding": 3, "position": 3}
        power = next((n for key, n in below.items() if f"backbone.{key}." in name), 0)
        assert found[p] == 0.25 * 0.5**power, name


def test_without_decay_all_rates_are_the_same() -> None:
    model = net()
    named = model.named_parameters()
    factors = {p: Full().rate_factor(name, 2) for name, p in named}
    assert set(factors.values()) == {1.0}
    assert len(build_optimizer(model, OptimizerConfig(), True, factors).param_groups) == 2
    with pytest.raises(UserError, match=r"layer_decay is 1\.5"):
        Full(layer_decay=1.5)


def test_four_bits_are_not_sharded():
    """What FSDP2 would make of them is refused before bitsandbytes sees it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sharded = backbone()
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(UserError, match="which FSDP2 cannot shard"):
            LoRA(quantize="nf4").settle(sharded)
    finally:
        dist.destroy_process_group()
