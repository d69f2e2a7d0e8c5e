"""The part of the page that shows what a phase-two model predicted, example by example."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ptft_lightning.report import page
from ptft_lightning.report.drawing import number
from ptft_lightning.report.matrices import (
    MANY,
    confidence_picture,
    confusion_picture,
    reliability_picture,
    scatter_picture,
)
from ptft_lightning.report.scores import (
    LabelScores,
    confusion,
    kind_of,
    label_scores,
    of_a_kind,
    pearson,
    predicted_number,
    reliability,
    said,
    spearman,
    told,
)

MISTAKES = 20  # shown, the most confident first
CONFUSIONS = 12
FEW = 40  # of predictions without a picture
LONG = 600  # characters of a value
BESIDE = 12  # classes up to which the matrix and the table stand beside each other
Line = dict[str, Any]


def prediction_section(split: str, lines: Sequence[Line]) -> str:
    """Everything about one split's kept predictions; empty without any."""
    if not lines:
        return ""
    kind = kind_of(lines[0])
    whole = of_a_kind(lines, kind)
    if not whole:
        return page.section(f"Predictions: {split}", _odd(len(lines)))
    parts = {"classes": _classes, "labels": _labels, "number": _numbers, "other": _other}[kind]
    return page.section(
        f"Predictions: {split}", _told(split, whole), _odd(len(lines) - len(whole)), *parts(whole)
    )


def _odd(count: int) -> str:
    if not count:
        return ""
    return page.notes([f"{count:,} lines have a gold label or scores that do not fit: left out."])


def _told(split: str, lines: Sequence[Line]) -> str:
    which = {"validation": "the best validation", "test": "the last test"}[split]
    numbers = [line["number"] for line in lines[:2] if isinstance(line.get("number"), int)]
    every = numbers[1] - numbers[0] if len(numbers) == 2 else 1
    some = f"1 in {every} of the examples" if every > 1 else "the examples"
    return page.paragraph(f"{len(lines):,} predictions: {some} of {which}.")


def _other(lines: Sequence[Line]) -> list[str]:
    """What was read, what is right and what was predicted, side by side."""
    rows = [
        [_fields(said(line)), _shown(line["gold"]), _fields(told(line))] for line in lines[:FEW]
    ]
    head = [("read", "t"), ("right", "t"), ("predicted", "t")]
    some = page.paragraph(f"The first {len(rows)}; the file holds them all.")
    return [some, page.table(head, rows)]


def _fields(values: dict[str, Any]) -> str:
    if len(values) == 1:
        return _shown(*values.values())
    return "<br>".join(f"<small>{page.text(k)}</small> {_shown(v)}" for k, v in values.items())


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return page.text(text if len(text) <= LONG else text[: LONG - 1] + "…")


# One of several classes.


def _classes(lines: Sequence[Line]) -> list[str]:
    labels = list(lines[0]["probabilities"])
    gold, predicted = [line["gold"] for line in lines], [line["label"] for line in lines]
    confidence = np.array([max(line["probabilities"].values()) for line in lines])
    right = np.array([g == p for g, p in zip(gold, predicted, strict=True)])
    matrix = confusion(gold, predicted, labels)
    scores = label_scores(matrix.diagonal(), matrix.sum(0), matrix.sum(1))
    bins = reliability(confidence, right)
    head = page.tiles(
        [
            page.tile("Accuracy", f"{right.mean():.4f}", f"{right.sum():,} of {len(right):,}"),
            page.tile("Macro F1", f"{scores.macro_f1:.4f}", f"{len(labels)} classes"),
            page.tile("Calibration error", f"{bins.error:.4f}", "ECE, 15 bins"),
            page.tile(
                "Mean confidence", f"{confidence.mean():.4f}", _sure(confidence.mean(), right)
            ),
        ]
    )
    calibration = page.grid(
        [
            page.figure("Calibration", reliability_picture(bins), "dots by number of examples"),
            page.figure("Confidence", confidence_picture(confidence, right, ("right", "wrong"))),
        ]
    )
    both = [_matrix(matrix, labels), _per_label(labels, scores)]
    return [
        head,
        _gap(),
        page.grid(both) if len(labels) <= BESIDE else _gap().join(both),
        _gap(),
        calibration,
        _confusions(matrix, labels),
        _mistakes(lines, confidence, right),
    ]


def _sure(confidence: float, right: Any) -> str:
    gap = confidence - right.mean()
    return "as sure as right" if abs(gap) < 0.02 else f"{'over' if gap > 0 else 'under'}confident"


def _gap() -> str:
    return '<div style="height:14px"></div>'


def _matrix(matrix: Any, labels: Sequence[str]) -> str:
    if len(labels) > MANY:
        return page.paragraph(
            f"{len(labels)} classes are too many for a confusion matrix: see the table below."
        )
    svg = confusion_picture(matrix, labels)
    width = float(svg.split('viewBox="0 0 ')[1].split()[0])
    note = "rows: gold, columns: predicted; shade: share of the row"
    return page.figure("Confusion matrix", svg, note, width=width)


