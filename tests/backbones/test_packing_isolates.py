"""Documents packed in a row give what each gives alone: outputs, gradients, bit for bit apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.data.batch import positions_of
from ptft_lightning.modules.nets import build_backbone

VOCABULARY, LENGTH = 40, 12
# Rows of documents: lengths; what is left of a row is padding.
ROWS = [[5, 3, 4], [7, 2], [1, 1, 8]]

KINDS = {
    "bidirectional-rotary": TransformerConfig(positions="rotary"),
    "bidirectional-learned": TransformerConfig(
        positions="learned", token_types=2, norm_first=False, embedding_norm=True
    ),
    "causal-rotary": TransformerConfig(
        positions="rotary", causal=True, norm="rmsnorm", activation="swiglu", bias=False
    ),
    "causal-learned": TransformerConfig(positions="learned", causal=True, activation="gelu_tanh"),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def build(kind: str) -> Transformer:
    shape = {**vars(KINDS[kind]), "dim": 32, "depth": 2, "heads": 4, "max_length": LENGTH}
    torch.manual_seed(0)
    backbone = build_backbone("transformer", shape, VOCABULARY)
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    assert isinstance(backbone, Transformer)
    return backbone


def documents_of_rows() -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    documents = np.zeros((len(ROWS), LENGTH), np.int64)
    for row, lengths in enumerate(ROWS):
        numbers = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        documents[row, : len(numbers)] = numbers
    return documents


def packed_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(0)
    documents = documents_of_rows()
    tokens = torch.from_numpy(rng.integers(0, VOCABULARY, documents.shape))
    segments = torch.from_numpy(rng.integers(0, 2, documents.shape))
    positions = torch.from_numpy(positions_of(documents))
    return tokens, torch.from_numpy(documents), positions, segments


def each_document(documents: Tensor) -> list[tuple[int, Tensor]]:
    return [
        (row, (documents[row] == number).nonzero()[:, 0])
        for row in range(len(documents))
        for number in range(1, int(documents[row].max()) + 1)
    ]


def weigh(hidden: Tensor, tokens: Tensor) -> Tensor:
    """A scalar to which every output counts differently."""
    return (hidden.float() * (tokens[..., None] + torch.arange(hidden.shape[-1])).cos()).sum()


def difference(x: Tensor, wanted: Tensor) -> float:
    return float((x - wanted).detach().norm() / wanted.detach().norm())


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_equals_alone(kind: str, dtype: torch.dtype) -> None:
    backbone = build(kind)
    types = bool(backbone.config.token_types)
    tokens, documents, positions, segments = packed_inputs()
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        packed = backbone(tokens, documents, positions, segments if types else None)
        weigh(packed[documents > 0], tokens[documents > 0]).backward()
        together = [p.grad.clone() for p in backbone.parameters()]
        backbone.zero_grad()
        for row, at in each_document(documents):
            own = segments[row, at][None] if types else None
            alone = backbone(tokens[row, at][None], segments=own)
            assert difference(alone[0], packed[row, at]) < limit
            weigh(alone, tokens[row, at][None]).backward()
    for (name, p), wanted in zip(backbone.named_parameters(), together, strict=True):
        assert difference(p.grad, wanted) < limit, name


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_changed_token_stays_in_its_document(kind: str, dtype: torch.dtype) -> None:
    backbone = build(kind).to(dtype)
    tokens, documents, positions, _ = packed_inputs()
    with torch.no_grad():
        before = backbone(tokens, documents, positions)
        changed = tokens.clone()
        changed[0, 6] = (tokens[0, 6] + 1) % VOCABULARY  # row 0, document 2
        after = backbone(changed, documents, positions)
    mine = torch.zeros_like(documents, dtype=torch.bool)
    mine[0] = documents[0] == 2
    assert torch.equal(before[~mine], after[~mine])
    assert not torch.equal(before[mine], after[mine])
    if backbone.causal:
        assert torch.equal(before[0, :6], after[0, :6])


@kinds
def test_no_gradient_between_documents(kind: str) -> None:
    backbone = build(kind)
    tokens, documents, positions, _ = packed_inputs()
    inside = backbone.embedding.weight.detach()[tokens].requires_grad_()
    backbone.embedding.forward = lambda _: inside  # type: ignore[method-assign]
    hidden = backbone(tokens, documents, positions)
    (gradient,) = torch.autograd.grad(weigh(hidden[1, :7], tokens[1, :7]), inside)
    assert gradient[1, :7].abs().min(-1).values.gt(0).all()
    assert not gradient[1, 7:].any()
    assert not gradient[[0, 2]].any()


def test_padding_gives_finite_gradients() -> None:
    backbone = build("causal-learned")
    tokens, documents, positions, _ = packed_inputs()
    documents = torch.zeros_like(documents)
    hidden = backbone(tokens, documents, positions)
    (hidden.sum() * 0).backward()
    for name, p in backbone.named_parameters():
        assert p.grad is not None, name
        assert not p.grad.any(), name
