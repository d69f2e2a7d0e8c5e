"""Memory and time of long rows: full, windowed, Linformer and LSH attention; reversible layers.

Forward and backward of one row through two blocks (width 128, 2 heads), causal but for Linformer,
at each length; then activation memory of a Reformer by depth, reversible and plain. Every point is
a process of its own, forked from one that has loaded torch, and its memory is what its peak adds.
Kinds take turns, and figures are medians. Times are the processor's, of one thread, which other
work on the machine slows less than the clock's, but slows. A point over the limit of memory or time
is reported as such. Draws `docs/long_rows.svg`; parts measured apart are drawn together.

    nice python benchmarks/long_rows.py --output long_rows.json
    nice python benchmarks/long_rows.py --repeats 1 --lengths 16384 --depths --output part.json
    nice python benchmarks/long_rows.py --draw long_rows.json part.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import signal
import statistics
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from ptft_lightning.backbones import linformer, reformer  # noqa: F401  (loaded before the fork)
from ptft_lightning.backbones.base import initial_value
from ptft_lightning.modules.nets import build_backbone
from ptft_lightning.report.drawing import file_style, tick

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
DEPTHS = (2, 4, 8, 16)
DEPTH_LENGTH = 2048
SIZE = {"dim": 128, "heads": 2}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("transformer", {"causal": True}),
    "windowed (64)": ("transformer", {"causal": True, "window": 64}),
    "Linformer (k = 128)": ("linformer", {"projected_length": 128}),
    "LSH (2 rounds + local)": ("reformer", {"causal": True, "hash_rounds": 2, "reversible": False}),
    "LSH, reversible": ("reformer", {"causal": True, "hash_rounds": 2}),
}
MEMORY_GB = 8.0
SECONDS = 20
PICTURE = Path(__file__).parent.parent / "docs" / "long_rows.svg"
COLOURS = ("#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2", "#9c6b4e", "#97bbf5", "#9498a0")


def measure(kind: str, config: dict[str, Any], length: int, out: Connection) -> None:
    """In a process of its own: memory of the first pass, time of the fastest of half a second."""
    room = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (room + int(MEMORY_GB * 1e9),) * 2)
    own = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (own + SECONDS,) * 2)
    shape = {**SIZE, "max_length": length, **config}
    backbone = build_backbone(kind, shape, 64)
    with torch.no_grad():
        for name, p in backbone.named_parameters():
            p.copy_(initial_value(name, p.shape, shape["depth"], 0))
            p.grad = torch.zeros_like(p)
    tokens = torch.randint(0, 64, (1, length), generator=torch.Generator().manual_seed(0))
    before, times = peak(), list[float]()
    memory = 0.0
    try:
        while sum(times) < 0.5:
            began = time.process_time()
            backbone(tokens).square().mean().backward()
            times.append(time.process_time() - began)
            memory = memory or peak() - before
    except (RuntimeError, MemoryError) as error:
        if "allocate" not in str(error) and not isinstance(error, MemoryError):
            raise
        out.send(f"over {MEMORY_GB:g} GB")
        return
    out.send({"mb": memory / 1e6, "us_per_token": min(times) / length * 1e6})


def peak() -> float:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def point(kind: str, config: dict[str, Any], length: int) -> dict[str, float] | str:
    """Figures of a process, or why there are none."""
    fork = multiprocessing.get_context("fork")
    mine, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=measure, args=(kind, config, length, theirs))
    process.start()
    theirs.close()
    try:
        found: dict[str, float] | str = mine.recv()
        return found
    except EOFError:
        process.join()
        out_of_time = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        return f"over {SECONDS} s of the processor" if out_of_time else "failed"
    finally:
        process.join()


def middle(results: list[dict[str, float] | str]) -> dict[str, float] | str:
    """The median of each figure; a point that failed once is one that failed."""
    figures = [r for r in results if not isinstance(r, str)]
    if len(figures) < len(results):
        return next(r for r in results if isinstance(r, str))
    return {name: statistics.median(f[name] for f in figures) for name in figures[0]}


def all_points(repeats: int, lengths: list[int], by_depth: list[int]) -> dict[str, Any]:
    """Both tables; kinds take turns."""
    table: dict[str, dict[int, Any]] = {name: {} for name in KINDS}
    for length in lengths:
        turns = [
            {name: point(k, {**c, "depth": 2}, length) for name, (k, c) in KINDS.items()}
            for _ in range(repeats)
        ]
        for name in KINDS:
            table[name][length] = middle([turn[name] for turn in turns])
            print(f"{name:24} {length:6} {shown(table[name][length])}", flush=True)
    depths: dict[str, dict[int, Any]] = {"plain": {}, "reversible": {}}
    for depth in by_depth:
        for name, config in depths.items():
            more = {"causal": True, "hash_rounds": 2, "depth": depth}
            more["reversible"] = name == "reversible"
            found = [point("reformer", more, DEPTH_LENGTH) for _ in range(repeats)]
            config[depth] = middle(found)
            print(f"{name:24} depth {depth:3} {shown(config[depth])}", flush=True)
    return {"lengths": table, "depths": depths, "repeats": repeats}


def merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One table of several, in the order of its numbers."""
    return dict(sorted((x for part in parts for x in part.items()), key=lambda x: int(x[0])))