def _per_label(labels: Sequence[str], scores: LabelScores) -> str:
    head = [("label", "l"), ("precision", "n"), ("recall", "n"), ("F1", "n"), ("", "bar")]
    rows = [
        [page.text(label), f"{p:.4f}", f"{r:.4f}", f"{f:.4f}", page.bar(f), f"{s:,}"]
        for label, p, r, f, s in zip(
            *(labels, scores.precision, scores.recall, scores.f1, scores.support), strict=True
        )
    ]
    return page.table([*head, ("support", "n")], rows)


def _confusions(matrix: Any, labels: Sequence[str]) -> str:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [divmod(int(at), len(labels)) for at in order if wrong.flat[at]]
    if len(labels) < 3 or not pairs:
        return ""
    rows = [
        [
            page.text(labels[g]),
            page.text(labels[p]),
            f"{wrong[g, p]:,}",
            f"{100 * wrong[g, p] / matrix[g].sum():.1f} %",
        ]
        for g, p in pairs
    ]
    head = [("gold", "t"), ("predicted", "t"), ("times", "n"), ("of that gold label", "n")]
    return "<h2>Most frequent confusions</h2>" + page.table(head, rows)


def _mistakes(lines: Sequence[Line], confidence: Any, right: Any) -> str:
    order = [i for i in np.argsort(-confidence, kind="stable") if not right[i]]
    if not order:
        return page.paragraph("Every one of them is right.")
    rows = [
        [
            _text(lines[i]),
            page.text(lines[i]["gold"]),
            f"<mark>{page.text(lines[i]['label'])}</mark>",
            f"{confidence[i]:.3f}",
        ]
        for i in order[:MISTAKES]
    ]
    head = [("text", "t"), ("gold", "l"), ("predicted", "l"), ("confidence", "n")]
    return "<h2>Most confident mistakes</h2>" + page.table(head, rows)


def _text(line: Line) -> str:
    if "text" not in line:
        return _fields(said(line))
    pair = line.get("pair")
    first = page.text(line["text"])
    return first if pair is None else f"{first}<br><small>{page.text(pair)}</small>"


# A set of labels.


def _labels(lines: Sequence[Line]) -> list[str]:
    labels = list(lines[0]["probabilities"])
    gold = np.array([[label in line["gold"] for label in labels] for line in lines])
    chosen = np.array([[label in line["labels"] for label in labels] for line in lines])
    probability = np.array([[line["probabilities"][label] for label in labels] for line in lines])
    hits = gold & chosen
    scores = label_scores(hits.sum(0), chosen.sum(0), gold.sum(0))
    micro = 2 * hits.sum() / max(gold.sum() + chosen.sum(), 1)
    exact = (gold == chosen).all(1)
    bins = reliability(probability.ravel(), gold.ravel())
    head = page.tiles(
        [
            page.tile("Micro F1", f"{micro:.4f}", f"{len(labels)} labels"),
            page.tile("Macro F1", f"{scores.macro_f1:.4f}"),
            page.tile("All labels right", f"{exact.mean():.4f}", f"{exact.sum():,} examples"),
            page.tile("Calibration error", f"{bins.error:.4f}", "ECE, 15 bins, all labels"),
        ]
    )
    pictures = page.grid(
        [
            page.figure("Calibration", reliability_picture(bins), "share of gold by probability"),
            page.figure(
                "Probabilities",
                confidence_picture(probability.ravel(), gold.ravel(), ("gold", "not gold")),
            ),
        ]
    )
    return [
        head,
        _gap(),
        _per_label(labels, scores),
        _gap(),
        pictures,
        _label_mistakes(lines, np.abs(probability - gold).max(1), exact),
    ]


def _label_mistakes(lines: Sequence[Line], error: Any, exact: Any) -> str:
    order = [i for i in np.argsort(-error, kind="stable") if not exact[i]][:MISTAKES]
    rows = [
        [
            _text(lines[i]),
            page.text(", ".join(lines[i]["gold"])),
            f"<mark>{page.text(', '.join(lines[i]['labels']))}</mark>",
            f"{error[i]:.3f}",
        ]
        for i in order
    ]
    head = [("text", "t"), ("gold", "t"), ("predicted", "t"), ("largest error", "n")]
    return "<h2>Most confident mistakes</h2>" + page.table(head, rows) if rows else ""


# A number.


def _numbers(lines: Sequence[Line]) -> list[str]:
    gold = np.array([line["gold"] for line in lines])
    predicted = np.array([predicted_number(line) or 0.0 for line in lines])
    error = predicted - gold
    head = page.tiles(
        [
            page.tile("Spearman", f"{spearman(gold, predicted):.4f}", "rank correlation"),
            page.tile("Pearson", f"{pearson(gold, predicted):.4f}", "correlation"),
            page.tile("RMSE", number(float(np.sqrt((error**2).mean())))),
            page.tile("Mean error", number(float(error.mean())), "predicted minus gold"),
        ]
    )
    rows = [
        [_text(lines[i]), number(gold[i]), f"<mark>{number(predicted[i])}</mark>"]
        for i in np.argsort(-np.abs(error), kind="stable")[:MISTAKES]
    ]
    columns = [("text", "t"), ("gold", "n"), ("predicted", "n")]
    svg = scatter_picture(gold, predicted)
    return [
        head,
        _gap(),
        page.figure("Predicted against gold", svg, width=560),
        "<h2>Largest errors</h2>",
        page.table(columns, rows),
    ]
