"""A backbone read by embeddings, and read layer by layer as Hugging Face's hidden_states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones.test_packing_isolates import KINDS, build, packed_inputs
from backbones.test_same_as_huggingface import BERT, LLAMA, copy_weights, randomise

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig

transformers = pytest.importorskip("transformers")
kinds = pytest.mark.parametrize("kind", KINDS)
SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "hidden_dim": 48, "max_length": 16}


@kinds
def test_embeddings_in_place_of_tokens(kind: str) -> None:
    backbone = build(kind)
    tokens, *rest = packed_inputs()
    rest = rest if backbone.config.token_types else rest[:2]
    embeds = backbone.embedding(tokens)
    other = torch.zeros_like(tokens)  # the tokens themselves have no part in it
    assert torch.equal(backbone(other, *rest, embeds=embeds), backbone(tokens, *rest))


@kinds
def test_the_last_of_all_layers_is_the_output(kind: str) -> None:
    backbone = build(kind)
    tokens, documents, positions, _ = packed_inputs()
    plain = backbone(tokens, documents, positions)
    states = backbone(tokens, documents, positions, all_layers=True)
    assert states.shape == (3, *plain.shape)
    assert torch.equal(states[-1], plain)
    assert len({float(s.detach().norm()) for s in states}) == 3


def assert_same_states(ours: Transformer, peer: Any, **fields: Any) -> None:
    tokens = torch.randint(0, 61, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = peer(input_ids=tokens, output_hidden_states=True, **fields).hidden_states
        mine = ours(tokens, all_layers=True)
    assert len(mine) == len(theirs)
    for layer, wanted in zip(mine, theirs, strict=True):
        assert wanted.std() > 0.1
        torch.testing.assert_close(layer, wanted, atol=1e-4, rtol=1e-4)


def copied(config: TransformerConfig, peer: Any, table: dict[str, Any]) -> Transformer:
    ours = Transformer(config, 61)
    copy_weights(torch.nn.ModuleDict({"backbone": ours}), peer, table)
    return ours.eval()


def test_bert() -> None:
    config = transformers.BertConfig(**SIZES, intermediate_size=48, max_position_embeddings=16)
    peer = transformers.BertForMaskedLM(config)
    randomise(peer)
    shape = {"norm_first": False, "norm_eps": 1e-12, "positions": "learned", "token_types": 2}
    mine = TransformerConfig(**SHAPE, **shape, embedding_norm=True)
    assert_same_states(copied(mine, peer, BERT), peer.bert)


def test_llama() -> None:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=48)
    peer = transformers.LlamaForCausalLM(config)
    randomise(peer)
    shape = {"kv_heads": 2, "norm": "rmsnorm", "norm_eps": 1e-6, "activation": "swiglu"}
    mine = TransformerConfig(**SHAPE, **shape, causal=True, positions="rotary", bias=False)
    assert_same_states(copied(mine, peer, LLAMA), peer.model)
