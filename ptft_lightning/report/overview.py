"""The page's beginning and end: what came out, what went in, and texts the model wrote."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from ptft_lightning.report import page
from ptft_lightning.report.curves import bare, title_of
from ptft_lightning.report.drawing import number
from ptft_lightning.report.reading import Curve, Run

HEADLINES = ("loss", "bits_per_byte", "perplexity", "accuracy")  # phase one's
ROWS = 8  # of the samples of one prompt
PHASES = {"pretrain": "Phase one: pretraining", "finetune": "Phase two: fine-tuning"}


def class_name(run: Run, *keys: str) -> str:
    """Of a part that the config names by its class, such as the objective."""
    value = run.option(*keys)
    path = value.get("class_path", "") if isinstance(value, dict) else value or ""
    return str(path).rpartition(".")[2]


def subtitle(run: Run) -> str:
    """Phase, kind and how far the run is."""
    inner = ("model", "init_args")
    kind = class_name(run, *inner, "objective") or class_name(run, *inner, "task")
    most = run.option("trainer", "max_steps")
    of = f" of {most:,}" if isinstance(most, int) and most > 0 else ""
    done = f"{run.step:,}{of} steps"
    return " · ".join(part for part in (PHASES.get(run.phase, run.phase), kind, done) if part)


def best_step(run: Run) -> int | None:
    """The step whose model the run keeps, if it measured it."""
    step = run.lineage.get("steps")
    measured = {
        int(s) for name, c in run.curves.items() if name.startswith("val_") for s in c.steps
    }
    return step if step in measured else max(measured, default=None)


def results(run: Run) -> list[tuple[str, str, str]]:
    """Name, value and where it was measured: test first, then the kept model's validation."""
    found = [
        (title_of(name.removeprefix("test_")), number(value), "test")
        for name, value in run.test.items()
        if isinstance(value, int | float) and name != "test_perplexity"
    ]
    step = best_step(run)
    values = {
        bare(name): value
        for name, curve in run.curves.items()
        if name.startswith("val_") and step is not None and (value := curve.at(step)) is not None
    }
    order = [n for n in HEADLINES if n in values] if run.phase == "pretrain" else list(values)
    best = "best " if run.phase == "finetune" else ""
    found += [(title_of(n), number(values[n]), f"{best}val, step {step:,}") for n in order]
    if (bits := run.ngram.get("bits_per_byte")) is not None and order:
        order_of, tokens = run.ngram["order"], number(float(run.ngram["tokens"]))
        found.append((f"A {order_of}-gram's bits per byte", number(bits), f"of {tokens} tokens"))
    if not found and (curve := run.curves.get("train_loss")) is not None:
        found = [("Loss", number(curve.last), f"train, step {int(curve.steps[-1]):,}")]
    return found


def efforts(run: Run) -> list[tuple[str, str, str]]:
    """What it took: tokens, time, throughput."""
    found = []
    if (tokens := run.curves.get("tokens")) is not None:
        found.append(("Tokens", number(tokens.last), "trained on"))
    seconds = training_seconds(run.curves)
    if seconds is not None:
        found.append(("Training time", duration(seconds), "without val"))
        if tokens is not None and seconds > 0:
            found.append(("Throughput", number(tokens.last / seconds), "tokens/s"))
    if parameters := run.lineage.get("parameters"):
        found.append(("Model", number(float(parameters)), "parameters"))
    return found


def training_seconds(curves: dict[str, Curve]) -> float | None:
    """Seconds spent in steps, as far as they were logged."""
    curve = curves.get("seconds_per_step")
    if curve is None:
        return None
    before = [0.0, *curve.steps[:-1]]
    steps = [now - then for now, then in zip(curve.steps, before, strict=True)]
    return math.fsum(n * each for n, each in zip(steps, curve.values, strict=True))


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600, 1)
    return f"{minutes} min" if minutes < 100 else f"{hours:g} h"


def headline(run: Run) -> str:
    """The numbers that say how the run went."""
    return page.tiles(page.tile(*part) for part in [*results(run), *efforts(run)])


def warnings_of(run: Run) -> list[str]:
    """What was not readable, and what went wrong in the numbers."""
    lost = [
        f"{name} was not finite at {bad} of {len(curve.values)} steps, first at step {first:,}."
        for name, curve in run.curves.items()
        if (bad := sum(not math.isfinite(v) for v in curve.values))
        for first in [int(curve.steps[[math.isfinite(v) for v in curve.values].index(False)])]
    ]
    return [*run.troubles, *lost]


# What went in.


