"""Prompts, prefixes, kept features and attention pooling through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.kit import (
    Run,
    assert_same_weights,
    call,
    done,
    finetune,
    finish,
    launch,
    pretrain,
    read_json_lines,
    read_metrics,
    words,
    write_examples,
)

TUNINGS: dict[str, dict[str, Any]] = {
    "prompt": {"model.tuning": "PromptTuning", "model.tuning.length": 5},
    "prefix": {"model.tuning": "PrefixTuning", "model.tuning.length": 5},
    "features": {
        "model.tuning": "Frozen",
        "model.tuning.cache": True,
        "model.tuning.mix": True,
        "model.task.pooling": "attention",
    },
}
STEADY = {"model.optimizer.schedule": "constant", "model.optimizer.warmup": 0}
tunings = pytest.mark.parametrize("name", TUNINGS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> Path:
    """A phase-one run; it has dropout."""
    run_dir = tmp_path_factory.mktemp("base") / "run"
    done(words("fit", pretrain(run_dir, store, bpe_path, causal=False, trainer__max_steps=2)))
    return run_dir


def options(name: str, run_dir: Path, base: Path, files: Path, **more: Any) -> dict[str, Any]:
    return finetune(run_dir, base, files, trainer__max_epochs=2, **more) | TUNINGS[name] | STEADY


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, base: Path, files: Path) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("runs")
    for name in TUNINGS:
        said = done(words("fit", options(name, at / name, base, files))).err
        assert "the bundle gives val_accuracy" in said
    return {name: at / name for name in TUNINGS}


@tunings
def test_a_bundle_alone_tests_and_predicts_as_its_run(name, runs, base, files, tmp_path):
    shutil.copytree(runs[name] / "bundle", tmp_path / "moved")
    test = str(files / "test.jsonl")
    measured, lines = [], []
    for directory in (runs[name], tmp_path / "moved"):
        given = {"run_dir": str(directory), "model.base": str(base)}
        measured.append(json.loads(done(words("test", given | {"data.test": test})).out))
        given["data.predict"] = test
        done(words("predict", given | {"output": str(tmp_path / "out.jsonl")}))
        lines.append(read_json_lines((tmp_path / "out.jsonl").read_text()))
    # Moved, it knows nothing of the run's micro-batches.
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)
    assert [line["label"] for line in lines[0]] == [line["label"] for line in lines[1]]
    for one, other in zip(*lines, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    truth = [row["label"] for row in read_json_lines((files / "test.jsonl").read_text())]
    right = sum(line["label"] == label for line, label in zip(lines[0], truth, strict=True))
    assert measured[0]["test_accuracy"] == pytest.approx(right / len(truth))


@tunings
def test_a_resumed_run_is_the_undisturbed_one(name, runs, base, files, tmp_path):
    given = options(name, tmp_path / "run", base, files)
    done(words("fit", given | {"trainer.max_steps": 4}))
    done(words("fit", given | {"ckpt_path": "last"}))
    assert_same_weights(runs[name], tmp_path / "run")
    assert read_metrics(tmp_path / "run") == read_metrics(runs[name])
    ends = []
    for run_dir in (runs[name], tmp_path / "run"):
        last = max((run_dir / "checkpoints").glob("*.ckpt"))
        ends.append(torch.load(last, weights_only=True)["state_dict"])
    assert any(".reader." in key for key in ends[0])
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []


def test_two_ranks_keep_features_together(base, files, tmp_path):
    """Each writes its share, an uneven one; training on them is that of one process without."""
    more = {"model.task.dropout": 0.0, "data.audit": None, "trainer.max_epochs": 1}

    def fit(name: str, **changes: Any) -> list[str]:
        return words("fit", options("features", tmp_path / name, base, files) | more | changes)

    two = [
        launch(fit(strategy, **{"trainer.devices": 2, "trainer.strategy": strategy}))
        for strategy in ("ddp", "fsdp2")
    ]
    done(fit("one", **{"model.tuning.cache": False}))
    wanted = read_metrics(tmp_path / "one")
    for name, process in zip(("ddp", "fsdp2"), two, strict=True):
        run = finish(process, timeout=240)
        assert run.code == 0, run.err
        assert len(list((tmp_path / name / "features").iterdir())) == 2
        rows = read_metrics(tmp_path / name)
        for column in ("train_loss", "val_loss"):
            got = [float(row[column]) for row in rows if row[column]]
            assert got == pytest.approx([float(r[column]) for r in wanted if r[column]], rel=1e-5)


def refusal(run: Run) -> str:
    assert run.code == 2, run.err
    (line,) = run.errors
    assert run.err.endswith(line + "\n")
    return line


@pytest.mark.parametrize(
    ("name", "words_of_it"),
    [
        ("prompt", "it reads behind a prompt of 5 vectors and would have to read plainly"),
        ("prefix", "it reads with a prefix of 5 keys and would have to read plainly"),
        ("features", "it reads a mean of all layers and would have to read plainly"),
        ("features", "task.pooling is 'attention' and would have to be"),
    ],
)
def test_hugging_face_has_no_place_for_them(name, words_of_it, runs, tmp_path):
    given = {"init_from": str(runs[name]), "output": str(tmp_path / "out")}
    assert words_of_it in refusal(call(words("export", given)))
    assert not (tmp_path / "out").exists()


def test_a_tuned_head_goes_on_with_its_own_reading_alone(runs, base, files, tmp_path):
    test = {"run_dir": str(runs["prompt"]), "data.test": str(files / "test.jsonl")}
    said = refusal(call(words("test", test | {"model.tuning": "Full"})))
    assert "was tuned to read behind a prompt of 5 vectors" in said
    assert "model.tuning reads plainly: give the same model.tuning" in said
    given = options("prefix", tmp_path / "run", runs["prompt"], files)
    assert "model.tuning reads with a prefix of 5 keys" in refusal(call(words("fit", given)))
    given = options("prompt", tmp_path / "run", runs["prompt"], files)
    done(words("fit", given | {"trainer.max_epochs": 1}))  # the same goes on


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a prompt of nothing": (
        {"model.tuning": "PromptTuning", "model.tuning.length": 0},
        "tuning.length is 0: give a prompt of 1 vector or more",
    ),
    "a prompt longer than examples": (
        {"model.tuning": "PromptTuning", "model.tuning.length": 40},
        "model.tuning.length is 40, data.max_length 32: an example needs at least 4 tokens beside",
    ),
    "a prompt that begins as nobody knows": (
        {"model.tuning": "PromptTuning", "model.tuning.init": "zeros"},
        "model.tuning.init is 'zeros': expected one of 'vocabulary', 'random'",
    ),
    "a network of no width": (
        {"model.tuning": "PrefixTuning", "model.tuning.hidden": 0},
        "tuning.hidden is 0: give 1 or more",
    ),
    "no room for features": (
        {"model.tuning": "Frozen", "model.tuning.cache": True, "model.tuning.cache_limit_gb": 1e-6},
        "GB, tuning.cache_limit_gb is 1e-06: raise it, choose tuning.cache_dtype float16",
    ),
    "less than no room": (
        {"model.tuning": "Frozen", "model.tuning.cache_limit_gb": -1},
        "tuning.cache_limit_gb is -1.0: give a positive number",
    ),
    "features in a file": (
        {"model.tuning": "Frozen", "model.tuning.cache": "{}/train.jsonl"},
        "train.jsonl': File exists",
    ),
    "unknown pooling": (
        {"model.task.pooling": "max"},
        "model.task.pooling is 'max': expected one of 'auto', 'mean', 'first', 'last', 'attention'",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, base, files, tmp_path):
    change, said = MISTAKES[name]
    change = {
        k: v.replace("{}", str(files)) if isinstance(v, str) else v for k, v in change.items()
    }
    run = call(words("fit", finetune(tmp_path / "run", base, files) | change))
    assert said in refusal(run)
    assert "Traceback" not in run.err
    assert not (tmp_path / "run" / "checkpoints").exists()
