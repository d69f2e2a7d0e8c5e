"""Our nets give the logits of Hugging Face's BERT, GPT-2 and Llama with the same weights.

The key tables are written out here: an independent statement of what each tensor is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.data.batch import Batch, build_batch
from ptft_lightning.modules.nets import PretrainNet
from ptft_lightning.objectives import causal, masked
from ptft_lightning.objectives.base import Objective

transformers = pytest.importorskip("transformers")

VOCABULARY, DIM, DEPTH, HEADS, FFN, LENGTH = 61, 32, 2, 4, 48, 12

BERT = {
    "backbone.embedding.weight": "bert.embeddings.word_embeddings.weight",
    "backbone.position.weight": "bert.embeddings.position_embeddings.weight",
    "backbone.token_type.weight": "bert.embeddings.token_type_embeddings.weight",
    "backbone.embedding_norm.*": "bert.embeddings.LayerNorm.*",
    "backbone.layers.#.attention.qkv.*": (
        "bert.encoder.layer.#.attention.self.query.*",
        "bert.encoder.layer.#.attention.self.key.*",
        "bert.encoder.layer.#.attention.self.value.*",
    ),
    "backbone.layers.#.attention.out.*": "bert.encoder.layer.#.attention.output.dense.*",
    "backbone.layers.#.attention_norm.*": "bert.encoder.layer.#.attention.output.LayerNorm.*",
    "backbone.layers.#.ffn.up.*": "bert.encoder.layer.#.intermediate.dense.*",
    "backbone.layers.#.ffn.down.*": "bert.encoder.layer.#.output.dense.*",
    "backbone.layers.#.ffn_norm.*": "bert.encoder.layer.#.output.LayerNorm.*",
    "head.dense.*": "cls.predictions.transform.dense.*",
    "head.norm.*": "cls.predictions.transform.LayerNorm.*",
    "head.projection.bias": "cls.predictions.bias",
}
GPT2 = {
    "backbone.embedding.weight": "transformer.wte.weight",
    "backbone.position.weight": "transformer.wpe.weight",
    "backbone.layers.#.attention.qkv.*": "transformer.h.#.attn.c_attn.*",
    "backbone.layers.#.attention.out.*": "transformer.h.#.attn.c_proj.*",
    "backbone.layers.#.attention_norm.*": "transformer.h.#.ln_1.*",
    "backbone.layers.#.ffn.up.*": "transformer.h.#.mlp.c_fc.*",
    "backbone.layers.#.ffn.down.*": "transformer.h.#.mlp.c_proj.*",
    "backbone.layers.#.ffn_norm.*": "transformer.h.#.ln_2.*",
    "backbone.final_norm.*": "transformer.ln_f.*",
}
LLAMA = {
    "backbone.embedding.weight": "model.embed_tokens.weight",
    "backbone.layers.#.attention.qkv.weight": (
        "model.layers.#.self_attn.q_proj.weight",
        "model.layers.#.self_attn.k_proj.weight",
        "model.layers.#.self_attn.v_proj.weight",
    ),
    "backbone.layers.#.attention.out.weight": "model.layers.#.self_attn.o_proj.weight",
    "backbone.layers.#.attention_norm.weight": "model.layers.#.input_layernorm.weight",
    "backbone.layers.#.ffn.up.weight": (
        "model.layers.#.mlp.gate_proj.weight",
        "model.layers.#.mlp.up_proj.weight",
    ),
    "backbone.layers.#.ffn.down.weight": "model.layers.#.mlp.down_proj.weight",
    "backbone.layers.#.ffn_norm.weight": "model.layers.#.post_attention_layernorm.weight",
    "backbone.final_norm.weight": "model.norm.weight",
    "head.projection.weight": "lm_head.weight",
}


def copy_weights(net: nn.Module, peer: nn.Module, table: dict[str, Any]) -> None:
    """Set every tensor of `net` from the peer's; `#` is a layer, `*` is weight or bias."""
    theirs, conv1d = peer.state_dict(), set()
    for name, module in peer.named_modules():
        if type(module).__name__ == "Conv1D":  # GPT-2 keeps its linear weights transposed
            conv1d.add(f"{name}.weight")
    state = {}
    for name in net.state_dict():
        layer, kind = re.search(r"\.(\d+)\.", name), name.rpartition(".")[2]
        key = re.sub(r"\.\d+\.", ".#.", name)
        sources = table[key] if key in table else table[f"{key.rpartition('.')[0]}.*"]
        parts = []
        for source in (sources,) if isinstance(sources, str) else sources:
            source = source.replace("#", layer.group(1) if layer else "").replace("*", kind)
            parts.append(theirs[source].T if source in conv1d else theirs[source])
        state[name] = torch.cat(parts)
    net.load_state_dict(state, strict=True)


