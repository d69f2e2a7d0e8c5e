"""What going on with pretraining on text of the domain is worth, and what it costs.

From one base model: masked LM on unlabelled text of the domain (with a share of general text), then
fine-tuning from the adapted and from the unadapted model, at several numbers of labels and seeds,
everything else alike. Prints a table in markdown: mean and standard deviation over the seeds, the
held-out loss on the domain and on general text before and after.

    python benchmarks/adaptation.py --data DATA --base all-minilm --task imdb --out runs/adaptation

`--data` is a directory with imdb/, imdb_unsup/, medquad/ and en_wiki/ as .jsonl.gz files. `--base`
is a bundle, a run or a Hugging Face folder. Runs that are finished in `--out` are not made again,
so that a longer call goes on with a shorter one's.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import random
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ptft_lightning.cli import main
from ptft_lightning.commands.extend import tokenizer_of

TASKS: dict[str, dict[str, str]] = {
    "imdb": {
        **{"domain": "imdb_unsup/unsup.jsonl.gz", "column": "text"},
        **{"train": "imdb/train.jsonl.gz", "test": "imdb/test.jsonl.gz"},
        **{"text": "text", "label": "label"},
    },
    "medquad": {
        **{"domain": "medquad/train.jsonl.gz", "column": "answer"},
        **{"train": "medquad/train.jsonl.gz", "test": "medquad/valid.jsonl.gz"},
        **{"text": "question", "label": "qtype"},
    },
}
GENERAL = "en_wiki/train.jsonl.gz"
MEASURE = "test_accuracy"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", required=True, help="bundle, run or Hugging Face folder")
    parser.add_argument("--task", choices=TASKS, default="imdb")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--domain_documents", type=int, default=20000)
    parser.add_argument("--general_documents", type=int, default=4000)
    parser.add_argument("--replay", type=float, default=0.2, help="share of general rows; 0: none")
    parser.add_argument("--add", type=int, default=0, help="new tokens learnt on the domain")
    parser.add_argument("--steps", type=int, default=1500, help="of continued pretraining")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tune_steps", type=int, default=150, help="of each fine-tuning")
    parser.add_argument("--tune_lr", type=float, default=2e-4)
    parser.add_argument("--test_examples", type=int, default=2000)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--precision", default="32-true")
    return parser.parse_args()


def read(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")
    return file


def call(command: str, **given: Any) -> tuple[str, str]:
    """Run a command of the program; what it wrote to standard output and error."""
    words = [command]
    for name, value in given.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += [f"--{name.replace('__', '.')}", text]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{' '.join(words)}\n{err.getvalue()}") from end
    return out.getvalue(), err.getvalue()


def some(rows: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    return random.Random(seed).sample(rows, min(count, len(rows)))


def prepare(args: argparse.Namespace, task: dict[str, str]) -> dict[str, Path]:
    """The domain's and the general store, under the base's tokenizer or an extended one."""
    files = {
        "domain": (task["domain"], task["column"], args.domain_documents),
        "general": (GENERAL, "text", args.general_documents),
    }
    at = {"tokenizer": args.out / "base_tokenizer"}
    tokenizer_of(args.base).save(at["tokenizer"])
    for name, (file, column, count) in files.items():
        place = args.out / f"{name}.jsonl"
        if not place.exists():
            rows = [{"text": row[column]} for row in some(read(args.data / file), count, 0)]
            write(place, rows)
    if args.add:
        at["tokenizer"] = args.out / "tokenizer"
        if not at["tokenizer"].exists():
            given = {"init_from": args.base, "files": [str(args.out / "domain.jsonl")]}
            out, _ = call("extend", **given, add=args.add, output=str(at["tokenizer"]))
            print(out)
    for name in files:
        at[name] = args.out / f"store_{name}"
        if not (at[name] / "manifest.json").exists():
            given = {"files": [str(args.out / f"{name}.jsonl")], "output": str(at[name])}
            call("prepare", **given, tokenizer=str(at["tokenizer"]), validation_share=0.05)
    return at


def adapt(args: argparse.Namespace, at: dict[str, Path]) -> list[str]:
    """Go on with pretraining; the lines about losses before and after."""
    run_dir, said = args.out / "adapted", args.out / "adapted.txt"
    if not (run_dir / "bundle").is_dir():
        _, err = call(
            "fit",
            run_dir=str(run_dir),
            model="PretrainModule",
            model__objective="MaskedLM",
            model__init_from=args.base,
            model__optimizer={"lr": args.lr, "warmup": 0.06, "schedule": "linear", "final": 0.0},
            data="CorpusDataModule",
            data__store=str(at["domain"]),
            data__tokenizer=str(at["tokenizer"]),
            data__length=args.length,
            data__global_batch_size=args.batch,
            data__micro_batch_size=args.batch,
            data__validation_stores={"general": str(at["general"])},
            **({"data__replay": {str(at["general"]): args.replay}} if args.replay else {}),
            trainer=trainer(args, args.steps) | {"limit_val_batches": 20},
            report=False,
            samples__count=0,
        )
        lines = [
            line for line in err.splitlines() if re.match(r"loss on |inherited: no head", line)
        ]
        said.write_text("\n".join(lines) + "\n")
    return said.read_text().splitlines()


def trainer(args: argparse.Namespace, steps: int) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "val_check_interval": steps,
        "accelerator": args.accelerator,
        "precision": args.precision,
        "enable_progress_bar": False,
    }


def tune(args: argparse.Namespace, start: str, name: str, labels: int, seed: int) -> float:
    """Fine-tune from a start on some labels; accuracy on the test examples."""
    run_dir = args.out / f"{name}-{labels}-{seed}"
    if not (run_dir / "test.json").is_file():
        call(
            "fit",
            run_dir=str(run_dir),
            model="FinetuneModule",
            model__task="Classification",
            model__init_from=start,
            model__seed=seed,
            model__optimizer={"lr": args.tune_lr, "warmup": 0.1, "schedule": "linear"},
            data="TaskDataModule",
            data__train=str(args.out / f"train-{labels}-{seed}.jsonl"),
            data__validation=str(args.out / "validation.jsonl"),
            data__test=str(args.out / "test.jsonl"),
            data__unknown_labels="skip",
            data__max_length=args.length,
            data__global_batch_size=args.batch,
            data__micro_batch_size=args.batch,
            data__seed=seed,
            trainer=trainer(args, args.tune_steps),
            report=False,
        )
        call("test", run_dir=str(run_dir), overlap=False)
    return float(json.loads((run_dir / "test.json").read_text())[MEASURE])


def write_task(args: argparse.Namespace, task: dict[str, str]) -> None:
    """Training sets of every size and seed, and one validation and test set."""

    def rows(file: str) -> list[dict[str, Any]]:
        return [
            {"text": r[task["text"]], "label": str(r[task["label"]])}
            for r in read(args.data / file)
        ]

    train = rows(task["train"])
    random.Random(0).shuffle(train)
    write(args.out / "validation.jsonl", train[:200])
    write(args.out / "test.jsonl", some(rows(task["test"]), args.test_examples, 0))
    for seed in range(args.seeds):
        for labels in args.labels:
            write(args.out / f"train-{labels}-{seed}.jsonl", some(train[200:], labels, seed))


def table(args: argparse.Namespace, scores: dict[tuple[str, int], list[float]]) -> str:
    """Markdown: a row per number of labels."""
    lines = ["| labels | from the base | adapted first | difference |", "|---|---|---|---|"]
    for labels in args.labels:
        base, adapted = scores["base", labels], scores["adapted", labels]
        paired = [b - a for a, b in zip(base, adapted, strict=True)]
        lines.append(f"| {labels} | {shown(base)} | {shown(adapted)} | {shown(paired)} |")
    return "\n".join(lines)


def shown(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"


def run() -> None:
    args = options()
    began, cpu = time.perf_counter(), time.process_time()
    task = TASKS[args.task]
    args.out.mkdir(parents=True, exist_ok=True)
    write_task(args, task)
    losses = adapt(args, prepare(args, task))
    scores: dict[tuple[str, int], list[float]] = {}
    for labels in args.labels:
        for name, start in (("base", args.base), ("adapted", str(args.out / "adapted"))):
            seeds = range(args.seeds)
            scores[name, labels] = [tune(args, start, name, labels, seed) for seed in seeds]
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{args.task}: accuracy in %, {args.seeds} seeds, {args.test_examples} texts; {where}")
    print(table(args, scores))
    print("\n".join(losses))
    minutes = (time.perf_counter() - began) / 60, (time.process_time() - cpu) / 60
    print(f"{minutes[0]:.1f} minutes, {minutes[1]:.1f} of CPU")


if __name__ == "__main__":
    run()
