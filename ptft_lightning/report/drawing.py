"""How pictures look: matplotlib figures as SVG that takes its colours and fonts from the page.

Colours are drawn as stand-ins and replaced by the page's variables, so that one picture is legible
on light and dark; text stays text, set in the reader's own fonts. Knows nothing of runs.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, MUTED, GRID, PAPER = "#010203", "#010204", "#010205", "#010206"
SERIES = tuple(f"#01030{i}" for i in range(1, 9))
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--card"} | {
    colour: f"--c{i}" for i, colour in enumerate(SERIES, start=1)
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a label is a dollar
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 9,
}
FILE = {GRID: "#d0d0d0", INK: "#303030", MUTED: "#606060"}
LABEL = 24  # columns of a label; the rest is left out
# left, right, bottom, top of the axes, in points
Margins = tuple[float, float, float, float]
MARGINS: Margins = (36, 8, 22, 8)


def file_style(salt: str) -> dict[str, Any]:
    """`STYLE` for a picture that no page gives its colours; `salt` decides the ids in it."""
    own = {k: FILE.get(v, v) if isinstance(v, str) else v for k, v in STYLE.items()}
    return own | {"figure.facecolor": "white", "svg.hashsalt": salt}


def picture(
    what: str, draw: Callable[[Axes], None], size: tuple[float, float], margins: Margins = MARGINS
) -> str:
    """An SVG of `size` points that `draw` fills; `what` names it for those who cannot see it."""
    width, height = size
    left, right, bottom, top = margins
    box = {"left": left / width, "right": 1 - right / width}
    box |= {"bottom": bottom / height, "top": 1 - top / height}
    stream = io.StringIO()
    style: Any = STYLE | {"svg.hashsalt": what}
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts have it
        figure = Figure(figsize=(width / 72, height / 72))
        axes = figure.subplots(gridspec_kw=box)
        draw(axes)
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return _inline(stream.getvalue(), what)


def _inline(svg: str, what: str) -> str:
    """The part of an SVG file that stands in a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r' (?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", svg, count=5)
    svg = re.sub(r' id="[a-z]+(?:2d)?(?:\.axis)?_\d+"', "", svg)  # not unique in a page
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    svg = re.sub(r"font: (?:\w+ )?([\d.]+px) [^;\"]*", r"font-size: \1", svg)  # before 3.11
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(what)}"', 1)


def columns(text: str) -> int:
    """Width of a text in columns; East Asian characters take two."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def shorten(text: str, width: int = LABEL) -> str:
    """A text in one line of at most `width` columns."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if columns(text) <= width:
        return text
    kept = ""
    for character in text:
        if columns(kept + character) >= width:
            break
        kept += character
    return f"{kept}…"


def number(value: float) -> str:
    """A number as a person reads it: 0.0123, 3.217, 45.1, 12,345, 1.2 M, 3.4e-05."""
    size = abs(value)
    if size != size or size == float("inf"):
        return "not finite"
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if size >= unit:
            return f"{value / unit:.3g} {name}"
    if size >= 1000:
        return f"{value:,.0f}"
    if 0 < size < 1e-3:
        return f"{value:.2g}"
    return f"{value:.4g}"


def tick(value: float, _: int | None = None) -> str:
    """A number beside an axis."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:.6g}".replace("e-0", "e-")


def share(value: float, _: int | None = None) -> str:
    """A number between 0 and 1 as a percentage."""
    return f"{100 * value:.3g} %"


def calm(
    axes: Axes, xlabel: str = "", ticks: tuple[int, int] = (5, 5), percent: bool = False
) -> None:
    """At most so many ticks on each axis, short numbers."""
    for axis, count in zip((axes.xaxis, axes.yaxis), ticks, strict=True):
        if axis.get_scale() == "linear":
            axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(tick))
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(share))
    axes.xaxis.grid(False)
    axes.margins(x=0.01)
    if xlabel:
        axes.set_xlabel(xlabel, labelpad=1)
