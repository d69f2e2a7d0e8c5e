"""The models that are compared: an objective and a backbone each, of one width and depth."""

from __future__ import annotations

from typing import Any

from ptft_lightning.backbones.config import BackboneConfig
from ptft_lightning.backbones.linformer_config import LinformerConfig
from ptft_lightning.backbones.lstm_config import LSTMConfig
from ptft_lightning.backbones.reformer_config import ReformerConfig
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.objectives.base import Objective
from ptft_lightning.objectives.bidirectional import BidirectionalLM
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.objectives.replaced import ReplacedTokens

REFERENCE = "bert"
NO_ADAPTERS = ("elmo",)  # LoRA needs linear layers


def models(dim: int, depth: int, heads: int, length: int) -> dict[str, tuple[Objective, Any]]:
    """Name -> objective and backbone."""
    size = {"dim": dim, "depth": depth, "heads": heads, "max_length": length}
    encoder = TransformerConfig(**size)
    linformer = LinformerConfig(**size, projected_length=length // 4)
    # Plain layers: nothing is too large here, and what is computed twice would count twice.
    hashing = {"chunk_length": length // 4, "hash_rounds": 2, "reversible": False}
    reformer = ReformerConfig(**size, causal=True, **hashing)
    # Two stacks of half the width each and a softmax over that half, as ELMo's.
    recurrent = LSTMConfig(dim=dim, depth=depth, max_length=length, tie_embeddings=True)
    return {
        "bert": (MaskedLM(rate=0.2), encoder),
        "electra": (ReplacedTokens(rate=0.2, generator_width=0.5), encoder),
        "gpt": (CausalLM(), TransformerConfig(**size, causal=True)),
        "elmo": (BidirectionalLM(), recurrent),
        "linformer": (MaskedLM(rate=0.2), linformer),
        "reformer": (CausalLM(), reformer),
    }


def as_options(objective: Objective, backbone: BackboneConfig) -> dict[str, Any]:
    """What a config says of them."""
    shape = {k: v for k, v in vars(backbone).items() if v is not None}
    learnt = {"class_path": type(objective).__name__, "init_args": objective.config()}
    return {
        "model.objective": learnt,
        "model.backbone": {"class_path": type(backbone).__name__, "init_args": shape},
    }
