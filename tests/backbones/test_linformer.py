"""Keys and values projected along the length, beside full attention and beside the formula."""

from __future__ import annotations

import pytest
import torch
from backbones.long_rows import LENGTH, VOCABULARY, build, difference, packed

from ptft_lightning.backbones.base import initial_value
from ptft_lightning.backbones.cache import KeyValueCache
from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.errors import UserError
from ptft_lightning.tuning.lora import LoRA

SHARING = ("none", "headwise", "key-value", "layerwise")
sharings = pytest.mark.parametrize("sharing", SHARING)


@sharings
def test_identity_projections_are_full_attention(sharing: str) -> None:
    net = build(f"linformer-{sharing}", projected_length=LENGTH)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("_length"):
                p.copy_(torch.eye(LENGTH).repeat(p.shape[0] // LENGTH, 1))
    shape = {"dim": 16, "depth": 3, "heads": 2, "max_length": LENGTH, "positions": "learned"}
    full = Transformer(TransformerConfig(**shape), VOCABULARY).eval()
    mine = {n: p for n, p in net.state_dict().items() if not n.endswith("_length")}
    full.load_state_dict(mine)
    tokens = packed()[0]  # rows that are one whole document: nothing is past its end
    assert difference(net(tokens), full(tokens)) < 1e-6


@sharings
def test_a_layer_is_the_paper_s_formula(sharing: str) -> None:
    """softmax(Q (E K)^T / sqrt(d)) (F V), by loops over heads."""
    net = build(f"linformer-{sharing}").double()
    attention = net.layers[1].attention
    x = torch.randn(1, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    projections = net.projections if sharing == "layerwise" else attention.projections
    query, key, value = attention.qkv(x[0]).split(16, dim=-1)
    heads = []
    for head in range(2):
        rows = slice(6 * head, 6 * head + 6) if sharing == "none" else slice(0, 6)
        e = projections.key_length[rows, :9]
        f = projections.value_length
        f = e if f is None else f[rows, :9]
        q, k, v = (part[:, 8 * head : 8 * head + 8] for part in (query, key, value))
        heads.append((q @ (e @ k).T / 8**0.5).softmax(-1) @ (f @ v))
    wanted = attention.out(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x, None, net.projections)[0], wanted)


def test_projections_begin_of_a_size_that_keeps_sums_small() -> None:
    value = initial_value("backbone.layers.0.attention.projections.key_length", (64, 400), 4, 0)
    assert float(value.std()) == pytest.approx(400**-0.5, rel=0.02)


def test_a_text_cannot_be_read_token_by_token() -> None:
    with pytest.raises(UserError, match="looks both ways"):
        build("linformer-none")(packed()[0], cache=KeyValueCache(3, LENGTH))


def test_adapters() -> None:
    net = build("linformer-headwise")
    LoRA(rank=2, targets=["query", "out"]).apply(net)
    net(*packed()).sum().backward()
    trained = [name for name, p in net.named_parameters() if p.grad is not None]
    assert len(trained) == 3 * 2 * 2
    assert all("lora_" in name for name in trained)
