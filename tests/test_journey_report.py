"""What `fit`, `test` and `report` leave to look at, through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from faults.kit import (
    call,
    done,
    finetune,
    finish,
    launch,
    pretrain,
    read_json_lines,
    words,
    write_examples,
)
from report.test_page import assert_self_contained
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ptft_lightning.modules import predictions
from ptft_lightning.report.drawing import number


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("one") / "run"
    done(words("fit", pretrain(run_dir, store, bpe_path, report=True)))
    return run_dir


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("examples"))


def options_of(run_dir: Path, one: Path, examples: Path, **more: Any) -> dict[str, Any]:
    return finetune(run_dir, one, examples, trainer__val_check_interval=3, **more)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, one: Path, examples: Path) -> Path:
    """A run of phase two, tested."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    done(words("fit", options_of(run_dir, one, examples, report=True)))
    done(["test", "--run_dir", str(run_dir)])
    return run_dir


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def kept(run_dir: Path, split: str) -> list[dict[str, Any]]:
    return read_json_lines((run_dir / f"{split}_predictions.jsonl").read_text())


def test_phase_one_s_report_says_what_metrics_csv_says(one):
    page = assert_self_contained((one / "report.html").read_text())
    validated = [row for row in rows_of(one) if row["val_loss"]][-1]
    for name in ("val_loss", "val_bits_per_byte", "val_accuracy"):
        assert number(float(validated[name])) in page.words
    assert number(float(rows_of(one)[-1]["tokens"])) in page.words
    assert "8 of 8 steps" in page.words
    lineage = json.loads((one / "bundle" / "lineage.json").read_text())
    assert ["torch", lineage["versions"]["torch"]] in page.cells
    assert ["parameters", number(lineage["parameters"])] in page.cells
    # loss, bits per byte, accuracy, rate, norm, tokens/s, waiting, padding
    assert page.tags.count("svg") == 8


def test_phase_one_s_report_has_a_3_gram_beside_the_model(one, store, bpe_path, tmp_path):
    model = str(tmp_path / "model")
    given = {"store": str(store), "tokenizer": str(bpe_path), "output": model}
    done(["ngram", *words("train", given)])
    found = json.loads(done(["ngram", "score", "--model", model, "--store", str(store)]).out)
    told = json.loads((one / "ngram.json").read_text())
    assert told["bits_per_byte"] == pytest.approx(found["bits_per_byte"], rel=1e-5)
    page = assert_self_contained((one / "report.html").read_text())
    assert "A 3-gram's bits per byte" in page.words
    assert number(found["bits_per_byte"]) in page.words


def test_validation_predictions_are_those_of_the_best_validation(two, examples):
    lines = kept(two, "validation")
    given = read_json_lines((examples / "validation.jsonl").read_text())
    assert [line["number"] for line in lines] == list(range(23))
    assert [(x["text"], x["gold"]) for x in lines] == [(x["text"], x["label"]) for x in given]
    right = sum(line["label"] == line["gold"] for line in lines) / 23
    accuracies = [float(row["val_accuracy"]) for row in rows_of(two) if row["val_accuracy"]]
    assert len(set(accuracies)) > 1, "the test needs validations that differ"
    assert right == pytest.approx(max(accuracies))
    options = {"run_dir": str(two), "data.predict": str(examples / "validation.jsonl")}
    output = two / "again.jsonl"
    done(words("predict", options | {"output": str(output)}))
    again = read_json_lines(output.read_text())
    assert [x["probabilities"] for x in lines] == [x["probabilities"] for x in again]


def test_test_predictions_are_those_of_test_json(two):
    lines = kept(two, "test")
    right = sum(line["label"] == line["gold"] for line in lines) / len(lines)
    assert len(lines) == 23
    metrics = json.loads((two / "test.json").read_text())
    assert metrics["test_accuracy"] == pytest.approx(right)


def test_phase_two_s_page_is_sklearn_s_reading_of_the_files(two):
    run = done(["report", str(two)])
    assert run.out == f"{two / 'report.html'}\n"
    page = assert_self_contained((two / "report.html").read_text())
    lines = kept(two, "test")
    labels = list(lines[0]["probabilities"])
    gold, predicted = ([line[key] for line in lines] for key in ("gold", "label"))
    precision, recall, f1, support = precision_recall_fscore_support(
        gold, predicted, labels=labels, zero_division=0
    )
    for i, label in enumerate(labels):
        row = [f"{precision[i]:.4f}", f"{recall[i]:.4f}", f"{f1[i]:.4f}", "", f"{support[i]}"]
        assert [label, *row] in page.cells
    matrix = confusion_matrix(gold, predicted, labels=labels)
    assert f"{matrix.trace()} of {len(lines)}" in page.words
    assert "Predictions: test" in page.words
    assert "Predictions: validation" in page.words