def shown(found: dict[str, float] | str) -> str:
    """A line's end."""
    if isinstance(found, str):
        return found
    return f"{found['mb']:8.0f} MB {found['us_per_token']:8.0f} us/token"


def binary(value: float, _: int | None = None) -> str:
    """512, 1k, 2k."""
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def lines(axes: Axes, table: dict[str, dict[str, Any]], figure: str) -> None:
    """A line a name, of the points that are there."""
    for name, points in table.items():
        known = [(int(x), p[figure]) for x, p in points.items() if not isinstance(p, str)]
        axes.plot(*zip(*known, strict=True), marker="o", markersize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([int(x) for x in next(iter(table.values()))])
    axes.xaxis.set_major_formatter(FuncFormatter(binary))
    axes.xaxis.set_minor_locator(NullLocator())


def draw(found: dict[str, Any], file: Path) -> None:
    """Three panels in the project's style; as a file it has colours of its own."""
    with rc_context(file_style("long rows") | {"axes.prop_cycle": cycler(color=COLOURS)}):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        memory, times, depth = figure.subplots(1, 3)
        lines(memory, found["lengths"], "mb")
        lines(times, found["lengths"], "us_per_token")
        lines(depth, found["depths"], "mb")
        memory.set_yscale("log")
        times.set_yscale("log")
        memory.set(title="peak memory, MB", xlabel="tokens of a row")
        times.set(title="microseconds a token (processor)", xlabel="tokens of a row")
        depth.set(title=f"Reformer, {DEPTH_LENGTH:,} tokens: MB", xlabel="layers", ylim=(0, None))
        for axes in (memory, times):
            axes.yaxis.set_major_formatter(FuncFormatter(tick))
        memory.legend(fontsize=7.5)
        depth.legend(fontsize=7.5)
        figure.savefig(file, format="svg", metadata={"Date": None})


def main() -> None:
    """See the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--draw", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--depths", type=int, nargs="*", default=list(DEPTHS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.draw:
        parts = [json.loads(file.read_text()) for file in given.draw]
        tables = ("lengths", "depths")
        found = {t: {k: merged(p[t][k] for p in parts) for k in parts[0][t]} for t in tables}
    else:
        given_points = (given.repeats, given.lengths, given.depths)
        found = json.loads(json.dumps(all_points(*given_points)))
        if given.output:
            given.output.write_text(json.dumps(found, indent=1) + "\n")
    if given.draw or (given.lengths and given.depths):
        draw(found, PICTURE)


if __name__ == "__main__":
    main()
