"""How a store's tokens lie in rows: one way of reading for each layout."""

from __future__ import annotations

from ptft_lightning.data.packing import Layout
from ptft_lightning.data.row_batches import RowDataset, RowMaker
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer


def lay_out(
    store: TokenStore,
    layout: Layout,
    length: int,
    maker: RowMaker,
    tokenizer: Tokenizer,
    order: tuple[int, int, bool],
) -> Rows:
    """The rows of a store; `order` is seed, window, and whether rows are mixed."""
    if layout == "sentence_pairs":
        from ptft_lightning.data.pair_rows import PairRows  # a leaf

        return PairRows(store, maker.pairs, length, tokenizer, *order)
    return Rows(store, layout, length, tokenizer.pad, *order)


def batch_rows(
    layout: Layout, rows: Rows, maker: RowMaker, tokenizer: Tokenizer, seed: int, audit: bool
) -> RowDataset:
    """Sample numbers to batches, for rows of that layout."""
    if layout == "sentence_pairs":
        from ptft_lightning.data.pair_rows import PairDataset  # a leaf

        return PairDataset(rows, maker, tokenizer, seed, audit)
    return RowDataset(rows, maker, tokenizer, seed, audit)


def tell_left_out(layout: Layout, train: Rows, validation: Rows) -> None:
    """Say what a layout has no place for."""
    if layout == "sentence_pairs":
        from ptft_lightning.data.pair_rows import tell_alone  # a leaf

        tell_alone(train, validation)
