"""Rows of a token store by sample number: order and packing meet here; knows no objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ptft_lightning.data.packing import (
    Ids,
    Layout,
    Pieces,
    Stream,
    pack_documents,
    read_block,
    read_pieces,
)
from ptft_lightning.data.sample_order import Numbers, Order
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.errors import UserError

PACKED = 64  # shards whose packing is kept, or two windows


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
        self.store, self.layout, self.length, self.pad = store, layout, length, pad
        self.window = window
        self.mixture: dict[str, Any] = {}  # facts of a mixture of stores, which this is not
        self._packed: dict[int, Pieces] = {}  # the last one is the one used last
        rows = tuple(self._rows_in(shard) for shard in range(len(store.shards)))
        self.order = Order(rows, seed, window, shuffle)

    def __len__(self) -> int:
        return self.order.rows

    def epochs_samples(self, epochs: int) -> int:
        """Samples until all rows (of a mixture: of its first store) came so many times."""
        return epochs * len(self)

    def _rows_in(self, number: int) -> int:
        shard = self.store.shards[number]
        if self.layout == "blocks":
            return -(-shard.tokens // self.length)  # the last one may be padded
        if shard.rows is not None and (known := shard.rows.get(str(self.length))) is not None:
            return known
        if self.store.cache is not None:
            raise UserError(
                f"token store '{self.store.place}' does not say how many rows of {self.length} "
                f"tokens its documents make: prepare it with --lengths [{self.length}], or use "
                "data.layout blocks"
            )
        return len(self._pieces(number).first) - 1

    def _pieces(self, shard: int) -> Pieces:
        pieces = self._packed.pop(shard, None)
        if pieces is None:
            pieces = pack_documents(np.asarray(self.store.ends(shard)), self.length)
        self._packed[shard] = pieces
        if len(self._packed) > max(PACKED, 2 * self.window):
            del self._packed[next(iter(self._packed))]
        return pieces

    @property
    def stores(self) -> list[TokenStore]:
        """Where the rows come from."""
        return [self.store]

    def sources_of(self, numbers: Numbers) -> Numbers | None:
        """Which of `stores` each sample comes from; None where there is one."""
        return None

    def ahead(self, number: int) -> Iterator[tuple[TokenStore, int]]:
        """The shards that are needed from a sample on, for two windows."""
        for shard in self.order.shards_from(number):
            yield self.store, shard

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
        documents = np.zeros((len(numbers), self.length + 1), np.int32)  # half as much to compare
        tokens = np.full(documents.shape, fill, np.int64)
        real = np.flatnonzero(numbers >= 0)
        shards, rows = self.order.place(numbers[real])
        for at, shard, row in zip(real.tolist(), shards.tolist(), rows.tolist(), strict=True):
            ids = stream(shard)
            if self.layout == "blocks":
                ends = self.store.ends(shard)
                read_block(ids, ends, row, self.length, tokens[at], documents[at])
            else:
                read_pieces(ids, self._pieces(shard), row, tokens[at], documents[at])
        return tokens, documents
