"""How likely a model finds texts, token by token; knows no files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from ptft_lightning.generation.model import LanguageModel, Rows, pad_rows
from ptft_lightning.objectives.base import perplexity

CHUNK_ELEMENTS = 2**26  # logits held at once: 256 MiB in float32


@dataclass
class Score:
    """Log-probabilities (nats) of a document's tokens, None where a token is not predicted.

    Causal models: of each token from those before it; the first of the document has none before
    it. Masked models: of each token from all others, itself masked; the tokens that begin and end
    the document are given (pseudo-log-likelihood; Salazar et al. 2020).
    """

    ids: list[int]
    log_probabilities: list[float | None]
    windows: int
    """In how many pieces it was read."""

    @property
    def tokens(self) -> int:
        """Tokens predicted."""
        return sum(value is not None for value in self.log_probabilities)

    @property
    def total(self) -> float:
        """Log-probability of the document, in nats."""
        return math.fsum(value for value in self.log_probabilities if value is not None)

    @property
    def perplexity(self) -> float:
        """exp of the mean over predicted tokens; NaN without any."""
        return perplexity(-self.total / self.tokens) if self.tokens else math.nan


class Window(NamedTuple):
    """A piece of a document: it reads tokens [start, stop), and predicts those from `first` on."""

    document: int
    start: int
    stop: int
    first: int


def windows_of(document: int, length: int, max_length: int, stride: int) -> list[Window]:
    """Pieces of at most max_length tokens, each begun `stride` tokens after the one before it.

    Every token is predicted once, in the first piece that reads it.
    """
    found = [Window(document, 0, min(length, max_length), 0)]
    while (last := found[-1]).stop < length:
        start = last.start + stride
        found.append(Window(document, start, min(length, start + max_length), last.stop))
    return found


def score_documents(
    model: LanguageModel, documents: Sequence[list[int]], stride: int, batch_size: int
) -> list[Score]:
    """The score of each document (ids with what begins and ends it).

    Args:
        model: A causal or masked model.
        documents: Token ids; those longer than max_length are read in windows.
        stride: Tokens from the start of one window to the next, less than max_length.
        batch_size: Rows computed at once.
    """
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    pieces = {
        i: windows_of(i, len(documents[i]), model.max_length, stride)
        for i in order
        if len(documents[i])
    }
    scores = [
        Score(ids, [None] * len(ids), len(pieces.get(i, []))) for i, ids in enumerate(documents)
    ]
    read = _read_causal if model.backbone.causal else _read_masked
    rows = read(model, documents, [window for found in pieces.values() for window in found])
    with torch.inference_mode():
        while batch := list(islice(rows, batch_size)):
            for target, value in zip(*predict_rows(model, batch), strict=True):
                scores[target[0]].log_probabilities[target[1]] = value
    return scores


class Row(NamedTuple):
    """Ids to read, and what is predicted where: (place in the row, document, token's place)."""

    ids: list[int]
    targets: list[tuple[int, int, int]]
    labels: list[int]


def _read_causal(
    model: LanguageModel, documents: Sequence[list[int]], windows: list[Window]
) -> Iterator[Row]:
    for w in windows:
        predicted = range(max(w.first, w.start + 1), w.stop)
        ids = documents[w.document]
        targets = [(i - 1 - w.start, w.document, i) for i in predicted]
        yield Row(ids[w.start : w.stop], targets, [ids[i] for i in predicted])


def _read_masked(
    model: LanguageModel, documents: Sequence[list[int]], windows: list[Window]
) -> Iterator[Row]:
    mask, frame = model.tokenizer.mask or 0, {model.tokenizer.begin, model.tokenizer.end}
    for w in windows:
        ids = documents[w.document]
        for i in range(w.first, w.stop):
            if i in (0, len(ids) - 1) and ids[i] in frame:
                continue
            row = ids[w.start : w.stop]
            row[i - w.start] = mask
            yield Row(row, [(i - w.start, w.document, i)], [ids[i]])


def predict_rows(
    model: LanguageModel, rows: list[Row]
) -> tuple[list[tuple[int, int]], list[float]]:
    """(document, token's place) of each target of some rows, and its log-probability."""
    targets = [(at, *target) for at, row in enumerate(rows) for target in row.targets]
    if not targets:
        return [], []
    padded: Rows = pad_rows([row.ids for row in rows], left=False, device=model.device)
    hidden = model.backbone(padded.tokens, padded.documents, padded.positions)
    index, place, document, token = zip(*targets, strict=True)
    labels = torch.tensor([label for row in rows for label in row.labels], device=model.device)
    chosen = hidden[torch.tensor(index), torch.tensor(place)]
    values = _log_probabilities(model, chosen, labels).tolist()
    return list(zip(document, token, strict=True)), values


def _log_probabilities(model: LanguageModel, hidden: Tensor, labels: Tensor) -> Tensor:
    """(N,) log-probabilities of (N,) labels after (N, dim) hidden states, in chunks."""
    rows = max(1, CHUNK_ELEMENTS // model.backbone.vocab_size)
    parts = []
    for states, own in zip(torch.split(hidden, rows), torch.split(labels, rows), strict=True):
        logits = model.logits(states)
        parts.append(logits.gather(1, own[:, None])[:, 0] - logits.logsumexp(-1))
    return torch.cat(parts)
