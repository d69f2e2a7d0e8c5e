"""The command line as the tests of whole journeys use it: options in; exit code, words, files out.

Models are tiny (width 32, 2 layers, 32 tokens), with dropout, and batches that nothing divides.
Reports are drawn only where a test asks for one.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from ptft_lightning.cli import main

TESTS = Path(__file__).parent.parent
ENVIRONMENT = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
BACKBONE = {"dim": 32, "depth": 2, "heads": 2, "max_length": 32, "dropout": 0.1}
WATER = ("river", "sea", "rain", "lake")
LAND = ("hill", "field", "stone", "wood")
OTHER = ("the", "a", "old", "new", "green", "under", "sees", "builds", "letter", "winter")
CLOCKS = ("tokens_per_s", "seconds_per_step", "data_stall", "save_seconds")


@dataclass
class Run:
    """What a command left: its exit code and what it said."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def words(command: str, options: dict[str, Any]) -> list[str]:
    """A command line; an option of None is left out."""
    given = [command]
    for name, value in options.items():
        if value is not None:
            given += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return given


def call(args: list[str], **environment: str) -> Run:
    """Run a command in this process, on one thread."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with (
        mock.patch.dict(os.environ, {**ENVIRONMENT, **environment}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main([str(arg) for arg in args])
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            torch.set_num_threads(threads)
    return Run(code, out.getvalue(), err.getvalue())


def done(args: list[str], **environment: str) -> Run:
    """Run a command in this process; it must succeed."""
    run = call(args, **environment)
    assert run.code == 0, run.err
    return run


def launch(args: list[str], **environment: str | None) -> subprocess.Popen[str]:
    """Start `python -m ptft_lightning` as a process, the leader of its group."""
    path = os.pathsep.join(p for p in (str(TESTS), os.environ.get("PYTHONPATH")) if p)
    merged = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path, **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "ptft_lightning", *map(str, args)],
        env={k: v for k, v in merged.items() if v is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background, SIGINT is ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> Run:
    """Wait for a process; one that hangs is killed with its group, and fails the test."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"hung: {' '.join(map(str, process.args))}\n{out}\n{err}") from None
    return Run(process.returncode, out, err)


def has_lines(process: subprocess.Popen[str], file: Path, count: int) -> bool:
    """Whether a file that a process writes has `count` lines yet."""
    if process.poll() is not None:
        raise AssertionError(f"ended too early: {finish(process).err}")
    return file.is_file() and file.read_bytes().count(b"\n") >= count


def wait_for_lines(process: subprocess.Popen[str], file: Path, count: int) -> None:
    """Until a file that a process writes has `count` lines."""
    while not has_lines(process, file, count):
        time.sleep(0.001)


def kill_at(runs: list[tuple[list[str], Path, int]]) -> None:
    """Start several runs at once; SIGKILL each with its workers when it has done so many steps."""
    alive = [(launch(args), audit, step) for args, audit, step in runs]
    while alive:
        for process, audit, step in list(alive):
            if has_lines(process, audit, step):
                os.killpg(process.pid, signal.SIGKILL)
                assert finish(process).code == -signal.SIGKILL
                alive.remove((process, audit, step))
        time.sleep(0.001)


def child_of(process: subprocess.Popen[str]) -> int:
    """The process id of a run's other rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


class Terminate(Callback):
    """SIGTERM to this process in the middle of an optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class CrashInValidation(Callback):
    """An exception nobody foresaw, when the validation after a step begins."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("the machine burns")


class CheckAudit(Callback):
    """At every save, the audit knows every step that the checkpoint knows."""

    def __init__(self, audit: str) -> None:
        self.audit = Path(audit)

    def on_save_checkpoint(self, trainer: Any, *args: Any) -> None:
        assert len(self.audit.read_text().splitlines()) == trainer.global_step


class KeepScores(Callback):
    """Write, at each validation of a fit, the probabilities that the fit itself computes."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self.scores: dict[int, list[float]] = {}

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_):
        probabilities = pl_module.net(batch).scores.softmax(-1)
        for number, row in zip(batch.samples.tolist(), probabilities.tolist(), strict=True):
            if number >= 0:
                self.scores[number] = row

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        rows = [self.scores[number] for number in sorted(self.scores)]
        (self.directory / f"scores-{trainer.global_step}.json").write_text(json.dumps(rows))


