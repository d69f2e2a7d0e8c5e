"""With a cache each token is read once, and the hidden states are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ptft_lightning.backbones.cache import KeyValueCache
from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import RopeScaling, TransformerConfig

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"positions": "learned", "activation": "gelu_tanh"},
    "llama": {"norm": "rmsnorm", "activation": "swiglu", "bias": False, "kv_heads": 2},
    "qwen3": {"norm": "rmsnorm", "kv_heads": 1, "head_dim": 16, "qk_norm": True},
    "windowed": {"window": 3, "window_layers": [1], "window_rope_theta": 500.0},
    "stretched": {"rope_scaling": RopeScaling("yarn", 2.0, 8)},
}


def build(name: str) -> Transformer:
    shape = {"dim": 32, "depth": 2, "heads": 4, "max_length": 16, "causal": True, **SHAPES[name]}
    torch.manual_seed(0)
    return Transformer(TransformerConfig(**shape), 50).eval()


@pytest.mark.parametrize("name", SHAPES)
def test_pieces_equal_the_whole(name: str) -> None:
    backbone, tokens = build(name), torch.randint(0, 50, (3, 12))
    with torch.no_grad():
        whole = backbone(tokens)
        cache = KeyValueCache(2, 12)
        pieces = [backbone(part, cache=cache) for part in tokens.split([5, 1, 1, 3, 2], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert cache.length == 12


@pytest.mark.parametrize("name", SHAPES)
def test_rows_padded_on_the_left_equal_rows_alone(name: str) -> None:
    backbone, tokens = build(name), torch.randint(0, 50, (2, 10))
    documents = torch.ones(2, 10, dtype=torch.long)
    documents[1, :4] = 0
    positions = (documents.cumsum(1) - 1).clamp(min=0)
    cache = KeyValueCache(2, 10)
    got = []
    with torch.no_grad():
        for span in (slice(0, 6), slice(6, 7), slice(7, 10)):
            inputs = (x[:, span] for x in (tokens, documents, positions))
            got.append(backbone(*inputs, cache=cache))
        alone = [backbone(tokens[:1]), backbone(tokens[1:, 4:])]
    rows = torch.cat(got, dim=1)
    torch.testing.assert_close(rows[:1], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows[1:, 4:], alone[1], atol=1e-5, rtol=1e-5)


def test_selected_rows_go_on() -> None:
    backbone, tokens = build("llama"), torch.randint(0, 50, (3, 8))
    chosen = torch.tensor([2, 0, 2, 1])
    cache = KeyValueCache(2, 8)
    with torch.no_grad():
        backbone(tokens[:, :7], cache=cache)
        cache.select(chosen)
        last = backbone(tokens[chosen, 7:], cache=cache)
        whole = backbone(tokens)[chosen, 7:]
    torch.testing.assert_close(last, whole, atol=1e-5, rtol=1e-5)