def test_pairs_keep_both_texts(tmp_path, one, examples):
    more = {"data__columns__pair": "second", "trainer__max_epochs": 1}
    done(words("fit", options_of(tmp_path / "run", one, examples, **more)))
    given = read_json_lines((examples / "validation.jsonl").read_text())
    lines = kept(tmp_path / "run", "validation")
    assert [line["pair"] for line in lines] == [x["second"] for x in given]


def test_two_ranks_keep_every_prediction_once(tmp_path, two, examples, one):
    """`test` on two ranks writes what one rank wrote."""
    before = kept(two, "test")
    options = {"run_dir": str(two), "trainer.devices": 2, "trainer.strategy": "ddp"}
    ranks = {"trainer__devices": 2, "trainer__strategy": "ddp", "trainer__max_epochs": 1}
    fit = words("fit", options_of(tmp_path / "run", one, examples, **ranks))
    for process in [launch(words("test", options)), launch(fit)]:
        run = finish(process)
        assert run.code == 0, run.err
    assert_same(kept(two, "test"), before)
    assert [line["number"] for line in kept(tmp_path / "run", "validation")] == list(range(23))


def assert_same(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """To the fifth digit: micro-batches are packed differently."""
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert one | {"probabilities": 0} == other | {"probabilities": 0}
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_of_a_large_set_some_are_kept_and_that_is_said(tmp_path, two, examples, monkeypatch):
    monkeypatch.setattr(predictions, "KEPT", 10)
    monkeypatch.setattr(predictions, "CHARACTERS", 12)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "bundle").symlink_to(two / "bundle")
    (run_dir / "config.yaml").symlink_to(two / "config.yaml")
    run = done(["test", "--run_dir", str(run_dir)])
    assert "test_predictions.jsonl: 1 in 3 of 23 examples is kept" in run.err
    lines = kept(run_dir, "test")
    assert [line["number"] for line in lines] == [0, 3, 6, 9, 12, 15, 18, 21]
    given = read_json_lines((examples / "test.jsonl").read_text())
    assert [line["text"] for line in lines] == [x["text"][:11] + "…" for x in given[::3]]
    done(["report", str(run_dir)])
    assert "8 predictions: 1 in 3 of the examples of the last test." in (
        run_dir / "report.html"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyError("gold")])
def test_a_report_that_fails_costs_a_line_not_the_run(tmp_path, store, bpe_path, fault):
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__max_steps=1, report=True)
    with mock.patch("ptft_lightning.commands.report.write", side_effect=fault):
        run = call(words("fit", options))
    assert run.code == 0
    assert f"no report in '{tmp_path / 'run'}': {type(fault).__name__}: " in run.err
    assert run.err.splitlines()[-1] == f"done: {tmp_path / 'run' / 'bundle'}"
    assert not (tmp_path / "run" / "report.html").exists()


def test_predictions_that_cannot_be_written_cost_a_line(tmp_path, one, examples):
    options = options_of(tmp_path / "run", one, examples, trainer__max_epochs=1)
    full = OSError(28, "No space left on device")
    with mock.patch("ptft_lightning.modules.predictions.write_atomically", side_effect=full):
        run = done(words("fit", options))
    assert "validation_predictions.jsonl' was not written: " in run.err
    assert (tmp_path / "run" / "bundle" / "model.safetensors").is_file()


def test_no_report_where_none_is_wanted(tmp_path, store, bpe_path):
    done(words("fit", pretrain(tmp_path / "run", store, bpe_path, trainer__max_steps=1)))
    assert not (tmp_path / "run" / "report.html").exists()


def test_several_runs_on_one_page(one, two, tmp_path):
    file = tmp_path / "deep" / "both.html"
    done(["report", str(one), str(two), "--output", str(file)])
    page = assert_self_contained(file.read_text())
    assert page.tags.count("svg") >= 7
    assert "2 runs" in page.words


def test_a_run_in_progress(tmp_path, one):
    """What a fit has written before its first checkpoint."""
    for name in ("metrics.csv", "config.yaml"):
        (tmp_path / name).write_text((one / name).read_text().rpartition("8,")[0] + "8,0.")
    run = done(["report", str(tmp_path)])
    assert run.out == f"{tmp_path / 'report.html'}\n"
    assert "could not be read" in run.err
    assert_self_contained((tmp_path / "report.html").read_text())
