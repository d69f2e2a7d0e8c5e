"""Pictures of predictions: confusion matrix, reliability, confidence, predicted against true."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ptft_lightning.report.drawing import (
    GRID,
    INK,
    MUTED,
    PAPER,
    SERIES,
    calm,
    columns,
    picture,
    shorten,
)
from ptft_lightning.report.scores import BINS, Bools, Floats, Ints, Reliability

RIGHT, WRONG = SERIES[0], SERIES[1]
SQUARE = (360.0, 260.0)
MANY = 100  # classes that a matrix can still show
WRITTEN = 20  # classes up to which each cell has its count written in
POINTS = 2000  # of a scatter


def confusion_picture(matrix: Ints, labels: Sequence[str]) -> str:
    """Rows are gold labels, columns predictions; the shade is the share of the row."""
    count = len(labels)
    names = [shorten(label) for label in labels]
    cell = float(np.clip(380 / count, 9, 46))
    font = float(np.clip(cell * 0.62, 6, 9.5))
    label = 0.58 * font * max(columns(name) for name in names) + 12
    side = cell * count
    deep = label if count > WRITTEN else 0.72 * label  # upright, or slanted, beneath the columns
    margins = (label + 18, 12.0, deep + 20, 6.0)
    size = (side + margins[0] + margins[1], side + margins[2] + margins[3])

    def draw(axes: Axes) -> None:
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        for gold, predicted in zip(*np.nonzero(matrix), strict=True):
            share = float(shares[gold, predicted])
            colour = RIGHT if gold == predicted else WRONG
            square = Rectangle((predicted - 0.5, gold - 0.5), 1, 1, facecolor=colour, linewidth=0)
            square.set_alpha(0.1 + 0.8 * share)
            axes.add_patch(square)
            if count <= WRITTEN:
                ink = PAPER if share > 0.55 else INK
                text = f"{matrix[gold, predicted]:,}"
                small = min(font, 1.5 * cell / max(len(text), 2))
                axes.text(
                    predicted, gold, text, ha="center", va="center", color=ink, fontsize=small
                )
        _matrix_axes(axes, names, font)
        axes.xaxis.set_label_coords(0.5, -(margins[2] - 12) / side)
        axes.yaxis.set_label_coords(-(margins[0] - 8) / side, 0.5)

    return picture("Confusion matrix", draw, size, margins)


def _matrix_axes(axes: Axes, names: list[str], font: float) -> None:
    edges = np.arange(len(names) + 1) - 0.5
    width = 0.8 if len(names) <= WRITTEN else 0.3
    axes.hlines(edges, -0.5, len(names) - 0.5, color=GRID, linewidth=width, zorder=0)
    axes.vlines(edges, -0.5, len(names) - 0.5, color=GRID, linewidth=width, zorder=0)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
    axes.spines[:].set_visible(False)
    axes.grid(False)
    axes.set_yticks(range(len(names)), names, fontsize=font, color=INK)
    axes.set_xticks(range(len(names)), names, fontsize=font, color=INK)
    for label in axes.get_xticklabels():
        if len(names) > WRITTEN:
            label.set(rotation=90, ha="right", va="center", rotation_mode="anchor")
        else:
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")


def reliability_picture(bins: Reliability) -> str:
    """Accuracy against confidence: on the diagonal, a confidence of 0.8 is right 8 times in 10."""

    def draw(axes: Axes) -> None:
        some = bins.count > 0
        middles = (np.arange(BINS) + 0.5) / BINS
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.bar(middles[some], bins.accuracy[some], 0.86 / BINS, color=RIGHT, alpha=0.35)
        share = bins.count[some] / bins.count.sum()
        axes.scatter(
            bins.confidence[some],
            bins.accuracy[some],
            12 + 160 * share,
            color=RIGHT,
            edgecolor=PAPER,
            linewidth=0.8,
            zorder=3,
        )
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        calm(axes, "confidence")
        axes.set_ylabel("accuracy", labelpad=1)

    return picture("Reliability diagram", draw, SQUARE, (44, 10, 32, 10))


def confidence_picture(confidence: Floats, right: Bools, words: tuple[str, str]) -> str:
    """How sure the model was where it was right and where it was wrong."""

    def draw(axes: Axes) -> None:
        edges = [i / 25 for i in range(26)]
        parts = [confidence[right], confidence[~right]]
        names = [f"{word} ({len(part):,})" for word, part in zip(words, parts, strict=True)]
        axes.hist(
            parts, edges, stacked=True, color=[RIGHT, WRONG], alpha=0.8, rwidth=0.86, label=names
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(top=1.16 * axes.get_ylim()[1])  # room for the legend
        calm(axes, "confidence")
        axes.legend(loc="upper left", ncols=2, handlelength=0.9, handleheight=0.9)

    return picture("Distribution of confidence", draw, SQUARE, (44, 10, 32, 10))


def scatter_picture(gold: Floats, predicted: Floats) -> str:
    """Predicted against true numbers; where there are many, evenly spaced ones."""
    every = max(1, -(-len(gold) // POINTS))

    def draw(axes: Axes) -> None:
        both = np.concatenate([gold, predicted])
        low, high = float(both.min()), float(both.max())
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.scatter(gold[::every], predicted[::every], 14, color=RIGHT, alpha=0.45, linewidth=0)
        calm(axes, "gold")
        axes.margins(x=0.03, y=0.03)
        axes.set_ylabel("predicted", labelpad=1)

    return picture("Predicted against gold", draw, (420, 340), (48, 12, 32, 10))
