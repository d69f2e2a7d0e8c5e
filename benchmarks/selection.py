"""Is text that `select` chooses worth more than as much random text?

From English Wikipedia, what is most like answers of MedQuAD (and, for comparison, random documents
of as many bytes): a causal model is pretrained on each, its loss on held-out answers measured, and
then fine-tuned to tell the type of a question from its answer (--read question: from itself, which
is easy), all of it or (--tuning frozen) what stands on its hidden states. Everything else alike;
seeds are paired. Prints a table in markdown with the paired differences and their 95 % intervals.

    python benchmarks/selection.py --data DATA --out runs/selection

`--data` is a directory with en_wiki/ and medquad/. What is finished in `--out` is not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path
from typing import Any

from adaptation import call, read, some, write

from ptft_lightning.report.intervals import mean

ROOT = Path(__file__).parent.parent
POOL = "en_wiki/train.jsonl.gz"
TARGET = ("medquad/train.jsonl.gz", "medquad/valid.jsonl.gz")
HELD = 200  # questions that validate
TUNING: dict[str, dict[str, Any]] = {
    "full": {},
    "frozen": {
        "model__tuning": {"class_path": "Frozen", "init_args": {"mix": True, "cache": True}},
        "model__optimizer__lr": 2e-2,
    },
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--out", type=Path, required=True)
    add("--methods", nargs="+", default=["random", "moore_lewis"], help="the first is compared to")
    add("--share", type=float, default=0.1, help="of the bytes of Wikipedia")
    add("--target_answers", type=int, default=4000, help="that selection sees")
    add("--vocab", type=int, default=8192)
    add("--steps", type=int, default=600, help="of pretraining, 16 rows of 128 tokens each")
    add("--read", choices=["question", "answer"], default="answer", help="to tell the type")
    add("--tuning", choices=TUNING, default="full")
    add("--labels", type=int, default=300)
    add("--tune_steps", type=int, default=120)
    add("--test_examples", type=int, default=1500)
    add("--seeds", type=int, default=3)
    add("--precision", default="32-true")
    return parser.parse_args()


def write_target(args: argparse.Namespace) -> None:
    """Answers to be like, answers to measure on, questions with their types."""
    train, held = (read(args.data / file) for file in TARGET)
    seen = some(train, args.target_answers, 0)
    write(args.out / "like.jsonl", [{"text": row["answer"]} for row in seen])
    write(args.out / "held.jsonl", [{"text": row["answer"]} for row in held])
    kind = args.read
    asked = [{"text": row[kind], "label": row["qtype"]} for row in some(train, len(train), 0)]
    write(args.out / f"validation-{kind}.jsonl", asked[:HELD])
    for seed in range(args.seeds):
        chosen = some(asked[HELD:], args.labels, seed)
        write(args.out / f"train-{kind}-{args.labels}-{seed}.jsonl", chosen)
    test = [{"text": row[kind], "label": row["qtype"]} for row in held]
    write(args.out / f"test-{kind}.jsonl", some(test, args.test_examples, 0))


def prepared(args: argparse.Namespace, name: str, **given: Any) -> str:
    """A token store of a .jsonl file."""
    store = args.out / "stores" / name
    if not (store / "manifest.json").exists():
        files = [str(args.out / f"{name}.jsonl")]
        call(
            "prepare",
            files=files,
            tokenizer=str(args.out / "tokenizer"),
            output=str(store),
            **given,
        )
    return str(store)


def selected(args: argparse.Namespace, method: str, seed: int) -> str:
    """The token store of what a method takes from Wikipedia."""
    name = f"{method}-{seed}"
    file = args.out / f"{name}.jsonl"
    if not file.exists():
        target = {} if method == "random" else {"target": [str(args.out / "like.jsonl")]}
        call(
            "select",
            files=[str(args.data / POOL)],
            tokenizer=str(args.out / "tokenizer"),
            output=str(file),
            method=method,
            share=args.share,
            seed=seed,
            **target,
        )
    return prepared(args, name)


def fit(args: argparse.Namespace, method: str, seed: int) -> tuple[float, float]:
    """Loss on held-out answers after pretraining, accuracy after fine-tuning."""
    at = args.out / "runs" / f"{method}-{seed}"
    store = selected(args, method, seed)
    if not (at / "pretrain" / "bundle").is_dir():
        call(
            "fit",
            config=str(ROOT / "configs" / "quickstart" / "pretrain.yaml"),
            run_dir=str(at / "pretrain"),
            model__seed=seed,
            data__files=[],
            data__store=store,
            data__tokenizer=str(args.out / "tokenizer"),
            data__validation_stores={"target": prepared(args, "held", validation_share=0.9)},
            data__seed=seed,
            trainer__max_steps=args.steps,
            trainer__val_check_interval=args.steps,
            trainer__limit_val_batches=50,
            trainer__precision=args.precision,
            report=False,
            samples__count=0,
        )
    kind, part = args.read, f"{args.read}-{args.labels}"
    tune = at / f"tune-{part}-{args.tuning}"
    if not (tune / "test.json").is_file():
        files = {
            "train": f"train-{part}-{seed}",
            "validation": f"validation-{kind}",
            "test": f"test-{kind}",
        }
        call(
            "fit",
            config=str(ROOT / "configs" / "quickstart" / "finetune.yaml"),
            run_dir=str(tune),
            model__init_from=str(at / "pretrain"),
            model__seed=seed,
            data__seed=seed,
            data__unknown_labels="skip",
            **{f"data__{split}": str(args.out / f"{file}.jsonl") for split, file in files.items()},
            trainer__max_steps=args.tune_steps,
            trainer__precision=args.precision,
            report=False,
            **TUNING[args.tuning],
        )
        call("test", run_dir=str(tune), overlap=False)
    with open(at / "pretrain" / "metrics.csv", newline="") as stream:
        losses = [row["val_target_loss"] for row in csv.DictReader(stream)]
    scores = json.loads((tune / "test.json").read_text())
    return float([loss for loss in losses if loss][-1]), float(scores["test_accuracy"])


def table(methods: list[str], found: dict[str, list[tuple[float, float]]]) -> str:
    """Markdown: a row per method, differences from the first."""
    lines = ["| text | loss on the target | difference | accuracy | difference |"]
    lines.append("|---|---|---|---|---|")
    for method in methods:
        cells = [method]
        for measure in range(2):
            values = [scores[measure] for scores in found[method]]
            base = [scores[measure] for scores in found[methods[0]]]
            gain = mean([a - b for a, b in zip(values, base, strict=True)])
            shown = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
            cells += [" ".join(f"{value:.3f}" for value in values)]
            cells += ["" if method == methods[0] else shown]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run() -> None:
    args = options()
    os.environ |= {"WANDB_MODE": "disabled"}
    args.out.mkdir(parents=True, exist_ok=True)
    write_target(args)
    if not (args.out / "tokenizer" / "tokenizer.json").exists():
        pool, place = [str(args.data / POOL)], str(args.out / "tokenizer")
        call("tokenizer", files=pool, vocab_size=args.vocab, max_mb=20, output=place)
    found: dict[str, list[tuple[float, float]]] = {method: [] for method in args.methods}
    for seed in range(args.seeds):
        for method in args.methods:
            found[method].append(fit(args, method, seed))
            print(method, seed, *(f"{score:.3f}" for score in found[method][-1]), flush=True)
    print(table(args.methods, found))


if __name__ == "__main__":
    run()
