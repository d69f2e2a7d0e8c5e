"""One Transformer that is BERT-, GPT-2-, Llama-, Qwen- or ModernBERT-like by config."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ptft_lightning.backbones.attention import attention_mask, see_prefix
from ptft_lightning.backbones.base import Backbone, Prefix
from ptft_lightning.backbones.cache import KeyValueCache
from ptft_lightning.backbones.layers import Block, Rotary, SelfAttention, build_norm
from ptft_lightning.backbones.rotary import rotary_angles
from ptft_lightning.backbones.transformer_config import TransformerConfig


class Transformer(Backbone):
    """A stack of blocks over token, position and type embeddings."""

    config_class = TransformerConfig
    packs = True

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.dim, self.input_dim, self.vocab_size = config.dim, config.dim, vocab_size
        self.max_length, self.causal = config.max_length, config.causal
        self.prefix_lm = config.prefix_lm
        self.norm_eps, self.bias, self.tied = config.norm_eps, config.bias, config.tie_embeddings
        self.key_shape = config.key_heads, config.head_width
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.position: nn.Embedding | None = None
        self.token_type: nn.Embedding | None = None
        self.embedding_norm: nn.Module | None = None
        self.final_norm: nn.Module | None = None
        if config.positions == "learned":
            self.position = nn.Embedding(config.position_start + config.max_length, config.dim)
        if config.token_types:
            self.token_type = nn.Embedding(config.token_types, config.dim)
        if config.embedding_norm:
            self.embedding_norm = build_norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.kinds = {config.is_windowed(layer) for layer in range(config.depth)}
        if config.norm_first:
            self.final_norm = build_norm(config)

    def read_whole(self) -> None:
        """See `Backbone`."""
        self.causal = self.prefix_lm = False
        for part in self.modules():
            if isinstance(part, SelfAttention):
                part.causal = False

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        prefix: Prefix | None = None,
        cache: KeyValueCache | None = None,
        all_layers: bool = False,
    ) -> Tensor:
        """See `Backbone`."""
        read = 0 if cache is None else cache.length
        if positions is None:
            positions = torch.arange(read, read + tokens.shape[1], device=tokens.device)[None]
        if cache is not None:
            documents = cache.see(documents)
        x = self.embed(tokens, positions, segments, embeds)
        dtype = _attention_dtype(x)
        span = (tokens.shape[1], read + tokens.shape[1])
        # What blocks share: by whether they are windowed.
        rotary = {w: self._rotary(positions, w, dtype) for w in self.kinds}
        # What was read before is seen by all.
        front = F.pad(segments == 1, (read, 0)) if self.prefix_lm and segments is not None else None
        seen = documents, self.causal, dtype, span
        cut = tokens.shape[0] if cache is None and prefix is None else 0
        window = {w: self.config.window if w else None for w in self.kinds}
        mask = {w: attention_mask(*seen, window[w], tokens.device, front, cut) for w in self.kinds}
        if prefix is not None:
            beside = prefix[0][0].shape[1], self.causal, x.shape[1], x.new_empty(0, dtype=dtype)
            mask = {w: see_prefix(m, *beside) for w, m in mask.items()}
        states = []
        for layer, block in enumerate(self.layers):
            states.append(x)
            windowed = self.config.is_windowed(layer)
            shared = mask[windowed], rotary[windowed]
            before = None if prefix is None else prefix[layer]
            if self.recompute and torch.is_grad_enabled():  # a frozen backbone is in evaluation
                x = checkpoint(block, x, *shared, None, before, use_reentrant=False)
            else:
                x = block(x, *shared, None if cache is None else cache.layers[layer], before)
        x = x if self.final_norm is None else self.final_norm(x)
        return torch.stack([*states, x]) if all_layers else x

    def _rotary(self, positions: Tensor, windowed: bool, dtype: torch.dtype) -> Rotary | None:
        shape = self.config
        if shape.positions != "rotary":
            return None
        theta = shape.window_rope_theta if windowed else None
        return rotary_angles(
            positions, shape.head_width, theta or shape.rope_theta, dtype, shape.rope_scaling
        )

    def embed(
        self, tokens: Tensor, positions: Tensor, segments: Tensor | None, embeds: Tensor | None
    ) -> Tensor:
        """What the first block reads, (B, T, dim); `embeds` in place of the tokens' embeddings."""
        x: Tensor = self.embedding(tokens) if embeds is None else embeds
        if self.position is not None:
            x = x + self.position(positions + self.config.position_start)
        if self.token_type is not None:
            one = segments is None or self.config.token_types == 1  # RoBERTa: no second type
            x = x + self.token_type(torch.zeros_like(tokens) if one else segments)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        out: Tensor = self.dropout(x)
        return out


def _attention_dtype(x: Tensor) -> torch.dtype:
    """What queries and keys will be: the autocast dtype, or that of the embeddings."""
    device = x.device.type
    cast = device != "meta" and torch.is_autocast_enabled(device)  # asks for one it knows
    return torch.get_autocast_dtype(device) if cast else x.dtype
