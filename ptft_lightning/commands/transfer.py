"""`transfer`: was the pretraining worth it? Fine-tunes from several weights, over seeds and label
counts, and draws learning curves with intervals; with one start it is a run over several seeds.

Each fine-tuning is a `fit` and a `test` of its own processes and run directory. A comparison that
was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import IO, Any

import yaml

from ptft_lightning.commands.exclusive import STOPPED, exclusive
from ptft_lightning.commands.sweep import whole_config
from ptft_lightning.commands.sweep_results import aligned, error_of
from ptft_lightning.commands.tool import OneLineParser
from ptft_lightning.commands.transfer_results import (
    ALL,
    Labels,
    Outcome,
    Outcomes,
    Trial,
    read_outcome,
)
from ptft_lightning.data.module import say
from ptft_lightning.data.streams import open_bytes
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import LOWER_IS_BETTER

RANDOM = "random"
SETTINGS = "transfer.json"


def build_parser() -> OneLineParser:
    """The options."""
    parser = OneLineParser(prog="python -m ptft_lightning transfer", description=__doc__)
    add = parser.add_argument
    add("--config", action="append", required=True, help="A config of a phase-two fit; repeat it.")
    add(
        "--start",
        action="append",
        required=True,
        help="NAME=PATH: a bundle, run or Hugging Face folder to start from; repeat it. `random` "
        "starts from scratch with the shape and tokenizer of the first path. The others are "
        "compared with the first one named.",
    )
    add("--labels", default=ALL, help="Training examples, such as 50,200,all.")
    add("--seeds", type=int, default=3, help="Fine-tunings of each kind: seeds 0, 1, ..")
    add("--test", action="append", help="NAME=FILE: test sets in place of the config's; repeat it.")
    add("--random_epochs", type=int, help="trainer.max_epochs of the random start.")
    add("--metric", help="Of the test; default: the one that the task is judged by.")
    add("--output", required=True, help="Directory of the comparison, one run in each of its own.")
    return parser


class Transfer:
    """The trials of one directory."""

    def __init__(self, options: Namespace, lock: IO[str]) -> None:
        self.options, self.output, self.lock = options, Path(options.output), lock
        if options.seeds < 1:
            raise UserError(f"--seeds is {options.seeds}: give 1 or more")
        self.starts = _pairs("--start", options.start, bare=(RANDOM,))
        paths = [path for name, path in self.starts.items() if name != RANDOM]
        if not paths:
            raise UserError("--start random needs another start, whose shape it takes: name one")
        self.shape = paths[0]
        self.labels = _labels(options.labels)
        self.tests = _pairs("--test", options.test or [])
        self.config = whole_config(options.config)
        if "FinetuneModule" not in self.config["model"]["class_path"]:
            raise UserError(f"--config {options.config}: transfer needs a phase-two config")
        if not self.tests and self.config["data"]["init_args"]["test"] is None:
            raise UserError("what to test on? give data.test in the config, or --test NAME=FILE")
        self._keep_settings()

    def _keep_settings(self) -> None:
        """Note what the trials are made from: those of other settings must not be compared."""
        config = {k: v for k, v in self.config.items() if k != "run_dir"}
        mine = {"config": config, "random_epochs": self.options.random_epochs}
        mine |= {"starts": self.starts, "tests": self.tests, "contents": self._contents()}
        file = self.output / SETTINGS
        theirs = json.loads(file.read_text()) if file.is_file() else mine
        mine = json.loads(json.dumps(mine))
        changed = [name for name in ("config", "random_epochs") if mine[name] != theirs[name]]
        for kind in ("starts", "tests", "contents"):
            theirs.setdefault(kind, {})  # contents were not noted once
            both = mine[kind].keys() & theirs[kind].keys()
            changed += [f"{kind} {n}" for n in sorted(both) if mine[kind][n] != theirs[kind][n]]
            mine[kind] = theirs[kind] | mine[kind]
        if changed:
            raise UserError(
                f"--output '{self.output}' holds a comparison with other settings ("
                f"{', '.join(changed)}): give another --output"
            )
        file.write_text(json.dumps(mine, indent=1, ensure_ascii=False) + "\n")

    def _contents(self) -> dict[str, str]:
        """Hashes of what starts and files hold, which may change behind their names."""
        from ptft_lightning.interop.open import open_model

        data = self.config["data"]["init_args"]
        files = [data.get(name) for name in ("train", "validation", "test")]
        found = {of: open_model(of).hash for name, of in self.starts.items() if name != RANDOM}
        for file in filter(None, [*files, *self.tests.values()]):
            with open_bytes(file) as stream:
                found[file] = hashlib.sha256(stream.read()).hexdigest()[:16]
        return found

    def trials(self) -> list[Trial]:
        """All of them, few labels first, so that a look at the table tells something early."""
        return [
            Trial(arm, labels, seed)
            for labels in self.labels
            for seed in range(self.options.seeds)
            for arm in self.starts
        ]

    def run(self) -> Outcomes:
        """Do what is not done yet."""
        trials = self.trials()
        found: list[Outcome] = []
        for number, trial in enumerate(trials, start=1):
            found += self._outcomes(trial, number, len(trials))
        order = {name: i for i, name in enumerate(self.starts)}
        found.sort(key=lambda o: order[o.trial.arm])
        return Outcomes(found, self.metric.removeprefix("test_") not in LOWER_IS_BETTER)

    def _outcomes(self, trial: Trial, number: int, total: int) -> list[Outcome]:
        at = self.output / "runs" / trial.name
        names = list(self.tests) or ["test"]
        if missing := [name for name in names if not (at / f"test_{name}.json").is_file()]:
            say(f"{number}/{total}: {trial.name} (log: {at / 'log.txt'})")
            at.mkdir(parents=True, exist_ok=True)
            if not (at / "fitted").is_file():
                began = time.perf_counter()
                try:
                    self._call(at, self._fit_words(trial, at))
                finally:
                    _add_seconds(at, time.perf_counter() - began)
                (at / "fitted").touch()
            for name in missing:
                file = ["--data.test", self.tests[name]] if self.tests else []
                # The text of phase one would be read again for every trial.
                self._call(at, ["test", "--run_dir", str(at), "--overlap", "false", *file])
                (at / "test.json").replace(at / f"test_{name}.json")
        self.metric = self.options.metric or self._monitor(at)
        if not self.metric.startswith("test_"):
            self.metric = f"test_{self.metric}"
        outcomes = [read_outcome(at, trial, name, self.metric) for name in names]
        if missing:
            say("  " + ", ".join(f"{o.test} {self.metric} {o.value:.4f}" for o in outcomes))
        return outcomes

    def _fit_words(self, trial: Trial, at: Path) -> list[str]:
        random = trial.arm == RANDOM
        settings: dict[str, Any] = {
            "run_dir": at,
            "ckpt_path": "last",
            "model.init_from": self.shape if random else self.starts[trial.arm],
            "model.from_scratch": str(random).lower(),
            "model.seed": trial.seed,
            "data.seed": trial.seed,
            "report": "false",
        }
        if trial.labels != ALL:
            settings["data.train_examples"] = trial.labels
        if random and self.options.random_epochs is not None:
            settings["trainer.max_epochs"] = self.options.random_epochs
        configs = [word for file in self.options.config for word in ("--config", file)]
        return ["fit", *configs, *(str(w) for k, v in settings.items() for w in (f"--{k}", v))]

    def _call(self, at: Path, words: list[str]) -> None:
        """Run a command to its end; what it says goes to the trial's log.

        Raises:
            UserError: it failed, with the last thing it said.
        """
        with open(at / "log.txt", "a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ptft_lightning", *words],
                stdout=log,
                stderr=log,
                pass_fds=(self.lock.fileno(),),
            )
            try:
                code = process.wait()
            finally:  # also when this process is told to end: the trial saves and can resume
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        if code == STOPPED:
            sys.exit(STOPPED)
        if code:
            raise UserError(f"{at.name} failed: {error_of(at).removeprefix('error: ')}")

    def _monitor(self, at: Path) -> str:
        config = json.loads((at / "bundle" / "config.json").read_text())
        return str(config["head"]["config"]["monitor"])

    def write(self, outcomes: Outcomes) -> None:
        """transfer.csv, transfer.html; the table to standard output."""
        from ptft_lightning.commands.report import write
        from ptft_lightning.report.learning_curves import build_transfer_page

        (self.output / "transfer.csv").write_text(outcomes.csv())
        config = yaml.safe_dump({"configs": self.options.config, "starts": self.starts})
        write(
            self.output / "transfer.html",
            build_transfer_page(self.output.name, outcomes, self.metric, config),
        )
        for row in aligned(outcomes.table()):
            print(row)
        for line in outcomes.verdicts():
            print(line)
        say(f"report: {self.output / 'transfer.html'}")


def _pairs(option: str, given: list[str], bare: tuple[str, ...] = ()) -> dict[str, str]:
    pairs = {}
    for word in given:
        name, equals, value = word.partition("=")
        if word not in bare and not (name and equals and value):
            raise UserError(f"{option} '{word}': give NAME=PATH")
        if name in pairs:
            raise UserError(f"{option} '{name}' is given twice: choose another name")
        if {"/", "-"} & set(name):
            raise UserError(f"{option} '{name}': a name has neither / nor -")
        pairs[name] = value
    return pairs


def _labels(given: str) -> list[Labels]:
    found: list[Labels] = []
    for part in str(given).strip("[]").split(","):
        word = part.strip()
        if word != ALL and not (word.isdigit() and int(word) > 0):
            raise UserError(f"--labels '{given}': give numbers and all, such as 50,200,all")
        found.append(ALL if word == ALL else int(word))
    return found


def _add_seconds(at: Path, seconds: float) -> None:
    file = at / "seconds.json"
    before = json.loads(file.read_text()) if file.is_file() else []
    file.write_text(json.dumps([*before, seconds]))


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    options = build_parser().parse_args(args)
    with exclusive(command, Path(options.output)) as lock:
        transfer = Transfer(options, lock)
        transfer.write(transfer.run())
