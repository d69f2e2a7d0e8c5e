"""Sums of losses and metrics between two reports: on the device, read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptft_lightning.data.batch import Batch
from ptft_lightning.terms import Output


@dataclass
class Sums:
    """What a meter saw, over all ranks."""

    losses: dict[str, float]
    """Mean loss per target of each term, weighted as in the loss."""
    metrics: dict[str, float]
    """Metric sums over the targets of their term."""
    tokens: float
    places: float
    """Places in rows, padding included."""
    sources: dict[str, float]
    """Of a mixture: NAME_loss, the mean loss per target of the first term, and NAME_share of the
    rows, of each source that had any."""


class Meter:
    """Adds up outputs without reading anything from the device."""

    def __init__(self, sources: Sequence[str] = ()) -> None:
        self.sources = sources
        self._reset()

    def _reset(self) -> None:
        self.sums: Tensor | None = None
        self.terms: list[str] = []
        self.metrics: list[str] = []
        self.tokens = self.places = 0

    def add(self, output: Output, batch: Batch) -> None:
        """Add a micro-batch."""
        self.terms, self.metrics = list(output.terms), list(output.sums)
        values = [t.weight * t.total.detach() for t in output.terms.values()]
        values += [t.count for t in output.terms.values()]
        values += list(output.sums.values())
        if self.sources:
            values += self._by_source(output, batch)
        # Apple's GPUs have no float64.
        exact = torch.float32 if values[0].device.type == "mps" else torch.float64
        stacked = torch.stack([v.detach().to(exact) for v in values])
        self.sums = stacked if self.sums is None else self.sums + stacked
        self.tokens += batch.real_tokens
        self.places += batch.tokens.numel()

    def _by_source(self, output: Output, batch: Batch) -> list[Tensor]:
        """Sum of losses, targets and rows of each source."""
        by_row = next(iter(output.terms.values())).by_row
        assert by_row is not None
        assert batch.sources is not None
        rows = torch.cat([by_row, (batch.samples >= 0)[None]])
        sums = rows.new_zeros(3, len(self.sources)).index_add_(1, batch.sources, rows)
        return list(sums.flatten())

    def take(self, strategy: Any) -> Sums:
        """The sums over all ranks so far; start anew."""
        assert self.sums is not None, "nothing was added to the meter"
        host = torch.tensor([self.tokens, self.places], dtype=self.sums.dtype)
        both = torch.cat([self.sums, host.to(self.sums.device)])
        *values, tokens, places = strategy.reduce(both, reduce_op="sum").tolist()
        n = len(self.terms)
        rest = len(values) - 3 * len(self.sources)
        values, by_source = values[:rest], values[rest:]
        totals, counts, sums = values[:n], values[n : 2 * n], values[2 * n :]
        losses = {k: t / max(c, 1) for k, t, c in zip(self.terms, totals, counts, strict=True)}
        count_of = dict(zip(self.terms, counts, strict=True))
        named = {k: count_of.get(k.partition("_")[0], counts[0]) for k in self.metrics}
        metrics = {k: v / max(named[k], 1) for k, v in zip(self.metrics, sums, strict=True)}
        self._reset()
        return Sums(losses, metrics, tokens, places, self._name_sources(by_source))

    def _name_sources(self, values: list[float]) -> dict[str, float]:
        n = len(self.sources)
        totals, counts, rows = values[:n], values[n : 2 * n], values[2 * n :]
        named: dict[str, float] = {}
        for name, total, count, row in zip(self.sources, totals, counts, rows, strict=True):
            if count:
                named |= {f"{name}_loss": total / count, f"{name}_share": row / sum(rows)}
        return named
