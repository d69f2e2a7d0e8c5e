"""Examples by sample number, packed into rows per micro-batch; knows no model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from ptft_lightning.data.batch import Batch, build_batch, hash_rows
from ptft_lightning.data.examples import Columns, Encoded, Example, documents_of
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.packing import Ids, best_fit
from ptft_lightning.data.sample_order import Order
from ptft_lightning.data.steps import Slots
from ptft_lightning.data.tokenizer import Tokenizer


class TaskEncoder(Protocol):
    """The numpy half of a task."""

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Example]:
        """The examples of a file; those that cannot be used are noted in `bad`."""
        ...

    def renamed(self, path: str, examples: list[Example], bad: BadExamples) -> list[Example]:
        """Examples whose labels were ids and have names now."""
        ...

    def typed(self, text: str, columns: Columns, place: str) -> Example:
        """An example typed by a person."""
        ...

    def labels_of(self, example: Example) -> list[str]:
        """The labels of an example that must stand in the schema."""
        ...

    def schema(self, examples: list[Example]) -> list[str]:
        """The label names found in training examples."""
        ...

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """Examples -> token ids and targets."""
        ...

    def weigh(self, examples: list[Encoded], labels: list[str]) -> None:
        """Add what training examples count in the loss to their targets."""
        ...

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> dict[str, npt.NDArray[Any]]:
        """Targets of a micro-batch."""
        ...


class ExampleDataset(Dataset[Batch]):
    """Sample numbers -> batches of packed examples, in the loader's workers."""

    def __init__(
        self,
        examples: list[Encoded],
        encoder: TaskEncoder,
        length: int,
        tokenizer: Tokenizer,
        seed: int,
        shuffle: bool,
        audit: bool,
        reserved: int = 0,
    ) -> None:
        self.reserved = reserved
        self.examples, self.encoder, self.audit = examples, encoder, audit
        self.length, self.pad = length, tokenizer.pad
        self.order = Order((len(examples),), seed, shuffle=shuffle)
        # Places hidden states that are kept: numbers, rows, starts, (B, T) -> (B, T, ...).
        self.states: Callable[[Ids, Ids, Ids, tuple[int, ...]], npt.NDArray[Any]] | None = None
        self.counts = np.array([e.count for e in examples], np.int64)

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every example's tokens and targets, in order."""
        digest = hashlib.blake2b(_hash_examples(self.examples).tobytes(), digest_size=8)
        return digest.hexdigest()

    def __getitem__(self, slots: Slots) -> Batch:
        _, at = self.order.place(np.maximum(slots.numbers, 0))
        empty = Encoded([], [])
        chosen = [
            self.examples[i] if n >= 0 else empty
            for i, n in zip(at.tolist(), slots.numbers.tolist(), strict=True)
        ]
        read = documents_of(chosen)
        tokens, documents, segments, rows, starts = pack_examples(
            read, self.length, self.pad, self.reserved
        )
        targets = self.encoder.targets(read, rows, starts)
        if self.states is not None:
            numbers = np.where(slots.numbers >= 0, at, -1)
            targets["hidden"] = self.states(numbers, rows, starts, tokens.shape)
        return build_batch(
            tokens,
            documents,
            slots.numbers,
            targets,
            slots.step_samples,
            segments=segments if segments.any() else None,
            hashes=_hash_examples(chosen) if self.audit else None,
            step_targets=int(self.counts[self.order.place(slots.step)[1]].sum()),
        )


def pack_examples(
    chosen: list[Encoded], length: int, pad: int, reserved: int = 0
) -> tuple[Ids, Ids, Ids, Ids, Ids]:
    """Pack examples best-fit into rows of `length`, each behind so many `reserved` places.

    Returns tokens, documents and segments, each (R, length), and for each example its row and
    the place of its first token. Empty examples take no place; R is never 1 and takes few values
    (see `round_rows`).
    """
    lengths = np.array([len(e.tokens) + reserved * bool(e.tokens) for e in chosen], np.int64)
    taken = np.flatnonzero(lengths)
    packed = best_fit(lengths[taken], length)
    count = round_rows(len(packed))
    tokens = np.full((count, length), pad, np.int64)
    documents = np.zeros((count, length), np.int64)
    segments = np.zeros((count, length), np.int64)
    rows, starts = np.zeros((2, len(chosen)), np.int64)
    for row, members in enumerate(packed):
        at = 0
        for number, item in enumerate(taken[members].tolist(), start=1):
            start = at + reserved
            stop = start + len(chosen[item].tokens)
            tokens[row, start:stop] = chosen[item].tokens
            segments[row, start:stop] = chosen[item].segments
            documents[row, at:stop] = number
            rows[item], starts[item] = row, start
            at = stop
    return tokens, documents, segments, rows, starts


def round_rows(rows: int) -> int:
    """Round a row count up to eight values per doubling, at least 2, so that compiled code sees
    few shapes and never the special size 1."""
    step = max(1, 2 ** (max(rows, 1).bit_length() - 4))
    return max(2, int(-(-rows // step) * step))


def _hash_examples(chosen: list[Encoded]) -> Ids:
    return np.concatenate(
        [
            hash_rows(
                [np.array([[*d.tokens, -1, *d.segments]]) for d in (e, *e.also)]
                + [np.array(e.targets[k]).reshape(1, -1) for k in sorted(e.targets)]
            )
            for e in chosen
        ]
    )
