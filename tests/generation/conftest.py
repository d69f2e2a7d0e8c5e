"""Models with random weights, for which every continuation is a surprise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from backbones.test_same_as_huggingface import LLAMA, copy_weights, randomise

from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.generation.model import LanguageModel
from ptft_lightning.modules.nets import PretrainNet
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedLM

torch.set_num_threads(1)

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"positions": "learned", "activation": "gelu_tanh"},
    "llama": {"norm": "rmsnorm", "activation": "swiglu", "bias": False, "kv_heads": 2},
}
Build = Callable[..., LanguageModel]


@pytest.fixture
def build() -> Build:
    def build(tokenizer: Tokenizer, causal: bool = True, **shape: Any) -> LanguageModel:
        config = {"dim": 32, "depth": 2, "heads": 4, "max_length": 32, "causal": causal, **shape}
        torch.manual_seed(0)
        backbone = Transformer(TransformerConfig(**config), tokenizer.size)
        head = (CausalLM() if causal else MaskedLM()).build_head(backbone, tied=False)
        torch.nn.init.normal_(head.projection.weight)
        if not causal:
            torch.nn.init.normal_(head.projection.bias)
        return LanguageModel(backbone.eval(), head.eval(), tokenizer)

    return build


@pytest.fixture
def llama(bpe: Tokenizer) -> tuple[Any, LanguageModel]:
    """A tiny Llama of Hugging Face's with random weights, and ours with the same."""
    peer = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=bpe.size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
            bos_token_id=bpe.begin,
            eos_token_id=bpe.end,
            pad_token_id=bpe.pad,
        )
    )
    randomise(peer)
    config = TransformerConfig(
        **{"dim": 32, "depth": 2, "heads": 4, "hidden_dim": 48, "max_length": 64, "causal": True},
        **{"norm": "rmsnorm", "activation": "swiglu", "bias": False, "tie_embeddings": False},
    )
    backbone = Transformer(config, bpe.size)
    net = PretrainNet(backbone, CausalLM().build_head(backbone, tied=False)).eval()
    copy_weights(net, peer, LLAMA)
    return peer, LanguageModel(net.backbone, net.head, bpe)
