"""Regression: scores equal SciPy's, the loss is in units of the scale, only numbers are numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from ptft_lightning.data.batch import build_batch
from ptft_lightning.data.examples import Columns, Encoded, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.regression import Regression, RegressionHead


def test_metrics_equal_scipy() -> None:
    """With ties, empty slots, and a batch that holds nothing else."""
    rng = np.random.default_rng(0)
    metrics = Regression().metrics([])
    truths, guesses = [], []
    for size in (7, 1, 12, 4):
        targets = rng.integers(0, 6, size).astype(np.float32)
        scores = np.round(targets + rng.normal(size=size), 1).astype(np.float32)
        empty = rng.random(size) < 0.3
        given = np.where(empty, np.nan, targets)
        metrics.update(torch.from_numpy(scores)[:, None], torch.from_numpy(given))
        truths.append(targets[~empty])
        guesses.append(scores[~empty])
    metrics.update(torch.zeros(2, 1), torch.full((2,), math.nan))
    got = {name: float(value) for name, value in metrics.compute().items()}
    truth, guess = np.concatenate(truths), np.concatenate(guesses)
    assert got == pytest.approx(
        {
            "pearson": stats.pearsonr(truth, guess).statistic,
            "spearman": stats.spearmanr(truth, guess).statistic,
            "mse": np.mean((truth.astype(float) - guess) ** 2),
        }
    )


@pytest.mark.parametrize("count", [1, 5])
def test_what_never_varies_has_no_correlation(count: int) -> None:
    metrics = Regression().metrics([])
    metrics.update(torch.ones(count, 1), torch.arange(float(count)))
    got = metrics.compute()
    assert math.isnan(got["pearson"])
    assert math.isnan(got["spearman"])
    assert float(got["mse"]) == pytest.approx(np.mean((np.arange(count) - 1) ** 2))


def test_loss_is_in_units_of_the_scale() -> None:
    torch.manual_seed(0)
    head = RegressionHead(8, "first", dropout=0.0, center=3.0, scale=2.0)
    hidden, at = torch.randn(2, 5, 8), np.arange(3)
    numbers = np.array([1.5, np.nan, 4.0], np.float32)
    targets = {"row": at % 2, "start": at, "end": at + 1, "label": numbers}
    ones = np.ones((2, 5), np.int64)
    output = head(hidden, build_batch(ones, ones, at, targets, 3))
    out = head.classifier(hidden[at % 2, at])
    torch.testing.assert_close(output.scores, out * 2 + 3)
    term = output.terms["regression"]
    wanted = ((output.scores[[0, 2], 0] - torch.tensor([1.5, 4.0])) / 2) ** 2
    torch.testing.assert_close(term.total, wanted.sum())
    assert term.count == 2
    term.total.backward()
    assert head.classifier.weight.grad.isfinite().all()


def test_targets_are_numbers(bpe: Tokenizer) -> None:
    task = Regression()
    examples = [Example("x", None, label, "f.csv line 2") for label in ("1.5", "-2", None)]
    encoded = [*task.encode(examples, [], bpe, 16), Encoded([], [])]
    at = np.zeros(4, np.int64)
    targets = task.targets(encoded, at, at)["label"]
    np.testing.assert_array_equal(targets, np.array([1.5, -2, np.nan, np.nan], np.float32))
    for label in ("high", "nan", "inf", ""):
        with pytest.raises(UserError, match=rf"f\.csv line 2: label '{label}' is not a number"):
            task.encode([Example("x", None, label, "f.csv line 2")], [], bpe, 16)


def test_what_is_no_number_can_be_left_out(tmp_path: Path) -> None:
    lines = [{"text": "x", "label": label} for label in (1.5, "n/a", None)]
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bad = BadExamples("skip")
    assert [e.label for e in Regression().read(str(file), Columns(), True, bad)] == ["1.5"]
    assert bad.found == [
        (f"{file} line 2", "label 'n/a' is not a number"),
        (f"{file} line 3", "label '' is not a number"),
    ]


def test_the_spread_of_the_targets_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    examples = [Example("x", None, label, "here") for label in ("1", "2", "6")]
    assert Regression().schema(examples) == []
    said = "targets: 3 from 1 to 6, mean 3, standard deviation 2.16\n"
    assert capsys.readouterr().err == said


def test_record_is_the_number() -> None:
    assert Regression().record(torch.tensor([2.25]), []) == {"value": 2.25}


@pytest.mark.parametrize(
    ("monitor", "higher"), [("spearman", True), ("pearson", True), ("mse", False), ("loss", False)]
)
def test_the_metric_that_decides(monitor: str, higher: bool) -> None:
    task = Regression(monitor=monitor)  # type: ignore[arg-type]
    assert (task.monitor, task.higher_is_better) == (f"val_{monitor}", higher)
