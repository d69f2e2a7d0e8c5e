"""Scores of kept predictions: confusion matrix, precision and recall, calibration; draws nothing.

Plain formulas over arrays, so that a report needs no more than numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Kind = Literal["classes", "labels", "number", "other"]

BINS = 15  # of the reliability diagram, as is usual


def kind_of(line: dict[str, Any]) -> Kind:
    """What was predicted: one of several classes, a set of labels, a number, or something else."""
    if isinstance(line.get("probabilities"), dict) and line["probabilities"]:
        return "labels" if isinstance(line.get("labels"), list) else "classes"
    return "number" if predicted_number(line) is not None else "other"


def said(line: dict[str, Any]) -> dict[str, Any]:
    """What the model read: a line's keys before `gold`."""
    names = list(line)
    return {name: line[name] for name in names[: names.index("gold")] if name != "number"}


def told(line: dict[str, Any]) -> dict[str, Any]:
    """What it predicted: a line's keys after `gold`."""
    names = list(line)
    return {name: line[name] for name in names[names.index("gold") + 1 :]}


def of_a_kind(lines: Sequence[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """The lines that can be scored together with the first, gold as text, texts or a number."""
    if kind == "other":
        return list(lines)
    found = []
    for line in lines:
        if kind_of(line) != kind:
            continue
        gold = _gold(line, kind, lines[0])
        found += [] if gold is None else [line | {"gold": gold}]
    return found


def _gold(line: dict[str, Any], kind: Kind, first: dict[str, Any]) -> Any:
    """What is right in the form of its kind; None where the line does not fit the first."""
    gold = line["gold"]
    if kind == "number":
        try:
            value = float(gold)
        except (TypeError, ValueError):
            return None
        return value if np.isfinite(value) else None
    known = first["probabilities"].keys()
    if line["probabilities"].keys() != known:
        return None
    if kind == "classes":
        return str(gold) if {str(gold), line.get("label")} <= known else None
    several = [str(name) for name in (gold if isinstance(gold, list) else [gold])]
    return several if known >= {*several, *line["labels"]} else None


def predicted_number(line: dict[str, Any]) -> float | None:
    """The one number that a regression's line holds beside `number` and `gold`."""
    values = [
        value
        for name, value in line.items()
        if name not in ("number", "gold", "text", "pair") and isinstance(value, int | float)
    ]
    return float(values[0]) if len(values) == 1 else None


def confusion(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Ints:
    """(classes, classes): how often a gold label (row) was predicted as each label (column)."""
    place = {label: i for i, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(matrix, ([place[g] for g in gold], [place[p] for p in predicted]), 1)
    return matrix


@dataclass(frozen=True)
class LabelScores:
    """Per label, (labels,) each; 0 where a quotient has no denominator."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Ints
    """How often the label is gold."""
    used: Bools
    """Gold or predicted at least once: the others do not enter the mean."""

    @property
    def macro_f1(self) -> float:
        """The mean of F1 over the labels in use."""
        return float(self.f1[self.used].mean()) if self.used.any() else 0.0


def label_scores(hits: Ints, predicted: Ints, support: Ints) -> LabelScores:
    """From counts per label: right predictions, predictions, gold labels."""
    return LabelScores(
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, support),
        f1=_ratio(2 * hits, predicted + support),
        support=support,
        used=(predicted + support) > 0,
    )


def _ratio(upper: Ints, lower: Ints) -> Floats:
    return np.asarray(upper / np.maximum(lower, 1), np.float64)


@dataclass(frozen=True)
class Reliability:
    """How often predictions of a given confidence are right, per bin of equal width."""

    count: Ints
    confidence: Floats
    """The mean in each bin, NaN in an empty one."""
    accuracy: Floats

    @property
    def error(self) -> float:
        """Expected calibration error: the mean of |accuracy - confidence|, weighted by count
        (Naeini et al., 2015; Guo et al., 2017)."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((self.count * gaps).sum() / max(self.count.sum(), 1))


def reliability(confidence: Floats, right: Bools, bins: int = BINS) -> Reliability:
    """Bins ((i-1)/bins, i/bins] of (N,) confidences and whether each prediction was right."""
    at = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(at, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            count=count,
            confidence=np.bincount(at, confidence, bins) / count,
            accuracy=np.bincount(at, right.astype(np.float64), bins) / count,
        )


def pearson(one: Floats, other: Floats) -> float:
    """Correlation; NaN where one of them is constant."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def spearman(one: Floats, other: Floats) -> float:
    """Correlation of ranks, ties at their mean rank."""
    return pearson(_ranks(one), _ranks(other))


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], np.float64)
