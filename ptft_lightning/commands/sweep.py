"""`sweep`: many fits of one config with settings that Optuna chooses; knows no models.

Each trial is a `fit` of its own process and run directory. What was tried is kept in an SQLite
file, so that a sweep that was killed goes on: the trial it was at resumes from its checkpoint.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import IO, Any, Literal

import yaml

from ptft_lightning.commands.exclusive import STOPPED, exclusive
from ptft_lightning.commands.sweep_results import (
    aligned,
    error_of,
    short,
    table_of,
    trial_directory,
    values_of,
)
from ptft_lightning.commands.tool import OneLineParser
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError

Direction = Literal["minimize", "maximize"]
MINIMIZED, MAXIMIZED = ("loss", "perplexity", "bits_per_byte"), ("accuracy",)
POLL_S = 0.5


def build_parser() -> OneLineParser:
    """The options."""
    parser = OneLineParser(prog="python -m ptft_lightning sweep", description=__doc__)
    add = parser.add_argument
    add("--config", action="append", required=True, help="A config of fit; repeat to overlay.")
    add("--space", required=True, help="YAML: {log_uniform|uniform|int|categorical: [..]} per key.")
    add("--output", required=True, help="Directory of the sweep: trial-000/ and so on.")
    add("--trials", type=int, default=20, help="Trials in all, those of an earlier call included.")
    add("--metric", default="val_loss", help="Column of metrics.csv to judge by.")
    add("--direction", choices=["minimize", "maximize"], help="Needed where it is not certain.")
    add("--value", choices=["last", "best"], default="last", help="Of the column's values.")
    add("--prune", action="store_true", help="End trials that are worse than the median so far.")
    add("--seed", type=int, default=0, help="Decides what is tried.")
    return parser


def direction_of(metric: str, given: Direction | None) -> Direction:
    """Whether less is better.

    Raises:
        UserError: the metric's name does not tell.
    """
    if given is not None:
        return given
    if metric.endswith(MINIMIZED):
        return "minimize"
    if metric.endswith(MAXIMIZED):
        return "maximize"
    raise UserError(f"--metric '{metric}': give --direction minimize or maximize")


def whole_config(configs: list[str]) -> dict[str, Any]:
    """The config of a fit with all its defaults; what is wrong with it comes to light here."""
    from ptft_lightning.commands.train import run as train

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        train("fit", [*_config_words(configs), "--print_config"])
    content: dict[str, Any] = yaml.safe_load(out.getvalue())
    return content


def _config_words(configs: list[str]) -> list[str]:
    return [word for file in configs for word in ("--config", file)]


class Sweep:
    """The trials of one directory."""

    def __init__(self, options: Namespace, lock: IO[str]) -> None:
        self.options, self.output = options, Path(options.output)
        self.direction = direction_of(options.metric, options.direction)
        if options.trials < 1:
            raise UserError(f"--trials is {options.trials}: give 1 or more")
        self.config = whole_config(options.config)
        from ptft_lightning.commands.sweep_space import read_space

        self.space = read_space(options.space, self.config)
        self.lock = lock
        self.study = self._open()

    def _open(self) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=f"sqlite:///{self.output / 'sweep.db'}",
            study_name="sweep",
            direction=self.direction,
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner() if self.options.prune else None,
        )
        space = {key: repr(value) for key, value in self.space.items()}
        mine = {"metric": self.options.metric, "direction": self.direction, "space": space}
        theirs = study.user_attrs
        judged = any(trial.value is not None for trial in study.trials)
        for name, value in mine.items():
            if theirs.get(name, value) != value and (judged or name == "direction"):
                raise UserError(
                    f"--output '{self.output}' holds a sweep with {name} {theirs[name]}, yours is "
                    f"{value}: give another --output"
                )
            study.set_user_attr(name, value)
        return study

    def run(self) -> None:
        """Go on until there are as many trials as asked for."""
        import optuna

        for left in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            if left.params.keys() == self.space.keys():
                self._run(left, None)
            else:
                self.study.tell(left.number, state=optuna.trial.TrialState.FAIL)
        while (number := len(self.study.trials)) < self.options.trials:
            # By number, so that a sweep that was killed tries what it would have tried.
            self.study.sampler = optuna.samplers.TPESampler(seed=self.options.seed + number)
            trial = self.study.ask(self.space)
            self._run(trial, trial if self.options.prune else None)

    def _run(self, trial: Any, judge: Any) -> None:
        """Run a trial to its end and keep its outcome; `judge` may end it before."""
        from optuna.trial import TrialState

        at = trial_directory(self.output, trial.number)
        shown = ", ".join(f"{key} {short(value)}" for key, value in trial.params.items())
        say(f"trial {trial.number + 1}/{self.options.trials}: {shown} (log: {at / 'log.txt'})")
        code = self._fit(at, trial.params, judge)
        if code == STOPPED:  # told to end, and saved: the next call goes on with it
            sys.exit(STOPPED)
        if code is None:
            self.study.tell(trial.number, state=TrialState.PRUNED)
            say("  ended early: worse than the median so far")
        elif code:
            self.study.tell(trial.number, state=TrialState.FAIL)
            say(f"  failed: {error_of(at)}")
        elif math.isfinite(value := self._value(at)):
            self.study.tell(trial.number, value)
            say(f"  {self.options.metric} {value:.6g}, best {self.study.best_value:.6g}")
        else:
            self.study.tell(trial.number, state=TrialState.FAIL)
            with open(at / "log.txt", "a") as log:
                log.write(f"error: {self.options.metric} is {value}\n")
            say(f"  failed: {error_of(at)}")
        self._write()

    def _fit(self, at: Path, params: dict[str, Any], judge: Any) -> int | None:
        """The exit code of a trial's process; None where it was ended early."""
        at.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "ptft_lightning", "fit"]
        command += _config_words(self.options.config)
        for key, value in params.items():
            command += [f"--{key}", "null" if value is None else str(value)]
        command += ["--run_dir", str(at), "--ckpt_path", "last"]
        with open(at / "log.txt", "a") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, pass_fds=(self.lock.fileno(),)
            )
            try:
                while process.poll() is None:
                    time.sleep(POLL_S)
                    if judge is not None and self._is_worse(at, judge):
                        return None
                return process.returncode
            finally:  # also when this process is told to end: the trial saves and can resume
                if process.poll() is None:
                    process.terminate()
                    process.wait()

    def _is_worse(self, at: Path, judge: Any) -> bool:
        known = judge.study.trials[judge.number].intermediate_values
        for step, value in values_of(at, self.options.metric):
            if step not in known:
                judge.report(value, step)
        return bool(judge.should_prune())

    def _value(self, at: Path) -> float:
        found = [value for _, value in values_of(at, self.options.metric)]
        if not found:
            file = at / "metrics.csv"
            columns = file.read_text().partition("\n")[0] if file.is_file() else "none"
            raise UserError(f"--metric '{self.options.metric}' is no column of {file}: {columns}")
        if self.options.value == "last":
            return found[-1]
        return min(found) if self.direction == "minimize" else max(found)

    def _write(self) -> None:
        """trials.csv, best.yaml."""
        from ptft_lightning.commands.sweep_space import overlay

        with open(self.output / "trials.csv", "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerows(self.table())
        if self.best is not None:
            content = overlay(self.best.params, self.config, self.options.space)
            head = f"# {self.options.metric} {self.best.value:.6g}, trial {self.best.number}\n"
            (self.output / "best.yaml").write_text(head + yaml.safe_dump(content, sort_keys=False))

    @property
    def best(self) -> Any:
        """The best trial; None before one was completed."""
        judged = any(trial.value is not None for trial in self.study.trials)
        return self.study.best_trial if judged else None

    def table(self) -> list[list[str]]:
        """See `table_of`."""
        return table_of(self.study, self.output, self.options.metric, list(self.space))

    def finish(self) -> None:
        """Print the table and the best trial.

        Raises:
            UserError: no trial was completed.
        """
        self._write()
        for row in aligned(self.table()):
            print(row)
        states = [trial.state.name for trial in self.study.trials]
        failed, ended = states.count("FAIL"), states.count("PRUNED")
        say(f"{len(states)} trials, {failed} failed, {ended} ended early")
        if self.best is None:
            last = error_of(trial_directory(self.output, len(states) - 1))
            raise UserError(f"no trial was completed; the last: {last}")
        say(f"best: trial {self.best.number}; use it with --config {self.output / 'best.yaml'}")


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    options = build_parser().parse_args(args)
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError("sweep needs Optuna: pip install 'ptft-lightning[sweep]'") from error
    with exclusive(command, Path(options.output)) as lock:
        sweep = Sweep(options, lock)
        sweep.run()
        sweep.finish()
