"""A small Transformer that fills masks, and how a token is drawn from what it finds likely."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.terms import CHUNK_ELEMENTS, IGNORE


def generator_config(backbone: TransformerConfig, width: float, depth: float) -> TransformerConfig:
    """The backbone's shape with a share of its heads, width and blocks, each at least 1.

    A head keeps its width; the width and the feed-forward part follow the number of heads.
    """
    heads, blocks = (
        max(1, round(n * s)) for n, s in ((backbone.heads, width), (backbone.depth, depth))
    )
    scale = heads / backbone.heads
    local = backbone.window_layers
    return replace(
        backbone,
        dim=max(1, round(backbone.dim * scale)),
        depth=blocks,
        heads=heads,
        kv_heads=None if backbone.kv_heads is None else math.gcd(heads, backbone.kv_heads),
        head_dim=backbone.head_width,
        hidden_dim=max(1, round(backbone.ffn_dim * scale)),
        window_layers=None if local is None else [i for i in local if i < blocks],
    )


BITS = 2.0**53


class Generator(Transformer):
    """A Transformer that reads the backbone's embeddings: of tokens, positions and types.

    All are shared, as in the paper; where its width is another, a projection (`narrow`) lies
    between.
    """

    def __init__(self, config: TransformerConfig, width: int) -> None:
        super().__init__(config, vocab_size=1)
        del self.embedding, self.position, self.token_type, self.embedding_norm
        self.narrow = nn.Linear(width, config.dim) if width != config.dim else nn.Identity()

    def embed(
        self, tokens: Tensor, positions: Tensor, segments: Tensor | None, embeds: Tensor | None
    ) -> Tensor:
        """What was embedded, in its own width."""
        out: Tensor = self.narrow(embeds)
        return out


def draw(logits: Tensor, drawn: Tensor) -> Tensor:
    """(N, V) logits, (N,) numbers u of 53 bits -> (N,) tokens: where p's cumulative sums pass
    u / 2^53."""
    exact = torch.float32 if logits.device.type == "mps" else torch.float64  # Apple's has no other
    sums = logits.to(exact).softmax(-1).cumsum(-1)
    # Of all that there is rather than of 1: rounding never leaves a number above the last sum.
    wanted = (drawn.to(exact) / BITS)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, wanted, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def predict_and_draw(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, drawn: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `projected_cross_entropy` of (N, dim) hidden states, and a token drawn for each.

    Returns:
        The (N,) losses, how many labels are the most likely token, and the (N,) drawn tokens.
    """
    rows = max(1, CHUNK_ELEMENTS // 2 // weight.shape[0])  # drawing is in double precision
    if len(hidden) <= rows:
        return _predict_and_draw(hidden, weight, bias, labels, drawn)
    pieces = (torch.split(x, rows) for x in (hidden, labels, drawn))
    parts = [
        checkpoint(_predict_and_draw, h, weight, bias, y, u, use_reentrant=False)
        for h, y, u in zip(*pieces, strict=True)
    ]
    losses, right, tokens = zip(*parts, strict=True)
    return torch.cat(losses), torch.stack(right).sum(), torch.cat(tokens)


def _predict_and_draw(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, drawn: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    logits = F.linear(hidden, weight, bias).float()
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    with torch.no_grad():
        right = ((logits.argmax(-1) == labels) & (labels != IGNORE)).sum()
        return losses, right, draw(logits, drawn)
