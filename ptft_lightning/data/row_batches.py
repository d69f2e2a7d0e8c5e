"""Rows by sample number -> batches, in the loader's workers; knows no objective by name.

Objectives enter through `RowMaker`: the numpy half that turns rows into inputs and targets.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch.utils.data import Dataset

from ptft_lightning.data.batch import Batch, build_batch, hash_rows
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.sample_order import Numbers
from ptft_lightning.data.steps import Slots
from ptft_lightning.data.tokenizer import Tokenizer


class RowMaker(Protocol):
    """The numpy half of an objective."""

    whole_words: bool
    """Whether it needs to know where words start."""
    pairs: Literal["next", "order"] | None
    """Which pairs of sentences it learns from, if it does."""

    def text_length(self, length: int, tokenizer: Tokenizer) -> int:
        """How many tokens of text make a row of `length` places."""
        ...

    def make(
        self,
        tokens: Ids,
        documents: Ids,
        samples: Numbers,
        seed: int,
        tokenizer: Tokenizer,
        words: Ids | None = None,
    ) -> tuple[Ids, dict[str, Ids]]:
        """Rows with the following token, (B, T + 1) -> input tokens (B, T) and targets.

        `words` is (B, T + 1), 1 where a token begins a word; None without `whole_words`. Rows that
        are laid out anew bring `documents`, and rows of two parts `segments`, among the targets.
        """
        ...


class RowDataset(Dataset[Batch]):
    """Sample numbers -> batches, in the loader's workers."""

    def __init__(
        self, rows: Rows, maker: RowMaker, tokenizer: Tokenizer, seed: int, audit: bool
    ) -> None:
        self.rows, self.maker, self.tokenizer = rows, maker, tokenizer
        self.seed, self.audit = seed, audit

    def __getitem__(self, slots: Slots) -> Batch:
        stream, documents = self.rows.read(slots.numbers)
        words = self.rows.read_words(slots.numbers) if self.maker.whole_words else None
        tokens, targets = self.maker.make(
            stream, documents, slots.numbers, self.seed, self.tokenizer, words
        )
        documents = targets.pop("documents", documents[:, :-1]).astype(int)
        segments = targets.pop("segments", None)
        hashes = None
        if self.audit:
            hashes = hash_rows([tokens, documents, *(targets[k] for k in sorted(targets))])
        return build_batch(
            tokens,
            documents,
            slots.numbers,
            targets,
            slots.step_samples,
            segments,
            hashes=hashes,
            sources=self.rows.sources_of(slots.numbers),
        )
