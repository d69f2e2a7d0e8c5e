"""Which way of pretraining is worth what? One small model of each kind, at equal tokens and at
equal FLOPs, tuned in several ways on the same tasks with the same budgets.

    python benchmarks/paradigms/run.py --data DATA --out runs/paradigms --steps 400 --tune_steps 100

That is meant for an hour on two idle cores, the default takes an hour and a half. `--data` is a
directory with en_wiki/, agnews_test/ and ud_ewt/. What is finished in `--out` is not made again. At
equal tokens every model takes `--steps` steps; at equal FLOPs as many as cost what the BERT-like
one's do, to within 1 %. Each way of tuning tries the same learning rates with seed 0 and keeps what
validates best; seeds are paired: all models see the same labelled examples. Neither pretraining
rates nor shapes are tuned. Writes results.jsonl, results.md and pareto.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from draw import draw, table
from flops import flops_per_row
from models import NO_ADAPTERS, REFERENCE, as_options, models

from ptft_lightning.cli import main
from ptft_lightning.data.tokenizer import Tokenizer

TOLERANCE = 0.01  # of equal FLOPs
COLUMNS = {"text": "text", "label": "label", "names": ["label", "title", "text"]}
TASKS: dict[str, dict[str, Any]] = {
    "topics": {
        "files": ("agnews_test/train.csv.gz", "agnews_test/train.csv.gz", "agnews_test/test.csv"),
        "options": {"model.task": "Classification", "data.columns": COLUMNS},
        "score": "accuracy",
    },
    "pos": {
        "files": ("ud_ewt/train.conllu.gz", "ud_ewt/dev.conllu.gz", "ud_ewt/test.conllu.gz"),
        "options": {
            "model.task": {"class_path": "Tagging", "init_args": {"monitor": "accuracy"}},
            "data.columns": {"label": "upos"},
            "data.unknown_labels": "skip",  # a rare one may not be among few sentences
        },
        "score": "accuracy",
    },
}
WAYS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "frozen": ({"class_path": "Frozen", "init_args": {"mix": True}}, (3e-3, 2e-2)),
    "full": ("Full", (5e-4, 2e-3)),
    "lora": ({"class_path": "LoRA", "init_args": {"targets": ["all"]}}, (1e-3, 5e-3)),
}
HELD = 500  # examples that validate

Job = tuple[str, dict[str, Any]]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--out", type=Path, required=True)
    add("--models", nargs="+", default=[])
    add("--tasks", nargs="+", default=["topics"], choices=TASKS)
    add("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    add("--steps", type=int, default=800, help="of pretraining, at equal tokens")
    add("--dim", type=int, default=128)
    add("--depth", type=int, default=3)
    add("--heads", type=int, default=4)
    add("--length", type=int, default=128)
    add("--batch", type=int, default=16)
    add("--vocab", type=int, default=4096)
    add("--optimizer", default="muon", choices=["adamw", "muon"], help="of pretraining")
    add("--lr", type=float, default=1e-2, help="of pretraining")
    add("--labels", type=int, default=1000)
    add("--tune_steps", type=int, default=150)
    add("--seeds", type=int, default=3)
    add("--test_examples", type=int, default=2000)
    add("--processes", type=int, default=os.cpu_count())
    add("--accelerator", default="cpu")
    add("--precision", default="32-true")
    return parser.parse_args()


def words(command: str, given: dict[str, Any]) -> list[str]:
    shown = {k: v if isinstance(v, str) else json.dumps(v) for k, v in given.items()}
    return [command, *(word for k, v in shown.items() for word in (f"--{k}", v))]


def call(command: str, given: dict[str, Any]) -> str:
    """Run a command of the program; what it wrote to standard output."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words(command, given))
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{words(command, given)}\n{err.getvalue()}") from end
    return out.getvalue()