def randomise(peer: nn.Module) -> None:
    """Weights of a trained model's size: at the initial 0.02 every token looks alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in peer.named_parameters():
            p.normal_(0, 0.3, generator=generator)
            if p.ndim == 1 and name.endswith("weight"):
                p.add_(1.0)
    peer.eval()


def build(objective: Objective, config: TransformerConfig) -> PretrainNet:
    backbone = Transformer(config, VOCABULARY)
    return PretrainNet(backbone, objective.build_head(backbone, config.tie_embeddings)).eval()


def logits_of(
    net: PretrainNet, batch: Batch, module: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """What the head hands to the cross-entropy, projected: (targets, vocabulary); and the loss."""
    seen = []
    real: Callable[..., Any] = module.projected_cross_entropy

    def spy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Any:
        seen.append(F.linear(hidden, weight, bias))
        return real(hidden, weight, bias, labels)

    monkeypatch.setattr(module, "projected_cross_entropy", spy)
    with torch.no_grad():
        (term,) = net(batch).terms.values()
    (logits,) = seen
    return logits, term.total / term.count


@pytest.mark.parametrize("padded", [False, True])
def test_bert(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=DIM,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            intermediate_size=FFN,
            max_position_embeddings=LENGTH + 4,
        )
    )
    randomise(peer)
    net = build(
        masked.MaskedLM(),
        TransformerConfig(
            dim=DIM,
            depth=DEPTH,
            heads=HEADS,
            hidden_dim=FFN,
            max_length=LENGTH + 4,
            norm_first=False,
            norm_eps=1e-12,
            positions="learned",
            token_types=2,
            embedding_norm=True,
        ),
    )
    copy_weights(net, peer, BERT)

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (3, LENGTH))
    real = np.array([[LENGTH], [LENGTH - 5], [2]]) if padded else np.full((3, 1), LENGTH)
    documents = (np.arange(LENGTH) < real).astype(np.int64)
    segments = (np.arange(LENGTH) >= real // 2).astype(np.int64)
    slots = np.array([[0, 3, 11], [6, 2, 1], [1, 0, 1]])
    labels = rng.integers(0, VOCABULARY, slots.shape)
    targets = {"slots": slots, "labels": labels}
    batch = build_batch(tokens, documents, np.arange(3), targets, 3, segments=segments)
    assert (batch.documents is None) is not padded

    with torch.no_grad():
        theirs = peer(
            input_ids=batch.tokens,
            attention_mask=torch.from_numpy(documents),
            token_type_ids=batch.segments,
        ).logits
    wanted = theirs[torch.arange(3)[:, None], torch.from_numpy(slots)].flatten(0, 1)
    logits, loss = logits_of(net, batch, masked, monkeypatch)
    assert wanted.std() > 1
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        loss, F.cross_entropy(wanted, torch.from_numpy(labels).flatten()), atol=1e-4, rtol=0
    )


def assert_same_causal(net: PretrainNet, peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits at all positions, and the loss of a stream without a break."""
    stream = np.random.default_rng(1).integers(0, VOCABULARY, (3, LENGTH + 1))
    ones, numbers = np.ones_like(stream), np.arange(3)
    tokenizer: Any = None  # not needed
    tokens, targets = causal.CausalLM().make(stream, ones, numbers, 0, tokenizer)
    batch = build_batch(tokens, ones[:, :-1], numbers, targets, 3)
    whole = torch.from_numpy(stream)
    with torch.no_grad():
        theirs = peer(input_ids=whole, labels=whole)
    logits, loss = logits_of(net, batch, causal, monkeypatch)
    wanted = theirs.logits[:, :-1].flatten(0, 1)
    assert wanted.std() > 1
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(loss, theirs.loss, atol=1e-4, rtol=0)


def test_gpt2(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=DIM,
            n_layer=DEPTH,
            n_head=HEADS,
            n_inner=FFN,
            n_positions=LENGTH + 1,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    randomise(peer)
    net = build(
        causal.CausalLM(),
        TransformerConfig(
            dim=DIM,
            depth=DEPTH,
            heads=HEADS,
            hidden_dim=FFN,
            max_length=LENGTH + 1,
            causal=True,
            activation="gelu_tanh",
            positions="learned",
        ),
    )
    copy_weights(net, peer, GPT2)
    assert_same_causal(net, peer, monkeypatch)


def test_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=DIM,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            intermediate_size=FFN,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
        )
    )
    randomise(peer)
    net = build(
        causal.CausalLM(),
        TransformerConfig(
            dim=DIM,
            depth=DEPTH,
            heads=HEADS,
            hidden_dim=FFN,
            max_length=LENGTH,
            causal=True,
            norm="rmsnorm",
            norm_eps=1e-6,
            activation="swiglu",
            positions="rotary",
            bias=False,
            tie_embeddings=False,
        ),
    )
    copy_weights(net, peer, LLAMA)
    assert_same_causal(net, peer, monkeypatch)
