"""What came out as a table and as a picture: score against FLOPs, with intervals."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from ptft_lightning.report.drawing import file_style
from ptft_lightning.report.intervals import mean

COLOURS = ("#2a6fbb", "#c4572b", "#3a8f5c", "#8a4fa3", "#b0892a", "#4a4a4a")
MARKS = {"tokens": "o", "flops": "s"}
Line = dict[str, Any]


def table(lines: list[Line]) -> str:
    """Markdown, a row for each model, budget, task and way."""
    out = ["| model | equal | steps | FLOPs | task | way | rate | by seed | mean, 95 % |"]
    out.append("|---|---|---|---|---|---|---|---|---|")
    for line in lines:
        found = mean(line["scores"])
        each = " ".join(f"{score:.3f}" for score in line["scores"])
        half = "" if math.isnan(found.half) else f" +- {found.half:.3f}"
        facts = (line[k] for k in ("model", "equal", "steps"))
        shown = [*facts, f"{line['flops']:.3g}", line["task"], line["way"], f"{line['rate']:g}"]
        out.append(f"| {' | '.join(map(str, shown))} | {each} | {found.value:.3f}{half} |")
    return "\n".join(out) + "\n"


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in both: more score for no more FLOPs."""
    kept: list[tuple[float, float]] = []
    for flops, score in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or score > kept[-1][1]:
            kept.append((flops, score))
    return kept


def draw(lines: list[Line], file: Path) -> None:
    """A row of panels for each task, a panel for each way; the dashed line is from scratch. Models
    of as many FLOPs stand side by side."""
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    trained = [line for line in lines if line["flops"]]
    ways = list(dict.fromkeys(line["way"] for line in trained))
    names = list(dict.fromkeys(line["model"] for line in trained))
    colour = dict(zip(names, COLOURS, strict=False))
    aside = {name: 1 + 0.012 * (i - (len(names) - 1) / 2) for i, name in enumerate(names)}
    with rc_context(file_style("paradigms")):
        size = (3.2 * len(ways) + 1.4, 3.1 * len(tasks))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(tasks), len(ways), squeeze=False, sharey="row", sharex=True)
        for (r, task), (c, way) in product(enumerate(tasks), enumerate(ways)):
            axes, points = panels[r][c], []
            for line in (x for x in trained if (x["task"], x["way"]) == (task, way)):
                found = mean(line["scores"])
                points.append((line["flops"], found.value))
                half = 0.0 if math.isnan(found.half) else found.half
                label = line["model"] if line["equal"] == "tokens" else None
                look = {"color": colour[line["model"]], "marker": MARKS[line["equal"]]}
                x = line["flops"] * aside[line["model"]]
                axes.errorbar(x, found.value, half, **look, ls="", capsize=2, label=label)
            best = front(points)
            axes.step(*zip(*best, strict=True), where="post", color="#a0a0a0", lw=1, zorder=0)
            scratch = [x for x in lines if not x["flops"] and x["task"] == task]
            for line in scratch:
                axes.axhline(mean(line["scores"]).value, color="#606060", ls="--", lw=1)
            axes.set(title=f"{task}, {way}", xscale="log", xlabel="FLOPs of pretraining")
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.1e}"))
        title = "circle: equal tokens\nsquare: equal FLOPs"
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=7.5, title=title, loc="outside right upper")
        figure.savefig(file, format="svg", metadata={"Date": None})
