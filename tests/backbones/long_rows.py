"""Small Linformers and Reformers, and packed rows for them to read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptft_lightning.backbones.base import initial_value
from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.modules.nets import build_backbone

VOCABULARY, LENGTH = 40, 24
# Rows of documents: lengths; what is left of a row is padding.
ROWS = [[11, 3, 6], [17, 2], [1, 1, 22]]
REFORMER = {"chunk_length": 3, "hash_rounds": 2, "buckets": 4}
KINDS: dict[str, dict[str, Any]] = {
    **{
        f"linformer-{sharing}": {"projected_length": 6, "sharing": sharing}
        for sharing in ("none", "headwise", "key-value", "layerwise")
    },
    "linformer-bert": {"projected_length": 6, "norm_first": False, "embedding_norm": True},
    "reformer-both": REFORMER,
    "reformer-causal": {**REFORMER, "causal": True},
    "reformer-learned": {**REFORMER, "causal": True, "positions": "learned", "local": False},
    "reformer-plain": {**REFORMER, "reversible": False, "norm": "rmsnorm", "activation": "swiglu"},
}


def build(kind: str, **changes: Any) -> Transformer:
    """A backbone of a kind, with weights that are no longer small; in evaluation unless told."""
    shape = {"dim": 16, "depth": 3, "heads": 2, "max_length": LENGTH, **KINDS[kind], **changes}
    backbone = build_backbone(kind.partition("-")[0], shape, VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in backbone.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(initial_value(name, p.shape, 3, 0) + 0.2 * noise)
    assert isinstance(backbone, Transformer)
    return backbone.eval()


def packed() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, documents and positions."""
    documents = torch.zeros(len(ROWS), LENGTH, dtype=torch.long)
    positions = torch.zeros_like(documents)
    for row, lengths in enumerate(ROWS):
        numbers = [n for n, length in enumerate(lengths, 1) for _ in range(length)]
        documents[row, : len(numbers)] = torch.tensor(numbers)
        places = torch.cat([torch.arange(length) for length in lengths])
        positions[row, : len(numbers)] = places
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, documents.shape, generator=generator)
    return tokens, documents, positions


def each_document(documents: Tensor) -> list[tuple[int, Tensor]]:
    """Row and places of every document."""
    return [
        (row, (documents[row] == number).nonzero()[:, 0])
        for row in range(len(documents))
        for number in range(1, int(documents[row].max()) + 1)
    ]


def weigh(hidden: Tensor) -> Tensor:
    """A scalar to which every output counts differently."""
    count = torch.arange(1, hidden.numel() + 1, dtype=hidden.dtype).view_as(hidden)
    return (hidden * count.cos()).sum()


def gradients(backbone: Transformer) -> dict[str, Tensor]:
    """And forget them."""
    found = {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    return found


def difference(x: Tensor, wanted: Tensor) -> float:
    """Relative."""
    return float((x - wanted).detach().norm() / wanted.detach().norm().clamp(min=1e-12))
