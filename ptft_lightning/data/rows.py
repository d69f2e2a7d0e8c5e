"""Rows of a token store by sample number: order and packing meet here; knows no objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptft_lightning.data.packing import (
    Ids,
    Layout,
    Pieces,
    Stream,
    block_rows,
    pack_documents,
    read_block,
    read_pieces,
)
from ptft_lightning.data.sample_order import Numbers, Order
from ptft_lightning.data.token_store import TokenStore


class Rows:
    """The rows of one split in one layout: `read` gives any of them by sample number."""

    def __init__(
        self,
        store: TokenStore,
        layout: Layout,
        length: int,
        pad: int,
        seed: int,
        window: int,
        shuffle: bool,
    ) -> None:
        self.store, self.length, self.pad = store, length, pad
        self.mixture: dict[str, Any] = {}  # facts of a mixture of stores, which this is not
        self.pieces: list[Pieces] | None = None
        if layout == "documents":
            count = range(len(store.shards))
            self.pieces = [pack_documents(np.asarray(store.ends(s)), length) for s in count]
            rows = [len(p.first) - 1 for p in self.pieces]
        else:
            rows = [block_rows(shard.tokens, length) for shard in store.shards]
        self.order = Order(tuple(rows), seed, window, shuffle)

    def __len__(self) -> int:
        return self.order.rows

    def shards_of(self, numbers: Numbers) -> Numbers:
        """The shard of each sample."""
        return self.order.place(numbers)[0]

    def read_words(self, numbers: Numbers) -> Ids:
        """For each token that `read` gives, 1 where it begins a word; (B, T + 1)."""
        return self._read(numbers, self.store.words, 1)[0]

    def read(self, numbers: Numbers) -> tuple[Ids, Ids]:
        """Tokens and documents of each sample, both (B, T + 1); all padding where a number is -1.

        The extra column is the token that follows the row, for causal targets; its document
        number tells whether it belongs to the row's last document.
        """
        return self._read(numbers, self.store.tokens, self.pad)

    def _read(
        self, numbers: Numbers, stream: Callable[[int], Stream], fill: int
    ) -> tuple[Ids, Ids]:
        """Rows of whatever there is for each token of a shard."""
        tokens = np.full((len(numbers), self.length + 1), fill, np.int64)
        documents = np.zeros((len(numbers), self.length + 1), np.int64)
        real = np.flatnonzero(numbers >= 0)
        shards, rows = self.order.place(numbers[real])
        for at, shard, row in zip(real.tolist(), shards.tolist(), rows.tolist(), strict=True):
            ids = stream(shard)
            if self.pieces is None:
                ends = self.store.ends(shard)
                read_block(ids, ends, row, self.length, tokens[at], documents[at])
            else:
                read_pieces(ids, self.pieces[shard], row, tokens[at], documents[at])
        return tokens, documents
