"""How well cosines tell what matches: places of matches, correlations, decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_f1_score,
    multiclass_f1_score,
)
from torchmetrics.functional.regression import spearman_corrcoef

ROWS = 1024  # queries compared with all candidates at once
DEPTHS = (1, 5, 10)


def places(
    vectors: Tensor, texts: Sequence[tuple[str, str]], match: Sequence[bool]
) -> dict[int, int]:
    """Pair -> the place of its second text, from 1, among all second texts by their cosine with the
    first, for pairs that match.

    Copies of a text are one candidate. Other matches of the same first text are left out. Of equal
    cosines the right one comes last, so that vectors that are all the same find nothing.

    Args:
        vectors: (N, 2, dim) of length 1.
        texts: The two texts of each pair.
        match: Whether they match.
    """
    candidates = {second: i for i, (_, second) in reversed([*enumerate(texts)])}
    column = {second: at for at, second in enumerate(candidates)}
    known: dict[str, set[int]] = {}
    for (first, second), good in zip(texts, match, strict=True):
        if good:
            known.setdefault(first, set()).add(column[second])
    wanted = [i for i, good in enumerate(match) if good]
    pool = vectors[[*candidates.values()], 1]
    found = {}
    for start in range(0, len(wanted), ROWS):
        some = wanted[start : start + ROWS]
        similar = vectors[some, 0] @ pool.T
        for row, i in zip(similar, some, strict=True):
            own = column[texts[i][1]]
            right = row[own].clone()
            row[[*known[texts[i][0]]]] = -torch.inf
            found[i] = 1 + int((~(row < right)).sum())  # a vector of NaN comes last, not first
    return found


def retrieval(found: Sequence[int]) -> dict[str, float]:
    """Mean reciprocal place, and the share of places up to a few depths."""
    place = np.array(found, np.float64)
    values = {"mrr": float((1 / place).mean()) if len(place) else math.nan}
    for depth in DEPTHS:
        share = float((place <= depth).mean()) if len(place) else math.nan
        values[f"recall_at_{depth}"] = share
    return values


def agreement(cosines: Sequence[float], scores: Sequence[float]) -> dict[str, float]:
    """Spearman's and Pearson's correlation; NaN where one side is always the same."""
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (cosines, scores))
    if len(x) == 0 or bool((x == x[0]).all() or (y == y[0]).all()):
        return {"spearman": math.nan, "pearson": math.nan}
    pearson = torch.corrcoef(torch.stack([x, y]))[0, 1]
    return {"spearman": float(spearman_corrcoef(x, y)), "pearson": float(pearson)}


def best_cutoff(cosines: Sequence[float], match: Sequence[bool]) -> float:
    """The cosine that, where pairs from it on are called a match, makes most pairs right: halfway
    between two neighbours."""
    order = np.argsort(cosines, kind="stable")
    values, good = np.array(cosines, np.float64)[order], np.array(match, np.int64)[order]
    # Pairs before the cut are called none, those from it on a match.
    right = np.concatenate([[0], (1 - good).cumsum()]) + np.append(good[::-1].cumsum()[::-1], 0)
    edges = np.concatenate([values[:1] - 1, values, values[-1:] + 1])
    between = (edges[:-1] + edges[1:]) / 2
    possible = edges[:-1] < edges[1:]  # equal cosines cannot be told apart
    return float(between[np.where(possible, right, -1).argmax()])


def detection(
    cosines: Sequence[float], match: Sequence[bool], cutoff: float | None
) -> dict[str, float]:
    """Average precision; accuracy and F1 where there is a cutoff."""
    x, y = torch.tensor(cosines, dtype=torch.float64), torch.tensor(match, dtype=torch.int64)
    values = {"average_precision": float(binary_average_precision((x + 1) / 2, y))}
    if cutoff is not None:
        called = (x >= cutoff).long()
        values["accuracy"] = float((called == y).double().mean())
        values["f1"] = float(binary_f1_score(called, y))
    return values


def classes(logits: Tensor, labels: list[str]) -> list[dict[str, Any]]:
    """The most likely label of each row and every label's probability."""
    shares = logits.float().softmax(-1)
    best = shares.argmax(-1).tolist() if len(shares) else []
    return [
        {
            "label": labels[at],
            "probabilities": {label: round(p, 6) for label, p in zip(labels, row, strict=True)},
        }
        for at, row in zip(best, shares.tolist(), strict=True)
    ]


def decisions(gold: Sequence[str | None], predicted: Sequence[str]) -> dict[str, float]:
    """Accuracy and macro-F1 over the labels that occur."""
    names = {name: i for i, name in enumerate(sorted({*map(str, gold), *predicted}))}
    if not names:
        return {"accuracy": math.nan, "macro_f1": math.nan}
    y = torch.tensor([names[str(label)] for label in gold])
    x = torch.tensor([names[label] for label in predicted])
    f1 = multiclass_f1_score(x, y, num_classes=max(2, len(names)), average="macro")
    return {"accuracy": float((x == y).double().mean()), "macro_f1": float(f1)}
