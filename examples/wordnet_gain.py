"""What was pretraining worth? The quickstart's task from the bundle, from scratch, bag of words.

For each seed (other training rows, other head, other order): fine-tune from the bundle; train the
same model from scratch for three times the epochs; fit a bag of words. Prints accuracy on the same
test definitions. Every number printed is measured by this script.

    python examples/wordnet_gain.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import time
from pathlib import Path

from bag_of_words import bag_of_words
from wordnet import find_wordnet, write_data

from ptft_lightning.cli import main

CONFIG = "configs/quickstart/finetune.yaml"
WAYS = ("from scratch, 3x epochs", "bag of words", "from the bundle")


def tuned_accuracy(data: Path, run: Path, seed: int, epochs: int, options: list[str]) -> float:
    """Fine-tune with the quickstart's config and return the accuracy on the test file."""
    files = [
        *("--config", CONFIG, "--run_dir", str(run)),
        *("--data.train", str(data / "train.jsonl")),
        *("--data.validation", str(data / "validation.jsonl")),
        *("--data.test", str(data / "test.jsonl")),
    ]
    seeds = ["--model.seed", str(seed), "--data.seed", str(seed)]
    main(
        [
            "fit",
            *files,
            *seeds,
            "--trainer.max_epochs",
            str(epochs),
            "--trainer.logger",
            "false",
            *options,
        ]
    )
    main(["test", *files])
    result: dict[str, float] = json.loads((run / "test.json").read_text())
    return result["test_accuracy"]


def one_seed(seed: int, output: Path, labels: int, epochs: int, options: list[str]) -> list[float]:
    """Accuracy of each way, in the order of WAYS."""
    data = output / f"data-{seed}"
    write_data(find_wordnet(), data, labels, seed, lemmas=False)
    scratch = [*options, "--model.from_scratch", "true"]
    return [
        tuned_accuracy(data, output / f"scratch-{seed}", seed, 3 * epochs, scratch),
        bag_of_words(data / "train.jsonl", data / "test.jsonl", data / "validation.jsonl"),
        tuned_accuracy(data, output / f"bundle-{seed}", seed, epochs, options),
    ]


def compare() -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart/gain"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=10, help="of fine-tuning from the bundle")
    arguments, options = parser.parse_known_args()
    shutil.rmtree(arguments.output, ignore_errors=True)
    arguments.output.mkdir(parents=True)
    log = arguments.output / "log.txt"
    rows = []
    for seed in range(arguments.seeds):
        began = time.monotonic()
        try:
            with (
                open(log, "a") as stream,
                contextlib.redirect_stderr(stream),
                contextlib.redirect_stdout(stream),
            ):
                rows.append(
                    one_seed(seed, arguments.output, arguments.labels, arguments.epochs, options)
                )
        except BaseException:
            print(f"failed at seed {seed}: see {log}", flush=True)
            raise
        shown = ", ".join(f"{way} {score:.3f}" for way, score in zip(WAYS, rows[-1], strict=True))
        print(f"seed {seed}: {shown} ({time.monotonic() - began:.0f} s)", flush=True)
    for way, scores in zip(WAYS, zip(*rows, strict=True), strict=True):
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        mean = statistics.mean(scores)
        print(f"{way:24} accuracy {mean:.3f} +- {spread:.3f} over {len(scores)} seeds")
    print(f"smallest gain of pretraining over scratch: {min(row[2] - row[0] for row in rows):.3f}")


if __name__ == "__main__":
    compare()
