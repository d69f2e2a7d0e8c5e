"""Keys and values before a document's own: seen by all of its tokens, whatever the mask.

The references are Hugging Face's Llama with the same keys and values in its cache, and the formula
of attention in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones.test_packing_isolates import (
    KINDS,
    VOCABULARY,
    build,
    difference,
    each_document,
    packed_inputs,
)
from backbones.test_same_as_huggingface import LLAMA, copy_weights, randomise
from torch import Tensor

from ptft_lightning.backbones.base import Prefix
from ptft_lightning.backbones.layers import SelfAttention
from ptft_lightning.backbones.transformer import Transformer, TransformerConfig

transformers = pytest.importorskip("transformers")

LENGTH, PREFIX = 12, 3
SHAPES: dict[str, dict[str, Any]] = {
    "bidirectional": {},
    "bidirectional with windows": {"window": 2, "window_layers": [0]},
    "causal": {"causal": True},
    "causal with windows": {"causal": True, "window": 2, "window_layers": [1]},
    "grouped": {"causal": True, "kv_heads": 2},
    "learned positions": {"positions": "learned", "norm_first": False, "embedding_norm": True},
}
shapes = pytest.mark.parametrize("name", SHAPES)


def make(name: str) -> Transformer:
    torch.manual_seed(0)
    shape = {"dim": 32, "depth": 2, "heads": 4, "max_length": LENGTH, **SHAPES[name]}
    backbone = Transformer(TransformerConfig(**shape), VOCABULARY)
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return backbone


def make_prefix(backbone: Transformer) -> Prefix:
    """Of a size that tells; every number a parameter."""
    generator = torch.Generator().manual_seed(1)
    heads, width = backbone.key_shape
    made = torch.randn(len(backbone.layers), 2, heads, PREFIX, width, generator=generator)
    return [(k.clone().requires_grad_(), v.clone().requires_grad_()) for k, v in made]


def flat(prefix: Prefix) -> list[Tensor]:
    return [tensor for pair in prefix for tensor in pair]


@shapes
def test_packed_equals_alone(name: str) -> None:
    """Outputs, and the gradients of the prefix."""
    backbone = make(name)
    tokens, documents, positions, _ = packed_inputs()
    prefix = make_prefix(backbone)
    packed = backbone(tokens, documents, positions, prefix=prefix)
    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(2))
    (packed * weights)[documents > 0].sum().backward()
    together = [p.grad for p in flat(prefix)]
    prefix = make_prefix(backbone)
    for row, at in each_document(documents):
        alone = backbone(tokens[row, at][None], prefix=prefix)[0]
        assert difference(alone, packed[row, at]) < 1e-5
        without = backbone(tokens[row, at][None])[0]
        assert difference(without, packed[row, at]) > 1e-2
        (alone * weights[row, at]).sum().backward()
    for p, wanted in zip(flat(prefix), together, strict=True):
        assert wanted is not None
        assert difference(p.grad, wanted) < 1e-5


@shapes
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    """Also where the backbone is frozen, and so in evaluation."""
    backbone = make(name).requires_grad_(False).eval()
    tokens, documents, positions, _ = packed_inputs()
    gradients = []
    for recompute in (False, True):
        backbone.recompute = recompute
        prefix = make_prefix(backbone)
        calls: list[int] = []
        for layer in backbone.layers:
            layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        backbone(tokens, documents, positions, prefix=prefix).square().sum().backward()
        for layer in backbone.layers:
            layer._forward_pre_hooks.clear()
        assert len(calls) == len(backbone.layers) * (1 + recompute)
        gradients.append([p.grad for p in flat(prefix)])
    for once, again in zip(*gradients, strict=True):
        assert once is not None
        assert again is not None
        torch.testing.assert_close(once, again)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind: str) -> None:
    """The kernel of short rows on processors."""
    backbone = build(kind)
    tokens, documents, positions, _ = packed_inputs()
    with torch.no_grad():
        wanted = backbone(tokens, documents, positions, prefix=make_prefix(backbone))
        with torch.autocast("cpu", torch.bfloat16):
            got = backbone(tokens, documents, positions, prefix=make_prefix(backbone))
    real = documents > 0
    assert difference(got[real].float(), wanted[real]) < 5e-2


def test_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(TransformerConfig(dim=24, heads=4, kv_heads=2, max_length=8)).double()
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    keys, values = torch.randn(2, 2, PREFIX, 6, dtype=torch.float64)
    query, key, value = layer.qkv(x).split([24, 12, 12], dim=-1)
    heads = []
    for head in range(4):
        own, shared = slice(6 * head, 6 * head + 6), slice(6 * (head // 2), 6 * (head // 2) + 6)
        k = torch.cat([keys[head // 2].expand(2, -1, -1), key[..., shared]], dim=1)
        v = torch.cat([values[head // 2].expand(2, -1, -1), value[..., shared]], dim=1)
        scores = query[..., own] @ k.transpose(1, 2) / 6**0.5
        heads.append(scores.softmax(-1) @ v)
    wanted = layer.out(torch.cat(heads, dim=-1))
    torch.testing.assert_close(layer(x, None, None, None, (keys, values)), wanted)


@pytest.mark.parametrize("key_heads", [4, 2])
def test_llama_with_the_same_cache(key_heads: int) -> None:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
        intermediate_size=48,
        rms_norm_eps=1e-6,
    )
    peer = transformers.LlamaForCausalLM(config)
    randomise(peer)
    shape = TransformerConfig(
        dim=32,
        depth=2,
        heads=4,
        kv_heads=key_heads,
        hidden_dim=48,
        max_length=LENGTH,
        causal=True,
        norm="rmsnorm",
        norm_eps=1e-6,
        activation="swiglu",
        positions="rotary",
        bias=False,
    )
    ours = torch.nn.ModuleDict({"backbone": Transformer(shape, VOCABULARY)}).eval()
    copy_weights(ours, peer, LLAMA)
    backbone = ours["backbone"]
    assert isinstance(backbone, Transformer)
    tokens = torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    prefix = make_prefix(backbone)
    cache = transformers.DynamicCache()
    for layer, (keys, values) in enumerate(prefix):
        cache.update(keys.expand(2, -1, -1, -1), values.expand(2, -1, -1, -1), layer)
    with torch.no_grad():
        theirs = peer.model(
            input_ids=tokens,
            past_key_values=cache,
            position_ids=torch.arange(LENGTH).expand(2, -1),
        ).last_hidden_state
        mine = backbone(tokens, prefix=prefix)
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
