"""Causal language modelling: each target is the next token of the same document."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ptft_lightning.data.batch import build_batch
from ptft_lightning.data.packing import Layout
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.terms import IGNORE

LENGTH = 48


def make(
    tokens: np.ndarray, documents: np.ndarray, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.arange(len(tokens))
    shown, targets = CausalLM().make(tokens, documents, numbers, 0, tokenizer)
    assert set(targets) == {"labels"}
    return shown, targets["labels"]


@given(
    documents=st.tuples(st.integers(1, 4), st.integers(2, 12)).flatmap(
        lambda shape: arrays(np.int64, shape, elements=st.integers(0, 2))
    )
)
def test_targets_against_a_slow_reference(bpe: Tokenizer, documents: np.ndarray) -> None:
    tokens = np.arange(documents.size).reshape(documents.shape)
    shown, labels = make(tokens, documents, bpe)
    assert (shown == tokens[:, :-1]).all()
    for row in range(documents.shape[0]):
        for column in range(documents.shape[1] - 1):
            here, following = documents[row, column], documents[row, column + 1]
            continues = here > 0 and following == here
            expected = tokens[row, column + 1] if continues else IGNORE
            assert labels[row, column] == expected


def read(store: Path, layout: Layout) -> tuple[Rows, np.ndarray, np.ndarray]:
    rows = Rows(TokenStore(store, "train"), layout, LENGTH, 0, 0, 1, shuffle=False)
    tokens, documents = rows.read(np.arange(len(rows)))
    return rows, tokens, documents


def test_blocks_predict_every_token_but_the_first_of_each_document(
    bpe: Tokenizer, store: Path
) -> None:
    """Also the token after a row's last column, which the next row holds."""
    rows, tokens, documents = read(store, "blocks")
    _, labels = make(tokens, documents, bpe)
    expected: list[int] = []
    for shard in range(len(rows.store.shards)):
        stream, ends = rows.store.tokens(shard).tolist(), set(rows.store.ends(shard).tolist())
        targets = [
            stream[i + 1] if i + 1 < len(stream) and i + 1 not in ends else IGNORE
            for i in range(len(stream))
        ]
        expected += targets + [IGNORE] * (-len(targets) % LENGTH)
    assert labels.ravel().tolist() == expected
    assert (labels[:, -1] != IGNORE).mean() > 0.5


def test_packed_documents_predict_all_but_the_first_of_each_piece(
    bpe: Tokenizer, store: Path
) -> None:
    rows, tokens, documents = read(store, "documents")
    _, labels = make(tokens, documents, bpe)
    pieces = sum(len(rows._pieces(s).lengths) for s in range(len(rows.store.shards)))
    assert (labels != IGNORE).sum() == rows.store.total_tokens - pieces
    assert (labels[documents[:, :-1] == 0] == IGNORE).all()


def test_empty_rows_have_no_targets(bpe: Tokenizer) -> None:
    _, labels = make(np.zeros((2, 9), np.int64), np.zeros((2, 9), np.int64), bpe)
    assert (labels == IGNORE).all()


@pytest.mark.parametrize("tied", [True, False])
def test_head_is_cross_entropy_over_all_targets(bpe: Tokenizer, store: Path, tied: bool) -> None:
    torch.manual_seed(0)
    _, tokens, documents = read(store, "blocks")
    tokens, documents = tokens[:5], documents[:5]
    shown, labels = make(tokens, documents, bpe)
    batch = build_batch(shown, documents[:, :-1], np.arange(5), {"labels": labels}, 5)
    backbone: Any = SimpleNamespace(dim=16, input_dim=16, vocab_size=bpe.size, norm_eps=1e-5)
    head = CausalLM().build_head(backbone, tied)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    hidden, embedding = torch.randn(5, LENGTH, 16), torch.randn(bpe.size, 16)
    output = head(hidden, batch, embedding)
    projection: Any = head.projection
    logits = hidden @ (embedding if tied else projection.weight).T
    real = torch.from_numpy(labels != IGNORE)
    targets = torch.from_numpy(labels)[real]
    expected = F.cross_entropy(logits[real], targets, reduction="sum")
    term = output.terms["causal"]
    assert term.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert term.count == real.sum()
    assert term.nominal == LENGTH
    assert output.sums["accuracy"] == (logits[real].argmax(-1) == targets).sum()
