"""How many parameters a backbone of a given shape has: pure arithmetic."""

from __future__ import annotations

from ptft_lightning.backbones.transformer_config import GATED, TransformerConfig


def layer_parameters(config: TransformerConfig) -> int:
    """Of one layer with both its norms.

    With D = dim, A = heads * width, K = key heads * width and F = width inside the feed-forward
    part: D (A + 2 K) for queries, keys and values, A D for their mix, D F + F D for the
    feed-forward part (2 D F + F D where it is gated). Biases add a row's worth each, norms D (2 D
    with biases).
    """
    dim, inner, bias = config.dim, config.ffn_dim, config.bias
    queries, keys = config.heads * config.head_width, config.key_heads * config.head_width
    gates = 2 if config.activation in GATED else 1
    qkv_bias = bias if config.qkv_bias is None else config.qkv_bias
    attention = (dim + qkv_bias) * (queries + 2 * keys) + queries * dim + bias * dim
    attention += 2 * config.head_width if config.qk_norm else 0
    ffn = gates * inner * (dim + bias) + inner * dim + bias * dim
    return attention + ffn + 2 * norm_parameters(config)


def norm_parameters(config: TransformerConfig) -> int:
    """D, twice that for a LayerNorm with bias."""
    return config.dim * (2 if config.norm == "layernorm" and config.bias else 1)


def backbone_parameters(config: TransformerConfig, vocab_size: int) -> int:
    """V D for the tokens, the tables of positions and types, the layers, and the norms around."""
    tables = vocab_size + config.token_types
    if config.positions == "learned":
        tables += config.position_start + config.max_length
    bare = config.norm_first and not config.first_norm
    norms = config.embedding_norm + config.norm_first - bare
    layers = config.depth * layer_parameters(config)
    return tables * config.dim + layers + norms * norm_parameters(config)
