"""What other kinds of backbone share with a Transformer; knows no tensors."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ptft_lightning.backbones.config import BackboneConfig
from ptft_lightning.backbones.transformer_config import TransformerConfig


def like(config: BackboneConfig, **fixed: Any) -> TransformerConfig:
    """The Transformer that another kind is but for its attention: the settings both have."""
    names = (field.name for field in fields(TransformerConfig))
    return TransformerConfig(**{n: getattr(config, n) for n in names if hasattr(config, n)} | fixed)
