"""metrics.csv as pictures: one panel per quantity, runs drawn over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from ptft_lightning.report.drawing import PAPER, SERIES, calm, number, picture, share
from ptft_lightning.report.reading import Curve, Floats, Run

# Told elsewhere, or by the loss.
HIDDEN = {"samples", "tokens", "seconds_per_step", "save_seconds", "perplexity"}
TITLES = {
    "loss": "Loss",
    "bits_per_byte": "Bits per byte",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_s": "Tokens per second",
    "data_stall": "Share of the time waiting for data",
    "padding_waste": "Padding",
}
PREFIXES = ("train_", "val_")
POINTS = 600  # a curve with more is drawn as the span and the mean of as many stretches
SMOOTH = 60  # a curve with more points than twice this also gets its mean over 1/60 of the run
SIZE = (270.0, 150.0)
WIDE = (900.0, 270.0)


@dataclass(frozen=True)
class Panel:
    """A quantity and what its picture says."""

    title: str
    now: str
    """The newest values in words."""
    svg: str
    wide: bool = False


def quantities(runs: Sequence[Run]) -> list[str]:
    """What the runs measured, the best known first, without `train_` and `val_`."""
    names = [bare(name) for run in runs for name in run.curves]
    known = [name for name in TITLES if name in names]
    return known + [n for n in dict.fromkeys(names) if n not in HIDDEN | TITLES.keys()]


def bare(name: str) -> str:
    """A column's quantity."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def title_of(quantity: str) -> str:
    """How people write a quantity."""
    return TITLES.get(quantity, quantity.replace("_", " ").capitalize())


def panels(runs: Sequence[Run]) -> list[Panel]:
    """One panel per quantity, the loss widest."""
    return [_panel(quantity, runs) for quantity in quantities(runs)]


def _panel(quantity: str, runs: Sequence[Run]) -> Panel:
    wide = quantity == "loss"
    title = title_of(quantity)

    def draw(axes: Axes) -> None:
        for run, colour in zip(runs, _colours(len(runs)), strict=True):
            if (curve := run.curves.get(quantity)) is not None:
                _line(axes, curve, colour)
            if (curve := run.curves.get(f"train_{quantity}")) is not None:
                _line(axes, curve, colour)
            if (curve := run.curves.get(f"val_{quantity}")) is not None:
                _dots(axes, curve, colour if len(runs) > 1 else SERIES[1])
        _scale(axes, quantity, runs)
        percent = quantity == "padding_waste"
        calm(axes, "step" if wide else "", (8, 5) if wide else (5, 4), percent)
        axes.set_xlim(left=0)

    now = _now(quantity, runs[0]) if len(runs) == 1 else ""
    return Panel(title, now, picture(title, draw, WIDE if wide else SIZE), wide)


def _colours(count: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(count)]


def _now(quantity: str, run: Run) -> str:
    shown = share if quantity == "padding_waste" else number
    parts = [
        f"{prefix.rstrip('_')} {shown(curve.last)}".strip()
        for prefix in (*PREFIXES, "")
        if (curve := run.curves.get(f"{prefix}{quantity}")) is not None
    ]
    return ", ".join(parts)


def _line(axes: Axes, curve: Curve, colour: str) -> None:
    """What was logged, thin; its running mean, thick, where there is much of it."""
    steps, values = curve.steps, np.where(np.isfinite(curve.values), curve.values, np.nan)
    many = len(values) > 2 * SMOOTH
    if len(values) > POINTS:
        at, low, high, _ = stretches(steps, values, POINTS)
        axes.fill_between(at, low, high, color=colour, alpha=0.28, linewidth=0)
    else:
        width, alpha, marker = (0.8, 0.4, "") if many else (1.6, 1.0, "o" * (len(values) == 1))
        axes.plot(
            steps, values, color=colour, linewidth=width, alpha=alpha, marker=marker, markersize=4
        )
    if many:
        at, _, _, mean = stretches(steps, values, SMOOTH)
        axes.plot(at, mean, color=colour, linewidth=1.8)


def _dots(axes: Axes, curve: Curve, colour: str) -> None:
    marker = "o" if len(curve.values) <= SMOOTH else ""
    values = np.where(np.isfinite(curve.values), curve.values, np.nan)
    axes.plot(
        curve.steps,
        values,
        color=colour,
        linewidth=1.4,
        marker=marker,
        markersize=5,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
    )


def stretches(steps: Floats, values: Floats, count: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Cut a curve into `count` stretches: the middle of each, its lowest, highest and mean value;
    stretches without a finite value are left out."""
    parts = [
        (s.mean(), np.nanmin(v), np.nanmax(v), np.nanmean(v))
        for s, v in zip(np.array_split(steps, count), np.array_split(values, count), strict=True)
        if np.isfinite(v).any()
    ]
    at, low, high, mean = np.array(parts, np.float64).reshape(-1, 4).T
    return at, low, high, mean


def _scale(axes: Axes, quantity: str, runs: Sequence[Run]) -> None:
    """Rates and shares begin at 0; what spikes is drawn on a logarithmic axis."""
    names = (quantity, *(f"{prefix}{quantity}" for prefix in PREFIXES))
    parts = [run.curves[name].values for run in runs for name in names if name in run.curves]
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    if quantity in ("tokens_per_s", "data_stall", "padding_waste", "lr"):
        top = float(values.max(initial=0)) * 1.08
        axes.set_ylim(0, top if top > 0 else 0.01)
    elif values.size and values.min() > 0 and values.max() > 30 * np.median(values):
        axes.set_yscale("log")