def fit(job: Job) -> str:
    """In a process of its own: a fit, and for phase two its test; leaves `result.json`."""
    name, given = job
    run_dir = Path(given["run_dir"])
    began = time.process_time()
    call("fit", given)
    result: dict[str, Any] = {"seconds": time.process_time() - began}
    if given["model"] == "FinetuneModule":
        with open(run_dir / "metrics.csv", newline="") as stream:
            scores = [row.get("val_accuracy") for row in csv.DictReader(stream)]
        result["validation"] = max(float(score) for score in scores if score)
        asked = {k: given[k] for k in ("run_dir", "trainer.precision")}
        said = call("test", asked | {"overlap": False})  # it would read the corpus for each run
        result["test"] = json.loads(said)["test_accuracy"]
        shutil.rmtree(run_dir / "bundle")
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "result.json").write_text(json.dumps(result))
    return name


def do(jobs: list[Job], processes: int) -> None:
    """Those that are not done yet, side by side."""
    left = [job for job in jobs if not (Path(job[1]["run_dir"]) / "result.json").exists()]
    for _, given in left:
        shutil.rmtree(given["run_dir"], ignore_errors=True)
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, name in enumerate(pool.imap_unordered(fit, left), 1):
            spent = time.monotonic() - began
            rest = spent / done * (len(left) - done)
            print(f"{done}/{len(left)} {name}, {spent:.0f} s, {rest:.0f} s left", flush=True)


def units(file: Path) -> list[str]:
    """Lines, or blocks of lines in CoNLL-U."""
    opener: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as stream:
        text = stream.read()
    if ".conllu" in file.name:
        return [f"{block.strip()}\n\n" for block in text.split("\n\n") if block.strip()]
    return text.splitlines(keepends=True)


