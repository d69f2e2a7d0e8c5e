"""A bundle of phase two alone gives the metrics and predictions of its run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from faults.files_tagging import write_tagged
from faults.kit import (
    call,
    done,
    finetune,
    pretrain,
    read_json_lines,
    read_metrics,
    words,
    write_examples,
)

from ptft_lightning.commands.bundle_config import config_of_bundle
from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.tasks.classification import Classification
from ptft_lightning.tasks.tagging import Tagging

NAMES = {"water": "Wasser", "land": "Land", "other": "anderes"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def base_run(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("base") / "run"
    done(words("fit", pretrain(run_dir, store, bpe_path, trainer__max_steps=2)))
    return run_dir


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, files: Path, base_run: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    options = finetune(run_dir, base_run, files) | {"data.label_names": NAMES}
    said = done(words("fit", options)).err
    assert "the bundle gives val_accuracy" in said
    return run_dir


def test_a_bundle_that_was_moved_tests_and_predicts_as_its_run(run, files, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run / "bundle", moved)
    test = str(files / "test.jsonl")
    before = json.loads(done(["test", "--run_dir", str(run), "--data.test", test]).out)
    after = json.loads(done(["test", "--run_dir", str(moved), "--data.test", test]).out)
    assert after == before
    lines = []
    for directory in (run, moved):
        output = tmp_path / f"{directory.name}.jsonl"
        options: dict[str, Any] = {"run_dir": str(directory), "data.predict": test}
        done(words("predict", options | {"output": str(output)}))
        lines.append(read_json_lines(output.read_text()))
    assert lines[0] == lines[1]
    assert {line["label"] for line in lines[1]} <= set(NAMES.values())


class Other(Classification):
    """Has the name of the class it is made from, but is none of the program's own."""


def test_kinds_are_looked_up_among_our_own_classes(run):
    config = config_of_bundle(run / "bundle")["model"]["init_args"]["task"]
    assert config["class_path"] == f"{Classification.__module__}.Classification"


def test_a_bundle_of_phase_one_is_no_run_to_test(base_run):
    run = call(["test", "--run_dir", str(base_run / "bundle")])
    assert run.code == 2
    assert run.errors[0].endswith("is no bundle of phase two: give --config FILE")


def test_a_bundle_that_forgets_a_setting_is_found_out(files, base_run, tmp_path, monkeypatch):
    whole = Classification.config
    monkeypatch.setattr(
        Classification,
        "config",
        lambda self: {k: v for k, v in whole(self).items() if k != "pooling"},
    )
    task = {"class_path": "Classification", "init_args": {"pooling": "last"}}
    options = finetune(tmp_path / "run", base_run, files) | {"model.task": task}
    monkeypatch.setattr(Classification, "shaping", ())
    run = call(words("fit", options))
    assert run.code == 2
    assert "does not give the metrics of its run (val_" in run.errors[0]
    assert (tmp_path / "run" / "bundle").is_dir()


def test_metrics_that_were_measured_otherwise_are_not_compared(files, base_run, tmp_path):
    """After a resume with another micro-batch the best bundle is that of the earlier rows."""
    options = finetune(tmp_path / "run", base_run, files) | {"model.optimizer.lr": 1e-9}
    stop = {"trainer.max_epochs": 1}  # no later validation is better than the first
    done(words("fit", options | stop))
    more = {"data.micro_batch_size": 7, "ckpt_path": "last"}
    said = done(words("fit", options | more)).err
    assert "not measured as they would be now: not compared" in said


def test_from_scratch_nothing_but_the_shape_is_inherited(run, files, base_run, tmp_path):
    options = finetune(tmp_path / "run", base_run, files, trainer__max_epochs=1)
    done(words("fit", options | {"model.from_scratch": True}))
    parents = [
        json.loads((at / "bundle" / "lineage.json").read_text())["parents"]
        for at in (run, tmp_path / "run")
    ]
    assert [len(found) for found in parents] == [1, 0]


def test_a_run_killed_before_its_bundle_gets_it(base_run, store, bpe_path, tmp_path):
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__max_steps=2)
    done(words("fit", options))
    before = open_bundle(tmp_path / "run").hash
    shutil.rmtree(tmp_path / "run" / "bundle")
    done(words("fit", options | {"ckpt_path": "last"}))
    assert open_bundle(tmp_path / "run").hash == before


def test_whole_predictions_are_made_once_a_validation(base_run, tmp_path, monkeypatch):
    made = []
    records = Tagging.records
    monkeypatch.setattr(Tagging, "records", lambda *a: made.append(1) or records(*a))
    options = finetune(tmp_path / "run", base_run, tmp_path, trainer__max_epochs=2)
    options |= {"model.task": "Tagging", **write_tagged(tmp_path)}
    done(words("fit", options | {"model.task.lost_borders": 1.0}))
    assert len(made) == 3  # two validations and the bundle's own


def test_a_kind_that_is_predicted_no_more_is_measured_no_more(bpe_path, tmp_path):
    """A tag that the validation file lacks is predicted at first, then unlearnt."""

    def file(name: str, *counts: tuple[str, str, int]) -> str:
        rows = [f"{word}\t{tag}\n" for word, tag, count in counts for _ in range(count)]
        (tmp_path / name).write_text("\n".join(rows))
        return str(tmp_path / name)

    options = {
        **{"model": "FinetuneModule", "data": "TaskDataModule", "report": False},
        "model.task": {"class_path": "Tagging", "init_args": {"dropout": 0.0}},
        "model.backbone": {"dim": 32, "depth": 1, "heads": 2, "max_length": 32},
        "model.optimizer": {"lr": 3e-2, "schedule": "constant", "warmup": 0},
        **{"data.tokenizer": str(bpe_path), "data.max_length": 16},
        "data.train": file("train.conll", ("river", "B-B", 24), ("winter", "B-A", 8)),
        "data.validation": file("validation.conll", ("winter", "B-A", 4)),
        **{"trainer.max_steps": 8, "trainer.val_check_interval": 2, "trainer.accelerator": "cpu"},
        "run_dir": str(tmp_path / "run"),
    }
    said = done(words("fit", options)).err
    measured = [row["val_f1_B"] for row in read_metrics(tmp_path / "run") if row["val_f1"]]
    assert (float(measured[0]), measured[-1]) == (0, "")
    assert "the bundle gives val_f1 1" in said
