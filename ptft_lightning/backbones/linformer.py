"""A Transformer whose keys and values are projected along the length (Linformer)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ptft_lightning.backbones.attention import attention
from ptft_lightning.backbones.base import Prefix
from ptft_lightning.backbones.cache import KeyValueCache
from ptft_lightning.backbones.layers import SelfAttention
from ptft_lightning.backbones.linformer_config import PREFIX, LinformerConfig
from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.unpacking import document_places, pack_again, unpack
from ptft_lightning.errors import UserError


class Projections(nn.Module):
    """E and F, (k or heads k, longest document), which are one where keys and values share."""

    def __init__(self, config: LinformerConfig) -> None:
        super().__init__()
        rows = config.projected_length * (config.heads if config.sharing == "none" else 1)
        self.key_length = nn.Parameter(torch.empty(rows, config.max_length))
        self.value_length: nn.Parameter | None = None
        if config.sharing in ("none", "headwise"):
            self.value_length = nn.Parameter(torch.empty(rows, config.max_length))
        self.projected = config.projected_length

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(D, H, L, width) each -> (D, H, k, width) each."""
        by = self.key_length if self.value_length is None else self.value_length
        return self._project(key, self.key_length), self._project(value, by)

    def _project(self, x: Tensor, along: Tensor) -> Tensor:
        # (H or 1, k, L): the first L columns are the positions that are there.
        length = x.shape[2]
        return along[:, :length].reshape(-1, self.projected, length) @ x


class LowRankAttention(SelfAttention):
    """Attention to k mixtures of a document's tokens: (B, T, dim) -> (B, T, dim)."""

    def __init__(self, config: LinformerConfig) -> None:
        super().__init__(config.transformer())
        own = config.sharing != "layerwise"
        self.projections = Projections(config) if own else None

    def forward(  # type: ignore[override]
        self, x: Tensor, places: Tensor | None, shared: Projections | None
    ) -> Tensor:
        """Each document is attended to in a row of its own, at `places` of the rows of `x`; what
        is past its end is zero before it is projected. `shared` is what layers share."""
        split = self.qkv(x)
        if places is not None:
            split = unpack(split, places) * (places >= 0)[..., None]
        rows, length, _ = split.shape
        parts = split.view(rows, length, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        projections = self.projections if shared is None else shared
        assert projections is not None, "a layer has its own, or all share"
        key, value = projections(parts[1], parts[2])
        dropout = self.dropout if self.training else 0.0
        mixed = attention(parts[0], key, value, None, False, dropout)
        mixed = mixed.transpose(1, 2).reshape(rows, length, -1)
        if places is not None:
            mixed = pack_again(mixed, places, (x.shape[0], x.shape[1]))
        out: Tensor = self.out(mixed)
        return out


class Linformer(Transformer):
    """Blocks whose attention is linear in the length (Wang et al. 2020).

    E and F belong to the positions of one document, so packed rows are taken apart for the
    attention alone; all else is computed in the rows as they are.
    """

    config_class = LinformerConfig  # type: ignore[assignment]

    def __init__(self, config: LinformerConfig, vocab_size: int) -> None:
        super().__init__(config.transformer(), vocab_size)
        for block in self.layers:
            block.attention = LowRankAttention(config)
        self.projections = Projections(config) if config.sharing == "layerwise" else None

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
        if cache is not None:
            raise UserError("a Linformer looks both ways: it cannot read a text token by token")
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x = self.embed(tokens, positions, segments, embeds)
        places = None if documents is None else document_places(documents)
        states = []
        for block in self.layers:
            states.append(x)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, places, self.projections, use_reentrant=False)
            else:
                x = block(x, places, self.projections)
        x = x if self.final_norm is None else self.final_norm(x)
        return torch.stack([*states, x]) if all_layers else x