def write(file: Path, rows: list[str]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text("".join(rows), encoding="utf-8")
    return str(file)


def files(args: argparse.Namespace, task: str, seed: int) -> dict[str, str]:
    """The labelled examples of a seed: the same for all models."""
    train, validation, test = (units(args.data / file) for file in TASKS[task]["files"])
    random.Random(0).shuffle(train)
    held = train[:HELD] if TASKS[task]["files"][0] == TASKS[task]["files"][1] else validation[:HELD]
    some = random.Random(seed + 1).sample(train[HELD:], args.labels)
    tested = random.Random(0).sample(test, min(args.test_examples, len(test)))
    kind = ".conllu" if task == "pos" else ".csv"
    at = args.out / "labelled" / task
    return {
        "data.train": write(at / f"train-{seed}{kind}", some),
        "data.validation": write(at / f"validation{kind}", held),
        "data.test": write(at / f"test{kind}", tested),
    }


def common(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "trainer.accelerator": args.accelerator,
        "trainer.precision": args.precision,
        "report": False,
        "samples.count": 0,
    }


def pretraining(args: argparse.Namespace) -> tuple[list[Job], dict[str, dict[str, Any]]]:
    """The fits of phase one, and what is known of each: model, budget, steps, FLOPs."""
    corpus = [str(args.data / "en_wiki" / "train.jsonl.gz")]
    tokenizer, store = args.out / "tokenizer", args.out / "store"
    if not (tokenizer / "tokenizer.json").exists():
        given = {"kind": "wordpiece", "vocab_size": args.vocab, "max_mb": 20}
        call("tokenizer", given | {"files": corpus, "output": str(tokenizer)})
    if not (store / "manifest.json").exists():
        given = {"files": corpus, "tokenizer": str(tokenizer), "output": str(store)}
        call("prepare", given | {"unit_bytes": 2**20})
    kinds = models(args.dim, args.depth, args.heads, args.length)
    loaded = Tokenizer.load(tokenizer)
    cost = {n: flops_per_row(*kind, loaded, args.length) * args.batch for n, kind in kinds.items()}
    budget = cost[REFERENCE] * args.steps
    jobs, known = [], {}
    for model in args.models or kinds:
        for equal in ("tokens", "flops"):
            steps = args.steps if equal == "tokens" else round(budget / cost[model])
            name = f"{equal}-{model}"
            if equal == "flops" and model == REFERENCE:
                continue  # it is the same run
            if equal == "flops" and abs(steps * cost[model] / budget - 1) > TOLERANCE:
                sys.exit(f"{model}: {steps} steps miss the FLOPs by over 1 %: give more --steps")
            facts = {"model": model, "equal": equal, "steps": steps}
            known[name] = facts | {"flops": steps * cost[model]}
            given = {
                "run_dir": str(args.out / "pretrain" / name),
                "model": "PretrainModule",
                **as_options(*kinds[model]),
                "model.optimizer": {"kind": args.optimizer, "lr": args.lr},
                "data": "CorpusDataModule",
                "data.store": str(store),
                "data.tokenizer": str(tokenizer),
                "data.length": args.length,
                "data.global_batch_size": args.batch,
                "data.micro_batch_size": args.batch,
                "trainer.max_steps": steps,
                "trainer.val_check_interval": steps,
                "trainer.limit_val_batches": 20,
                "spikes.max_skips": 0,
            }
            jobs.append((f"pretrain {name}", given | common(args)))
    return jobs, known


def tuning(
    args: argparse.Namespace, start: str, task: str, way: str, rate: float, seed: int
) -> Job:
    """A fit of phase two; `scratch` starts from the reference's shape alone."""
    scratch = start == "scratch"
    base = args.out / "pretrain" / (f"tokens-{REFERENCE}" if scratch else start)
    given = {
        "run_dir": str(args.out / "tune" / start / f"{task}-{way}-{rate:g}-{seed}"),
        "model": "FinetuneModule",
        "model.init_from": str(base / "bundle"),
        "model.from_scratch": scratch,
        "model.tuning": WAYS[way][0],
        "model.optimizer.lr": rate,
        "model.seed": seed,
        "data": "TaskDataModule",
        **TASKS[task]["options"],
        **files(args, task, seed),
        "data.max_length": 64,
        "data.global_batch_size": 32,
        "data.micro_batch_size": 32,
        "data.seed": seed,
        "trainer.max_steps": args.tune_steps,
        "trainer.val_check_interval": max(1, args.tune_steps // 3),
    }
    return f"{start} {task} {way} {rate:g} seed {seed}", given | common(args)


def result(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(job[1]["run_dir"]) / "result.json").read_text())
    return found


def validated(job: Job) -> float:
    return float(result(job)["validation"])


def combinations(args: argparse.Namespace, known: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for task in args.tasks:
        yield "scratch", task, "full"
        for start, facts in known.items():
            for way in args.ways:
                if way != "lora" or facts["model"] not in NO_ADAPTERS:
                    yield start, task, way


def run() -> None:
    args = options()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    began = time.monotonic()
    jobs, known = pretraining(args)
    do(jobs, args.processes)
    each = list(combinations(args, known))
    tries = {c: {rate: tuning(args, *c, rate, 0) for rate in WAYS[c[2]][1]} for c in each}
    do([job for rates in tries.values() for job in rates.values()], args.processes)
    best = {c: max(rates, key=lambda r: validated(rates[r])) for c, rates in tries.items()}
    seeds = {c: [tuning(args, *c, best[c], seed) for seed in range(args.seeds)] for c in each}
    do([job for kept in seeds.values() for job in kept], args.processes)
    lines = []
    for (start, task, way), kept in seeds.items():
        facts = known.get(start, {"model": "scratch", "equal": "tokens", "steps": 0, "flops": 0.0})
        scores = [result(job)["test"] for job in kept]
        rate = best[start, task, way]
        lines.append({**facts, "task": task, "way": way, "rate": rate, "scores": scores})
    (args.out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (args.out / "results.md").write_text(table(lines))
    draw(lines, args.out / "pareto.svg")
    print(table(lines))
    print(f"{time.monotonic() - began:.0f} s; {args.out / 'pareto.svg'}", file=sys.stderr)


if __name__ == "__main__":
    run()
