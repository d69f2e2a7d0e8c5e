"""Multi-label, regression and the rest of classification, through the command line."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from faults.kit import (
    BACKBONE,
    LAND,
    OTHER,
    WATER,
    Run,
    call,
    done,
    finetune,
    finish,
    launch,
    read_json_lines,
    read_metrics,
    words,
)
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

COUNTS = {"train": 60, "validation": 23, "test": 23}


def write_files(directory: Path) -> Path:
    """Per split a .jsonl of texts with one label, a list of labels and a number, and a .csv that
    has the list in one cell."""
    rng = random.Random(1)
    for split, count in COUNTS.items():
        rows = []
        for i in range(count):
            wet, dry = rng.randint(0, 2), rng.randint(0, 2)
            text = rng.choices(OTHER, k=rng.randint(2, 6))
            text += rng.choices(WATER, k=wet) + rng.choices(LAND, k=dry)
            labels = ["water"] * (wet > 0) + ["land"] * (dry > 0)
            label = str(10 if wet > dry else 9)
            row = {"text": " ".join(text), "label": label, "labels": labels, "wet": wet - dry}
            rows.append(row | {"second": OTHER[i % 10]})
        lines = [json.dumps(row) + "\n" for row in rows]
        (directory / f"{split}.jsonl").write_text("".join(lines))
        with open(directory / f"{split}.csv", "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "labels"])
            writer.writerows([row["text"], " ; ".join(row["labels"])] for row in rows)
    return directory


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("files"))


KINDS: dict[str, dict[str, Any]] = {
    "MultiLabel": {"model__task__threshold": 0.4, "data__columns": {"label": "labels"}},
    "Regression": {"data__columns": {"label": "wet", "pair": "second"}},
    "Classification": {
        "model__task__monitor": "mcc",
        "model__task__class_weights": "balanced",
        "model__task__label_smoothing": 0.1,
    },
}


def options(kind: str, run_dir: Path, files: Path, bpe_path: Path, **more: Any) -> dict[str, Any]:
    """A run from scratch: no bundle is needed to train a task."""
    scratch = {"model__task": kind, "model__init_from": None, "model__backbone": BACKBONE}
    scratch |= {"data__tokenizer": str(bpe_path), "trainer__max_epochs": 4, "data__audit": None}
    return finetune(run_dir, run_dir, files, **scratch, **KINDS[kind], **more)


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, files: Path, bpe_path: Path
) -> dict[str, tuple[Path, Run]]:
    at = tmp_path_factory.mktemp("runs")
    return {k: (at / k, done(words("fit", options(k, at / k, files, bpe_path)))) for k in KINDS}


def predicted(run_dir: Path, file: Path, **more: Any) -> list[dict[str, Any]]:
    given = {"run_dir": str(run_dir), "data.predict": str(file), **more}
    done(words("predict", given | {"output": str(run_dir / "out.jsonl")}))
    return read_json_lines((run_dir / "out.jsonl").read_text())


def scores_of(kind: str, rows: list[dict[str, Any]], answers: list[dict[str, Any]]) -> Any:
    """The reference's values for a test file and its predictions."""
    if kind == "Regression":
        pair = [r["wet"] for r in rows], [a["value"] for a in answers]
        return {
            "test_pearson": stats.pearsonr(*pair).statistic,
            "test_spearman": stats.spearmanr(*pair).statistic,
        }
    if kind == "Classification":
        pair = [r["label"] for r in rows], [a["label"] for a in answers]
        return {
            "test_accuracy": accuracy_score(*pair),
            "test_macro_f1": f1_score(*pair, average="macro"),
            "test_mcc": matthews_corrcoef(*pair),
        }
    pair = tuple(
        [[name in line["labels"] for name in ("land", "water")] for line in lines]
        for lines in (rows, answers)
    )
    return {
        "test_micro_f1": f1_score(*pair, average="micro"),
        "test_macro_f1": f1_score(*pair, average="macro"),
        "test_subset_accuracy": accuracy_score(*pair),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_measures_are_those_of_the_predictions(kind, runs, files):
    run_dir, _ = runs[kind]
    measured = json.loads(done(["test", "--run_dir", str(run_dir)]).out)
    answers = predicted(run_dir, files / "test.jsonl")
    rows = read_json_lines((files / "test.jsonl").read_text())
    wanted = scores_of(kind, rows, answers)
    assert {k: measured[k] for k in wanted} == pytest.approx(wanted, abs=1e-5)
    assert len({json.dumps(answer) for answer in answers}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_bundle_is_the_best_by_its_metric(kind, runs):
    run_dir, _ = runs[kind]
    config = json.loads((run_dir / "bundle" / "config.json").read_text())["head"]["config"]
    lineage = json.loads((run_dir / "bundle" / "lineage.json").read_text())
    column = f"val_{config['monitor']}"
    rows = [row for row in read_metrics(run_dir) if row[column]]
    assert len(rows) == 4
    best = max(float(row[column]) for row in rows if row[column] != "nan")
    assert lineage["metrics"][column] == pytest.approx(best, abs=1e-6)
    assert {f"task__{k}": config[k] for k in config}.items() >= {
        k.removeprefix("model__"): v for k, v in KINDS[kind].items() if k.startswith("model")
    }.items()


def test_labels_that_are_numbers_stand_in_their_order(runs):
    config = json.loads((runs["Classification"][0] / "bundle" / "config.json").read_text())
    assert config["head"]["labels"] == ["9", "10"]


def test_regression_tells_the_targets_spread(runs):
    assert "targets: 60 from -2 to 2, mean " in runs["Regression"][1].err


def test_labels_in_one_cell_train_the_same_model(runs, files, bpe_path, tmp_path):
    columns = {"label": "labels", "separator": ";"}
    places = {f"data__{split}": str(files / f"{split}.csv") for split in COUNTS}
    given = options("MultiLabel", tmp_path / "csv", files, bpe_path)
    given |= {k.replace("__", "."): v for k, v in places.items()} | {"data.columns": columns}
    done(words("fit", given))
    assert read_metrics(tmp_path / "csv") == read_metrics(runs["MultiLabel"][0])


def test_two_ranks_measure_the_same(runs):
    """Also with more places for examples than there are examples."""
    two = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.micro_batch_size": 15}
    for kind in KINDS:
        given = {"run_dir": str(runs[kind][0])}
        wanted = json.loads(done(words("test", given)).out)
        run = finish(launch(words("test", given | two)))
        assert run.code == 0, run.err
        assert json.loads(run.out) == pytest.approx(wanted, rel=1e-5)


# Unknown labels, empty and long texts, names of labels.


def test_unknown_labels_are_counted_in_the_measures(runs, files, tmp_path):
    run_dir = str(runs["Classification"][0])
    strange = '{"text": "a new lake", "label": "11"}\n{"text": "", "label": "9"}\n'
    (tmp_path / "t.jsonl").write_text((files / "test.jsonl").read_text() + strange)
    given = {"run_dir": run_dir, "data.test": str(tmp_path / "t.jsonl"), "data.max_length": 8}
    run = call(words("test", given))
    assert run.code == 2
    assert "t.jsonl line 24: label '11' is not one of ['9', '10'] (1 of 25 examples" in run.err
    run = done(words("test", given | {"data.unknown_labels": "skip"}))
    assert json.loads(run.out)["test_skipped"] == 1
    assert "test: 1 of 25 examples (4.0%) left out, label '11' is not one of" in run.err
    assert "test: 1 of 25 examples (4.0%) with an empty text; at " in run.err
    assert " cut to 8 tokens, " in run.err


def test_skipped_examples_change_nothing_else(runs, files, tmp_path):
    given = {"run_dir": str(runs["Classification"][0])}
    wanted = json.loads(done(words("test", given)).out)
    strange = '{"text": "a new lake", "label": "11"}\n'
    (tmp_path / "t.jsonl").write_text(strange + (files / "test.jsonl").read_text())
    given |= {"data.test": str(tmp_path / "t.jsonl"), "data.unknown_labels": "skip"}
    measured = json.loads(done(words("test", given)).out)
    assert measured.pop("test_skipped") == 1
    assert measured == pytest.approx(wanted, rel=1e-5)


def test_names_of_labels_reach_the_predictions(files, bpe_path, tmp_path):
    names = {"data__label_names": {"9": "dry", "10": "wet"}, "trainer__max_steps": 2}
    done(words("fit", options("Classification", tmp_path / "run", files, bpe_path, **names)))
    done(["test", "--run_dir", str(tmp_path / "run")])
    answers = predicted(tmp_path / "run", files / "test.jsonl")
    assert {tuple(answer["probabilities"]) for answer in answers} == {("dry", "wet")}
