"""A Transformer with LSH attention and reversible layers (Reformer; Kitaev et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ptft_lightning.backbones.base import Prefix
from ptft_lightning.backbones.cache import KeyValueCache
from ptft_lightning.backbones.lsh import document_line, hash_rotations
from ptft_lightning.backbones.reformer_config import PREFIX, ReformerConfig
from ptft_lightning.backbones.reversible import ReversibleBlock, Trail
from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.errors import UserError


class Reformer(Transformer):
    """Two streams that begin as the embeddings; the hidden states are their mean, normalised.

    Reading with a cache computes the attention of all tokens so far again for each new one (they
    are hashed anew, in time linear in their number), and nothing else.
    """

    config_class = ReformerConfig  # type: ignore[assignment]

    def __init__(self, config: ReformerConfig, vocab_size: int) -> None:
        super().__init__(config.transformer(), vocab_size)
        self.hashing = config
        self.layers = nn.ModuleList(ReversibleBlock(config, i) for i in range(config.depth))

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
        if prefix is not None:
            raise UserError(f"prefix: {PREFIX}")
        read = 0 if cache is None else cache.length
        if positions is None:
            positions = torch.arange(read, read + tokens.shape[1], device=tokens.device)[None]
        if cache is not None:
            documents = cache.see(documents)
        x = self.embed(tokens, positions, segments, embeds)
        rotary = self._rotary(positions, False, x.dtype)
        line = document_line(documents, len(tokens), read + tokens.shape[1], tokens.device)
        # Those that keep all states anyway have nothing to compute back.
        back = self.hashing.reversible and torch.is_grad_enabled() and not all_layers
        trail = Trail() if back else None
        first, second, states = x, x, []
        for layer, block in enumerate(self.layers):
            if all_layers:
                states.append((first + second) / 2)
            rotations = hash_rotations(self.hashing, layer, self.step if self.training else None)
            rotations = None if rotations is None else rotations.to(tokens.device)
            asked = first, second, trail, line, rotary, rotations
            if self.recompute and torch.is_grad_enabled():
                first, second = checkpoint(block, *asked, None, use_reentrant=False)
            else:
                first, second = block(*asked, None if cache is None else cache.layers[layer])
        x = (first + second) / 2
        x = x if self.final_norm is None else self.final_norm(x)
        return torch.stack([*states, x]) if all_layers else x
