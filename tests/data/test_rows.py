"""Rows of a real store by sample number: order and packing together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.data.packing import Layout
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.errors import UserError

PAD = 0
LENGTH = 48
LAYOUTS: tuple[Layout, ...] = ("blocks", "documents")


def rows_of(store: Path, layout: Layout, shuffle: bool = True, split: str = "train") -> Rows:
    return Rows(TokenStore(store, split), layout, LENGTH, PAD, seed=0, window=3, shuffle=shuffle)


def shard_documents(store: Path, split: str = "train") -> list[list[list[int]]]:
    """Documents of each shard, with plain slicing."""
    opened = TokenStore(store, split)
    shards = []
    for shard in range(len(opened.shards)):
        tokens, ends = opened.tokens(shard).tolist(), opened.ends(shard).tolist()
        shards.append([tokens[a:b] for a, b in zip([0, *ends], ends, strict=False)])
    return shards


@pytest.mark.parametrize("split", ["train", "validation"])
def test_blocks_in_stored_order_are_the_streams(store: Path, split: str) -> None:
    rows = rows_of(store, "blocks", shuffle=False, split=split)
    tokens, documents = rows.read(np.arange(len(rows)))
    at = 0
    for shard in shard_documents(store, split):
        stream = [t for document in shard for t in document]
        owner = [d for d, document in enumerate(shard) for _ in document]
        for start in range(0, len(stream), LENGTH):
            real = len(stream[start : start + LENGTH + 1])
            assert tokens[at, :real].tolist() == stream[start : start + real]
            assert (tokens[at, real:] == PAD).all()
            assert (documents[at, real:] == 0).all()
            changes = np.diff(owner[start : start + real]) > 0
            assert (np.diff(documents[at, :real]) == changes).all()
            assert documents[at, 0] == 1
            at += 1
    assert at == len(rows)


def test_packed_rows_are_the_documents(store: Path) -> None:
    rows = rows_of(store, "documents")
    tokens, documents = rows.read(np.arange(len(rows)))
    found = Counter(
        tuple(tokens[row][documents[row] == number].tolist())
        for row in range(len(rows))
        for number in range(1, documents[row].max() + 1)
    )
    expected = Counter(
        tuple(document[start : start + LENGTH])
        for shard in shard_documents(store)
        for document in shard
        for start in range(0, len(document), LENGTH)
    )
    assert found == expected
    assert (tokens[documents == 0] == PAD).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_epoch_reads_every_row_once(store: Path, layout: Layout) -> None:
    rows = rows_of(store, layout)
    plain = rows_of(store, layout, shuffle=False)
    expected = sorted(plain.read(np.arange(len(plain)))[0].tolist())
    for epoch in range(3):
        tokens, _ = rows.read(np.arange(len(rows)) + epoch * len(rows))
        assert sorted(tokens.tolist()) == expected
        assert tokens.tolist() != expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_rows_in_any_order(store: Path, layout: Layout) -> None:
    rows, again = rows_of(store, layout), rows_of(store, layout)
    numbers = np.random.default_rng(0).permutation(2 * len(rows))
    tokens, documents = rows.read(numbers)
    for at in range(0, len(numbers), 7):
        one, its = again.read(numbers[at : at + 1])
        assert (one[0] == tokens[at]).all()
        assert (its[0] == documents[at]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_slots_are_padding(store: Path, layout: Layout) -> None:
    rows = rows_of(store, layout)
    tokens, documents = rows.read(np.array([-1, 4, -1]))
    assert tokens.shape == documents.shape == (3, LENGTH + 1)
    assert (tokens[[0, 2]] == PAD).all()
    assert (documents[[0, 2]] == 0).all()
    assert (tokens[1] == rows.read(np.array([4]))[0][0]).all()
    tokens, documents = rows.read(np.array([-1, -1]))
    assert not documents.any()


def test_packing_wastes_less_than_a_row_each(store: Path) -> None:
    rows = rows_of(store, "documents")
    total = rows.store.total_tokens
    documents = sum(shard.documents for shard in rows.store.shards)
    assert total / (len(rows) * LENGTH) > 0.9
    assert len(rows) < max(documents, total / LENGTH * 1.1)


@pytest.mark.parametrize(("name", "value"), [("window", 0), ("length", 1)])
def test_wrong_settings_are_refused(name: str, value: int) -> None:
    settings: dict[str, Any] = {"store": "store", name: value}
    with pytest.raises(UserError, match=rf"data\.{name} is {value}"):
        CorpusDataModule(**settings)
