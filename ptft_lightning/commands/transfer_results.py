"""What the runs of a transfer comparison measured: table, differences, verdicts; starts nothing."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

from ptft_lightning.errors import UserError
from ptft_lightning.report.intervals import Mean, mean

ALL = "all"
Labels = int | str
"""How many training examples, or `all`."""


@dataclass(frozen=True)
class Trial:
    """One fine-tuning."""

    arm: str
    """Whose weights it started from."""
    labels: Labels
    seed: int

    @property
    def name(self) -> str:
        """Its directory's name."""
        return f"{self.arm}-{self.labels}-{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What a trial's test said of one test set."""

    trial: Trial
    test: str
    value: float
    seconds: float
    """Wall time of the fit."""


class Outcomes:
    """All of a comparison, in the order of arms, label counts and test sets."""

    def __init__(self, found: list[Outcome], higher_is_better: bool) -> None:
        self.found, self.sign = found, 1 if higher_is_better else -1
        self.arms = list(dict.fromkeys(o.trial.arm for o in found))
        self.labels = list(dict.fromkeys(o.trial.labels for o in found))
        self.tests = list(dict.fromkeys(o.test for o in found))

    def by_seed(self, arm: str, labels: Labels, test: str) -> dict[int, float]:
        """Seed -> value."""
        return {
            o.trial.seed: o.value
            for o in self.found
            if (o.trial.arm, o.trial.labels, o.test) == (arm, labels, test)
        }

    def mean(self, arm: str, labels: Labels, test: str) -> Mean:
        """Over seeds."""
        return mean(list(self.by_seed(arm, labels, test).values()))

    def difference(self, arm: str, base: str, labels: Labels, test: str) -> Mean:
        """Of pairs with the same seed, better is positive."""
        mine, theirs = (self.by_seed(a, labels, test) for a in (arm, base))
        return mean([self.sign * (mine[s] - theirs[s]) for s in mine if s in theirs])

    def gap(self, arm: str, labels: Labels, test: str) -> Mean:
        """What is lost from the first test set to another, by seed."""
        first, other = (self.by_seed(arm, labels, t) for t in (self.tests[0], test))
        return mean([self.sign * (first[s] - other[s]) for s in first])

    def table(self) -> list[list[str]]:
        """A row per arm, label count and test set below a heading."""
        rows = [["from", "labels", "test", "mean", "spread", "95 %", "seeds", "seconds"]]
        for arm in self.arms:
            for labels in self.labels:
                for test in self.tests:
                    m = self.mean(arm, labels, test)
                    same = (arm, labels)
                    times = [o.seconds for o in self.found if (o.trial.arm, o.trial.labels) == same]
                    interval = f"{m.low:.4f} to {m.high:.4f}" if m.count > 1 else "-"
                    spread = f"{m.spread:.4f}" if m.count > 1 else "-"
                    cells = [arm, str(labels), test, f"{m.value:.4f}", spread, interval]
                    rows.append([*cells, str(m.count), f"{sum(times) / len(times):.0f}"])
        return rows

    def verdicts(self) -> list[str]:
        """A sentence per later arm, label count and test set: was it worth it?"""
        lines = []
        for arm in self.arms[1:]:
            for labels in self.labels:
                for test in self.tests:
                    d = self.difference(arm, self.arms[0], labels, test)
                    lines.append(
                        f"{arm} against {self.arms[0]}, {labels} labels, {test}: {said(d)}"
                    )
        for arm in self.arms if len(self.tests) > 1 else []:
            for labels in self.labels:
                for test in self.tests[1:]:
                    g = self.gap(arm, labels, test)
                    lines.append(
                        f"{arm}, {labels} labels: {test} is {g.value:.4f} below {self.tests[0]}"
                    )
        return lines

    def csv(self) -> str:
        """A line per trial and test set."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["from", "labels", "seed", "test", "value", "fit_seconds"])
        for o in self.found:
            trial = o.trial
            writer.writerow(
                [trial.arm, trial.labels, trial.seed, o.test, o.value, f"{o.seconds:.1f}"]
            )
        return stream.getvalue()


def said(difference: Mean) -> str:
    """A difference in words."""
    if difference.count < 2:
        return f"{difference.value:+.4f} (one pair: too few to tell)"
    interval = f"[{difference.low:+.4f}, {difference.high:+.4f}], {difference.count} pairs"
    return f"{difference.verdict} {difference.value:+.4f} {interval}"


def read_outcome(run_dir: Path, trial: Trial, test: str, metric: str) -> Outcome:
    """A finished trial's value.

    Raises:
        UserError: the metric was not measured.
    """
    measured = json.loads((run_dir / f"test_{test}.json").read_text())
    if metric not in measured:
        raise UserError(f"--metric '{metric}' is not one of {', '.join(sorted(measured))}")
    seconds = json.loads((run_dir / "seconds.json").read_text())
    return Outcome(trial, test, measured[metric], sum(seconds))
