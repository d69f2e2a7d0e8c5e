r"""A row of tasks.py by Hugging Face's Trainer: the same checkpoint, examples, epochs, batch, rate
and schedule, over the same seeds; then both side by side, with the paired difference's interval.

    python benchmarks/tasks.py --data DATA --out runs/tasks --start minilm=FOLDER --seeds 5 pos
    python benchmarks/hf_tuning.py --row runs/tasks/pos/minilm --model FOLDER \
        --labels 1500 --seeds 5

Rows of `Tagging` without a CRF (a word's first token bears its tag) and of `Classification`. Both
keep the epoch that is best on the validation file.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import transformers as hf
import yaml
from baselines import read_all

from ptft_lightning.data.sample_order import keyed_permutation
from ptft_lightning.modules.optimizers import OptimizerConfig
from ptft_lightning.report.intervals import mean
from ptft_lightning.terms import IGNORE


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", type=Path, required=True, help="the row's folder of tasks.py")
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--labels", type=int, required=True, help="training examples")
    parser.add_argument("--seeds", type=int, default=5)
    return parser.parse_args()


class Task:
    """Examples -> what the Trainer takes, and its measure."""

    def __init__(self, words: bool, kinds: list[str], tokenizer: Any, length: int) -> None:
        self.words, self.kinds, self.tokenizer, self.length = words, kinds, tokenizer, length

    def encode(self, examples: list[Any]) -> list[dict[str, Any]]:
        given = {"truncation": True, "max_length": self.length}
        if not self.words:
            rows = self.tokenizer([e.text for e in examples], **given)["input_ids"]
            labels: list[Any] = [self.kinds.index(str(e.label)) for e in examples]
        else:
            found = self.tokenizer([e.tokens for e in examples], is_split_into_words=True, **given)
            rows = found["input_ids"]
            labels = [self.tags(e, found.word_ids(i)) for i, e in enumerate(examples)]
        return [{"input_ids": r, "labels": t} for r, t in zip(rows, labels, strict=True)]

    def tags(self, example: Any, words: list[int | None]) -> list[int]:
        first = [w is not None and w not in words[:i] for i, w in enumerate(words)]
        return [
            self.kinds.index(example.labels[w]) if f else IGNORE
            for w, f in zip(words, first, strict=True)
        ]

    def accuracy(self, predictions: Any) -> dict[str, float]:
        said, gold = predictions.predictions.argmax(-1), predictions.label_ids
        return {"accuracy": float((said == gold)[gold != IGNORE].mean())}

    def model(self, path: str) -> Any:
        kind = (
            hf.AutoModelForTokenClassification
            if self.words
            else hf.AutoModelForSequenceClassification
        )
        return kind.from_pretrained(path, num_labels=len(self.kinds))

    def collator(self) -> Any:
        kind = hf.DataCollatorForTokenClassification if self.words else hf.DataCollatorWithPadding
        return kind(self.tokenizer)


def tune(
    config: dict[str, Any], args: argparse.Namespace, task: Task, parts: Any, seed: int
) -> tuple[float, float]:
    """Accuracy on the test file, and minutes."""
    train, validation, test = parts
    order = keyed_permutation(np.arange(args.labels), len(train), (seed, "train_examples"))
    optimizer = OptimizerConfig(**config["model"]["init_args"]["optimizer"])
    assert (optimizer.schedule, optimizer.final) == ("linear", 0)
    epochs = config["trainer"]["max_epochs"]
    batch = config["data"]["init_args"].get("global_batch_size", 32)
    hf.set_seed(seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        settings = hf.TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=64,
            learning_rate=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            adam_beta1=optimizer.betas[0],
            adam_beta2=optimizer.betas[1],
            adam_epsilon=optimizer.eps,
            warmup_steps=round(optimizer.warmup * epochs * args.labels / batch),
            lr_scheduler_type="linear",
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            max_grad_norm=1.0,
            train_sampling_strategy="group_by_length",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            seed=seed,
            remove_unused_columns=False,
        )
        trainer = hf.Trainer(
            model=task.model(args.model),
            args=settings,
            train_dataset=task.encode([train[i] for i in order.tolist()]),
            eval_dataset=task.encode(validation),
            data_collator=task.collator(),
            compute_metrics=task.accuracy,
        )
        trainer.train()
        minutes = (time.perf_counter() - began) / 60
        found = trainer.predict(task.encode(test)).metrics["test_accuracy"]
    return float(found), minutes


def ours(row: Path) -> dict[int, float]:
    with open(row / "transfer" / "transfer.csv") as file:
        return {int(line["seed"]): float(line["value"]) for line in csv.DictReader(file)}


def run() -> None:
    args = options()
    # The config with all defaults, which a run of ours has kept.
    config = yaml.safe_load(next(args.row.glob("transfer/runs/*/config.yaml")).read_text())
    parts = [read_all(config, kind) for kind in ("train", "validation", "test")]
    words = hasattr(parts[0][0], "words")
    tags = (t for e in parts[0] for t in (e.labels if words else [str(e.label)]))
    tokenizer = hf.AutoTokenizer.from_pretrained(args.model)
    length = config["data"]["init_args"]["max_length"]
    task = Task(words, sorted(set(tags)), tokenizer, length)
    kept = args.row / "hf.json"
    theirs = json.loads(kept.read_text()) if kept.is_file() else {}
    for seed in range(args.seeds):
        if str(seed) not in theirs:
            theirs[str(seed)] = tune(config, args, task, parts, seed)
            kept.write_text(json.dumps(theirs))
            print(f"seed {seed}: {theirs[str(seed)]}", file=sys.stderr)
    mine = ours(args.row)
    pairs = [(mine[s], theirs[str(s)][0]) for s in range(args.seeds) if s in mine]
    difference = mean([a - b for a, b in pairs])
    print(
        f"ours {', '.join(f'{a:.4f}' for a, _ in pairs)}: {mean([a for a, _ in pairs]).value:.4f}"
    )
    print(f"HF {', '.join(f'{b:.4f}' for _, b in pairs)}: {mean([b for _, b in pairs]).value:.4f}")
    print(f"difference {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]")
    print(f"HF minutes: {statistics.median(m for _, m in theirs.values()):.1f}")


if __name__ == "__main__":
    run()
