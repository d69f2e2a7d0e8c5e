"""A language model ready for use: backbone, head and tokenizer; knows no files and no trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.tokenizer import Tokenizer


class Projecting(Protocol):
    """A head that gives the logits of tokens."""

    def logits(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """(..., dim) hidden states -> (..., vocabulary) logits."""
        ...


@dataclass(frozen=True)
class LanguageModel:
    """A backbone under its head, in evaluation mode, with its tokenizer."""

    backbone: Backbone
    head: Projecting
    tokenizer: Tokenizer
    ending: int | None = None
    """The token that ends a continuation, where it is not the tokenizer's."""

    @property
    def end(self) -> int | None:
        """The token that ends a continuation."""
        return self.tokenizer.end if self.ending is None else self.ending

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return self.backbone.embedding.weight.device

    @property
    def max_length(self) -> int:
        """The longest document it can read."""
        return self.backbone.max_length

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., dim) hidden states -> (..., vocabulary) logits in float32."""
        return self.head.logits(hidden, self.backbone.embedding.weight).float()


@dataclass(frozen=True)
class Rows:
    """Token lists of different lengths as one batch, with the fields of a `Batch`.

    Where all are equally long, `documents` and `positions` are None: the kernels' fast path.
    """

    tokens: Tensor
    documents: Tensor | None
    positions: Tensor | None


def pad_rows(rows: Sequence[Sequence[int]], left: bool, device: torch.device) -> Rows:
    """(B, T) rows, the shorter ones filled up on the left or the right.

    The filling repeats a token of the row, so that what counts its tokens finds no foreign one.
    """
    longest = max(map(len, rows))
    if min(map(len, rows)) == longest:
        return Rows(torch.tensor(rows, device=device), None, None)
    tokens, documents = [], []
    for row in rows:
        fill, marks = [row[0]] * (longest - len(row)), [0] * (longest - len(row))
        tokens.append([*fill, *row] if left else [*row, *fill])
        documents.append([*marks, *[1] * len(row)] if left else [*[1] * len(row), *marks])
    marked = torch.tensor(documents, device=device)
    positions = (marked.cumsum(1) - 1).clamp(min=0)
    return Rows(torch.tensor(tokens, device=device), marked, positions)