def facts(run: Run) -> str:
    """Model, data, training and lineage as small tables."""
    cards = [
        page.facts("Model", _model(run)),
        page.facts("Data", _data(run)),
        page.facts("Training", _training(run)),
        page.facts("Lineage", _lineage(run)),
    ]
    whole = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    return page.section(
        "Facts", page.stack(cards), page.folded("config.yaml", whole) if run.config else ""
    )


def _model(run: Run) -> Iterator[tuple[str, object]]:
    init = ("model", "init_args")
    given = run.option(*init, "backbone") or {}
    shape = run.bundle.get("backbone") or {"config": given.get("init_args", given)}
    size = shape.get("config") or {}
    yield "backbone", shape.get("kind")
    yield "width x depth", f"{size['dim']} x {size['depth']}" if "depth" in size else None
    yield "heads", size.get("heads")
    yield "direction", {True: "causal", False: "both"}.get(size.get("causal", ""))
    yield "longest text", f"{size['max_length']:,} tokens" if "max_length" in size else None
    yield "vocabulary", number(shape["vocab_size"]) if "vocab_size" in shape else None
    yield "parameters", number(run.lineage["parameters"]) if "parameters" in run.lineage else None
    yield "objective", _part(run.option(*init, "objective"))
    yield "task", _part(run.option(*init, "task"))
    yield "tuning", _part(run.option(*init, "tuning"))
    yield "labels", _few((run.bundle.get("head") or {}).get("labels") or [])


def _data(run: Run) -> Iterator[tuple[str, object]]:
    names = ("files", "store", "tokenizer", "train", "validation", "test", "layout", "length")
    for name in (*names, "max_length", "global_batch_size"):
        value = run.option("data", "init_args", name)
        yield name.replace("_", " "), _few(value) if isinstance(value, list) else value
    yield "samples taken", number(run.lineage["samples"]) if "samples" in run.lineage else None


def _training(run: Run) -> Iterator[tuple[str, object]]:
    for name, value in (run.option("model", "init_args", "optimizer") or {}).items():
        yield name.replace("_", " "), value
    for name in ("max_steps", "max_epochs", "precision", "accelerator", "devices", "strategy"):
        value = run.option("trainer", name)
        yield name.replace("_", " "), value if value != -1 else None
    yield "gradient clip", run.option("trainer", "gradient_clip_val")
    yield "seed", run.option("model", "init_args", "seed")


def _lineage(run: Run) -> Iterator[tuple[str, object]]:
    yield "started from", run.option("model", "init_args", "init_from")
    for parent in run.lineage.get("parents", []):
        yield "parent bundle", f"{parent.get('hash')} ({parent.get('phase')})"
        yield "parent's steps", parent.get("steps")
        yield "parent's tokens", number(parent["tokens"]) if "tokens" in parent else None
    for name, value in (run.lineage.get("data") or {}).items():
        yield f"data: {name.replace('_', ' ')}", value
    for name, value in (run.lineage.get("versions") or {}).items():
        yield name, value


def _part(value: Any) -> str:
    """A class and its settings."""
    if not isinstance(value, dict):
        return str(value or "").rpartition(".")[2]
    given = ", ".join(f"{k} {v}" for k, v in (value.get("init_args") or {}).items())
    name = str(value.get("class_path", "")).rpartition(".")[2]
    return f"{name} ({given})" if given else name


def _few(names: Sequence[Any]) -> str:
    shown = ", ".join(str(name) for name in names[:12])
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"


# Texts the model wrote.


def samples(run: Run) -> str:
    """How the model's answer to each prompt changed over the steps."""
    prompts: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for line in run.samples:
        key = (str(line.get("kind", "")), str(line["prompt"]))
        prompts.setdefault(key, []).append((int(line["step"]), str(line["text"])))
    if not prompts:
        return ""
    cards = [_prompt(prompt, sorted(set(texts))) for (_, prompt), texts in prompts.items()]
    return page.section("Samples over training", *cards)


def _prompt(prompt: str, texts: list[tuple[int, str]]) -> str:
    count = min(ROWS, len(texts))
    chosen = [texts[round(i * (len(texts) - 1) / max(count - 1, 1))] for i in range(count)]
    rows = "".join(
        f'<tr><td class="k n">step {step:,}</td>'
        f'<td class="t" dir="auto">{page.text(text)}</td></tr>'
        for step, text in chosen
    )
    left = f"<small>{count} of {len(texts)} steps shown</small>" if count < len(texts) else ""
    shown = page.text(prompt) or "(no prompt)"
    return (
        f'<div class="card sample"><p class="prompt" dir="auto">{shown}</p>'
        f"<table>{rows}</table>{left}</div>"
    )