# Options of tiny runs.


def pretrain(run_dir: Path, store: Path, tokenizer: Path, **more: Any) -> dict[str, Any]:
    """Phase one; `more` has __ for the dots."""
    causal = more.pop("causal", True)
    options: dict[str, Any] = {
        "run_dir": str(run_dir),
        "model": "PretrainModule",
        "model.objective": "CausalLM" if causal else "MaskedLM",
        "model.backbone": {**BACKBONE, "causal": causal},
        "data": "CorpusDataModule",
        "data.store": str(store),
        "data.tokenizer": str(tokenizer),
        "data.length": 32,
        "data.global_batch_size": 6,
        "data.micro_batch_size": 4,
        "data.audit": str(run_dir / "audit"),
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 8,
        "trainer.log_every_n_steps": 1,
        "trainer.val_check_interval": 6,
        "checkpoint.every_n_steps": 3,
        "report": False,
    }
    return options | {k.replace("__", "."): v for k, v in more.items()}


def finetune(run_dir: Path, init_from: Path, examples: Path, **more: Any) -> dict[str, Any]:
    """Phase two on the files of `write_examples`."""
    options: dict[str, Any] = {
        "run_dir": str(run_dir),
        "model": "FinetuneModule",
        "model.task": "Classification",
        "model.init_from": str(init_from),
        "model.optimizer.lr": 3e-3,
        "data": "TaskDataModule",
        "data.train": str(examples / "train.jsonl"),
        "data.validation": str(examples / "validation.jsonl"),
        "data.test": str(examples / "test.jsonl"),
        "data.max_length": 32,
        "data.global_batch_size": 14,
        "data.micro_batch_size": 5,
        "data.audit": str(run_dir / "audit"),
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 3,
        "trainer.log_every_n_steps": 1,
        "checkpoint.every_n_steps": 3,
        "report": False,
    }
    return options | {k.replace("__", "."): v for k, v in more.items()}


def write_examples(directory: Path) -> Path:
    """Texts, second texts and labels: .jsonl and .tsv of 60, 23 and 23 examples."""
    rng = random.Random(0)
    for name, count in (("train", 60), ("validation", 23), ("test", 23)):
        rows = []
        for _ in range(count):
            label, named = rng.choice((("water", WATER), ("land", LAND)))
            text = rng.choices(OTHER, k=rng.randint(2, 8)) + rng.choices(named, k=3)
            rng.shuffle(text)
            second = " ".join(rng.choices(OTHER, k=rng.randint(1, 6)))
            rows.append({"text": " ".join(text), "second": second, "label": label})
        lines = [json.dumps(row) + "\n" for row in rows]
        (directory / f"{name}.jsonl").write_text("".join(lines))
        table = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
        (directory / f"{name}.tsv").write_text("\n".join(table) + "\n")
    return directory


# What runs leave behind.


def read_metrics(run_dir: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without the columns that depend on the clock."""
    with open(run_dir / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def read_audit(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of the audit."""
    return [json.loads(line) for line in (run_dir / "audit").read_text().splitlines()]


def wandb_records(file: Path) -> list[dict[str, Any]]:
    """What an offline run recorded, as W&B's own reader tells it: each with its `type`."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    # Its own log goes beside the record, not into the working directory.
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(file.parents[2])}
    told = subprocess.run(command, env=environment, capture_output=True, check=True)
    return [json.loads(line) for line in told.stdout.decode().split("\n") if line]


def wandb_file(run_dir: Path) -> Path:
    """The record of a run that was started once."""
    (file,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    return file


def read_json_lines(text: str) -> list[dict[str, Any]]:
    """Predictions."""
    return [json.loads(line) for line in text.split("\n") if line]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's bundle."""
    return load_file(run_dir / "bundle" / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    """Two runs ended in the same bits."""
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
