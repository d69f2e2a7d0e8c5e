"""Runs -> the page: of one run everything, of several what tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ptft_lightning import __version__
from ptft_lightning.report import overview, page
from ptft_lightning.report.curves import panels
from ptft_lightning.report.drawing import SERIES
from ptft_lightning.report.predictions import prediction_section
from ptft_lightning.report.reading import SPLITS, Run


def build_page(runs: Sequence[Run]) -> str:
    """The whole report as HTML."""
    made = f"{datetime.now():%Y-%m-%d %H:%M}, ptft_lightning {__version__}"
    if len(runs) == 1:
        (run,) = runs
        return page.page(run.name, overview.subtitle(run), _single(run), made)
    parts = [
        page.notes([f"{run.name}: {said}" for run in runs for said in overview.warnings_of(run)]),
        page.section("Results", _results(runs)),
        page.section("Curves", _names(runs), _curves(runs)),
        page.section("Settings that differ", _differences(runs)),
    ]
    return page.page(f"{len(runs)} runs", ", ".join(run.name for run in runs), parts, made)


def _single(run: Run) -> list[str]:
    two = [("training", 1), ("validation", 2)]
    return [
        overview.headline(run),
        page.notes(overview.warnings_of(run)),
        page.section("Curves", page.legend(two), _curves([run])) if run.curves else "",
        overview.samples(run),
        *(prediction_section(split, run.predictions[split]) for split in SPLITS),
        overview.facts(run),
    ]


def _curves(runs: Sequence[Run]) -> str:
    return page.grid(page.figure(p.title, p.svg, p.now, wide=p.wide) for p in panels(runs))


def _names(runs: Sequence[Run]) -> str:
    return page.legend((run.name, i % len(SERIES) + 1) for i, run in enumerate(runs))


def _results(runs: Sequence[Run]) -> str:
    """One row a run, one column a number."""
    found = [
        {
            f"{name} ({where.partition(',')[0]})": value
            for name, value, where in [*overview.results(run), *overview.efforts(run)]
        }
        for run in runs
    ]
    names = list(dict.fromkeys(name for values in found for name in values))
    rows = [
        [page.text(run.name), f"{run.step:,}", *(page.text(values.get(name, "")) for name in names)]
        for run, values in zip(runs, found, strict=True)
    ]
    return page.table([("run", "t"), ("steps", "n"), *((name, "n") for name in names)], rows)


def _differences(runs: Sequence[Run]) -> str:
    """The config's values that are not the same in all runs."""
    flat = [dict(_flatten(run.config)) for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    missing = object()
    rows = [
        [page.text(key), *(page.text(config.get(key, "")) for config in flat)]
        for key in keys
        if len({str(config.get(key, missing)) for config in flat}) > 1
    ]
    if not rows:
        return page.paragraph("None: their configs are the same.")
    return page.table([("", "k"), *((run.name, "t") for run in runs)], rows)


def _flatten(config: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(config, dict):
        return [(path, config)]
    inside = {k: v for k, v in config.items() if k != "init_args"} | (config.get("init_args") or {})
    return [
        pair
        for key, value in inside.items()
        for pair in _flatten(value, f"{path}.{key}".lstrip("."))
    ]
