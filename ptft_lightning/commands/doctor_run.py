"""The tiny run of `doctor`: generated text through both phases, in a process of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

SECONDS = 600  # on idle processors it takes half a minute
STEP = "step: "
# In one process: loading torch takes longer than all of them.
PROGRAM = f"""
import json, sys
from ptft_lightning.cli import main

for name, args in json.loads(sys.argv[1]).items():
    print("{STEP}" + name, flush=True)
    main(args)
"""
WORDS = {"water": ("river", "sea", "rain", "lake"), "land": ("hill", "field", "stone", "wood")}
OTHER = ("the", "a", "old", "new", "green", "under", "sees", "builds", "letter", "winter")
BACKBONE = {"dim": 32, "depth": 2, "heads": 2, "max_length": 32, "causal": True}


def two_phases(at: Path) -> str | None:
    """Which step failed, and what it said; None where all went well."""
    write_files(at)
    command = [sys.executable, "-c", PROGRAM, json.dumps(steps(at))]
    try:
        run = subprocess.run(
            command, env=alone(), capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if run.returncode:
        begun = [line for line in run.stdout.splitlines() if line.startswith(STEP)]
        name = begun[-1].removeprefix(STEP) if begun else "the start"
        said = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
        return f"{name}: {said[-1]}"
    lines = (at / "predictions.jsonl").read_text().splitlines()
    return None if len(lines) == 1 else f"predict: {len(lines)} predictions of one text"


def alone() -> dict[str, str]:
    """The environment without that of a launch, as torchrun's, which `doctor` was started by."""
    launcher = ("RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*launcher, "SLURM_"))}
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(p for p in (package, kept.get("PYTHONPATH")) if p)
    return {**kept, "WANDB_MODE": "disabled", "PYTHONPATH": path}


def write_files(at: Path) -> None:
    """A corpus and labelled examples."""
    rng, rows = random.Random(0), []
    for _ in range(200):
        label, named = rng.choice(list(WORDS.items()))
        text = rng.choices(OTHER, k=rng.randint(2, 8)) + rng.choices(named, k=3)
        rng.shuffle(text)
        rows.append({"text": " ".join(text), "label": label})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("corpus", "train"):
        (at / f"{name}.jsonl").write_text(lines)


def steps(at: Path) -> dict[str, list[str]]:
    """Name -> command line, in their order."""
    fit = [
        *("--trainer.max_steps", "5", "--trainer.log_every_n_steps", "1", "--report", "false"),
        *("--trainer.devices", "1", "--data.global_batch_size", "8"),
        *("--data.micro_batch_size", "8"),
    ]
    return {
        "tokenizer": [
            *("tokenizer", "--files", json.dumps([str(at / "corpus.jsonl")])),
            *("--vocab_size", "300", "--output", str(at / "tokenizer")),
        ],
        "pretrain": [
            *("fit", "--run_dir", str(at / "one"), "--model", "PretrainModule"),
            *("--model.objective", "CausalLM", "--model.backbone", json.dumps(BACKBONE)),
            *("--data", "CorpusDataModule", "--data.store", str(at / "store"), "--data.length"),
            *("32", "--data.files", json.dumps([str(at / "corpus.jsonl")])),
            *("--data.tokenizer", str(at / "tokenizer"), *fit),
        ],
        "fine-tune": [
            *("fit", "--run_dir", str(at / "two"), "--model", "FinetuneModule"),
            *("--model.task", "Classification", "--model.init_from", str(at / "one")),
            *("--data", "TaskDataModule", "--data.train", str(at / "train.jsonl")),
            *("--data.max_length", "32", *fit),
        ],
        "predict": [
            *("predict", "--run_dir", str(at / "two"), "--text", "the old river"),
            *("--output", str(at / "predictions.jsonl")),
        ],
    }
