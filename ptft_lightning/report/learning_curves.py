"""Means over seeds by label count as a page: curves with intervals, verdicts, every number."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from matplotlib.axes import Axes

from ptft_lightning import __version__
from ptft_lightning.report import page
from ptft_lightning.report.drawing import SERIES, calm, picture
from ptft_lightning.report.intervals import Mean

SIZE = (900.0, 300.0)


class Comparison(Protocol):
    """Values of several starts at several label counts on several test sets."""

    arms: list[str]
    labels: list[int | str]
    tests: list[str]

    def mean(self, arm: str, labels: int | str, test: str) -> Mean:
        """Over seeds."""
        ...

    def table(self) -> list[list[str]]:
        """A heading and rows of text."""
        ...

    def verdicts(self) -> list[str]:
        """Sentences."""
        ...


def build_transfer_page(name: str, found: Comparison, metric: str, config: str) -> str:
    """The whole page as HTML."""
    made = f"{datetime.now():%Y-%m-%d %H:%M}, ptft_lightning {__version__}"
    colours = [(arm, i % len(SERIES) + 1) for i, arm in enumerate(found.arms)]
    figures = [
        page.figure(f"{metric}, {test}", _curve(found, test), wide=True) for test in found.tests
    ]
    head, *rows = found.table()
    kinds = ["t", "n", "t", *("n" for _ in head[3:])]
    cells = [[page.text(cell) for cell in row] for row in rows]
    parts = [
        page.section("Learning curves", page.legend(colours), page.grid(figures)),
        page.section("Was it worth it?", *map(page.paragraph, found.verdicts() or [ONE])),
        page.section("Means over seeds", page.table(list(zip(head, kinds, strict=True)), cells)),
        page.folded("Where it started", config),
    ]
    return page.page(name, "Bars and bands are Student's 95 % intervals of the mean.", parts, made)


ONE = "There is one start: name another one to compare with."


def _curve(found: Comparison, test: str) -> str:
    at = range(len(found.labels))

    def draw(axes: Axes) -> None:
        for i, arm in enumerate(found.arms):
            means = [found.mean(arm, labels, test) for labels in found.labels]
            _line(axes, at, means, SERIES[i % len(SERIES)], shift=0.02 * (i - len(found.arms) / 2))
        calm(axes, "training examples", (8, 5), False)
        axes.set_xticks(list(at), [str(labels) for labels in found.labels])
        axes.set_xlim(-0.4, len(found.labels) - 0.6)

    return picture(f"Learning curves on {test}", draw, SIZE)


def _line(axes: Axes, at: Sequence[int], means: Sequence[Mean], colour: str, shift: float) -> None:
    x = [place + shift for place in at]
    values = [m.value for m in means]
    axes.plot(x, values, color=colour, linewidth=1.8, marker="o", markersize=5)
    known = [(p, m) for p, m in zip(x, means, strict=True) if m.count > 1]
    axes.vlines(
        [p for p, _ in known],
        [m.low for _, m in known],
        [m.high for _, m in known],
        color=colour,
        linewidth=2.4,
        alpha=0.45,
    )
