"""Relation extraction through the command line: files of every form, measures, predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults.files_relations import LABELS, MARKS, VERBS, write_relations
from faults.kit import (
    BACKBONE,
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
from sklearn.metrics import accuracy_score, f1_score


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("relations")
    write_relations(at)
    return at


def options(run_dir: Path, files: Path, bpe_path: Path, **more: Any) -> dict[str, Any]:
    """A run from scratch on the marked texts."""
    given = finetune(run_dir, run_dir, files, data__tokenizer=str(bpe_path), data__audit=None)
    given |= {
        "model.init_from": None,
        "model.backbone": {**BACKBONE, "max_length": 64, "dropout": 0.0},
        "model.task": "RelationExtraction",
        "model.task.marks": MARKS,
        "model.task.negative": "Other",
        "data.max_length": 64,
        "trainer.max_epochs": 12,
    }
    return given | {k.replace("__", "."): v for k, v in more.items()}


def of(files: Path, ending: str) -> dict[str, Any]:
    return {f"data.{s}": str(files / f"{s}{ending}") for s in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, files: Path, bpe_path: Path) -> tuple[Path, Run]:
    at = tmp_path_factory.mktemp("run")
    return at, done(words("fit", options(at, files, bpe_path)))


def test_it_learns_what_stands_between_the_entities(run):
    column = [float(row["val_macro_f1"]) for row in read_metrics(run[0]) if row["val_macro_f1"]]
    assert len(column) == 12
    assert max(column) > 0.8


def test_measures_are_those_of_the_predictions(run, files):
    measured = json.loads(done(["test", "--run_dir", str(run[0])]).out)
    given = {"run_dir": str(run[0]), "data.predict": str(files / "test.jsonl")}
    done(words("predict", given | {"output": str(run[0] / "out.jsonl")}))
    answers = read_json_lines((run[0] / "out.jsonl").read_text())
    gold = [row["label"] for row in read_json_lines((files / "test.jsonl").read_text())]
    said = [answer["label"] for answer in answers]
    assert measured["test_accuracy"] == pytest.approx(accuracy_score(gold, said))
    micro = f1_score(gold, said, labels=list(LABELS[:2]), average="micro")
    assert measured["test_micro_f1"] == pytest.approx(micro)
    for answer in answers:
        for name in ("head", "tail"):
            assert answer["text"][slice(*answer[f"{name}_span"])] == answer[name]
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    kept = read_json_lines((run[0] / "test_predictions.jsonl").read_text())
    assert [line["gold"] for line in kept] == gold


def test_a_typed_text_has_marks(run):
    text = f"the <e1>river</e1> {VERBS['Other']} a <e2>hill</e2>"
    (answer,) = read_json_lines(done(["predict", "--run_dir", str(run[0]), "--text", text]).out)
    assert (answer["text"], answer["tail"]) == (f"the river {VERBS['Other']} a hill", "hill")
    assert answer["label"] in LABELS
    failed = call(["predict", "--run_dir", str(run[0]), "--text", "the river"])
    assert failed.code == 2
    assert "--text 1: '<e1>' stands 0 times in the text" in failed.err


def test_every_form_of_the_files_trains_the_same_model(run, files, bpe_path, tmp_path):
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "raw": (".txt", {}),
        "spans": ("_spans.jsonl", {"model.task.marks": None}),
    }
    few = {"trainer.max_epochs": 2}
    done(words("fit", options(tmp_path / "marked", files, bpe_path) | few))
    wanted = read_metrics(tmp_path / "marked")
    for name, (ending, more) in ways.items():
        given = options(tmp_path / name, files, bpe_path) | of(files, ending) | more | few
        done(words("fit", given))
        assert read_metrics(tmp_path / name) == wanted


def test_names_in_a_table_without_a_header(files, bpe_path, tmp_path):
    columns = {"text": "text", "label": "label", "names": ["head", "tail", "label", "text"]}
    more = {"data.columns": columns, "model.task.marks": None, "trainer.max_epochs": 1}
    more |= {"model.task.reading": "mean", "model.task.class_weights": "balanced"}
    given = options(tmp_path / "run", files, bpe_path) | of(files, ".tsv") | more
    done(words("fit", given))
    measured = json.loads(done(["test", "--run_dir", str(tmp_path / "run")]).out)
    assert {"test_macro_f1", "test_micro_f1", "test_accuracy", "test_loss"} <= measured.keys()


def test_two_ranks_measure_the_same(run):
    given = {"run_dir": str(run[0])}
    wanted = json.loads(done(words("test", given)).out)
    two = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.micro_batch_size": 15}
    both = finish(launch(words("test", given | two)))
    assert both.code == 0, both.err
    assert json.loads(both.out) == pytest.approx(wanted, rel=1e-5)


BAD = '{"text": "a <e1>river</e1> and a hill", "label": "Other"}\n'
STRANGE = '{"text": "a <e1>river</e1> and a <e2>hill</e2>", "label": "Sees"}\n'


def test_what_cannot_be_used_is_counted(run, files, tmp_path):
    (tmp_path / "t.jsonl").write_text((files / "test.jsonl").read_text() + BAD + STRANGE)
    given = {"run_dir": str(run[0]), "data.test": str(tmp_path / "t.jsonl")}
    failed = call(words("test", given))
    assert failed.code == 2
    assert "t.jsonl line 24: '<e2>' stands 0 times in the text, not once (1 of 25" in failed.err
    failed = call(words("test", given | {"data.bad_examples": "skip"}))
    assert failed.code == 2
    assert "t.jsonl line 25: label 'Sees' is not one of" in failed.err
    given |= {"data.bad_examples": "skip", "data.unknown_labels": "skip"}
    measured = json.loads(done(words("test", given)).out)
    assert measured.pop("test_skipped") == 2
    wanted = json.loads(done(["test", "--run_dir", str(run[0])]).out)
    assert measured == pytest.approx(wanted, rel=1e-5)


def test_a_pair_too_long_to_mark_is_counted(run, files, tmp_path):
    """It is seen only when tokens are there."""
    long = {"text": f"a <e1>{'river ' * 80}</e1> and a <e2>hill</e2>", "label": "Other"}
    lines = (files / "test.jsonl").read_text().splitlines()
    lines.insert(2, json.dumps(long))
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    given = {"run_dir": str(run[0]), "data.test": str(tmp_path / "t.jsonl")}
    failed = call(words("test", given))
    assert failed.code == 2
    (line,) = failed.errors
    assert "t.jsonl line 3: what is marked takes" in line
    assert "(1 of 24 examples (4.2%)" in line
    assert line.endswith("leave them out: data.bad_examples skip")
    measured = json.loads(done(words("test", given | {"data.bad_examples": "skip"})).out)
    assert measured.pop("test_skipped") == 1
    wanted = json.loads(done(["test", "--run_dir", str(run[0])]).out)
    assert measured == pytest.approx(wanted, rel=1e-5)
    given |= {"data.bad_examples": "skip", "output": str(tmp_path / "out.jsonl")}
    said = []
    for file in (tmp_path / "t.jsonl", files / "test.jsonl"):
        done(words("predict", given | {"data.predict": str(file)}))
        rows = read_json_lines((tmp_path / "out.jsonl").read_text())
        said.append([(row["text"], row["label"]) for row in rows])
    assert said[0] == said[1], "each answer is that of its example"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model.task.negative": "none"}, ("task.negative 'none' is none of the labels",)),
        ({"model.task.marks": ["<", ">"]}, ("task.marks is ['<', '>']", "four different")),
        ({"model.task.types": ["a", "b"]}, ("task.types", "leave out task.marks")),
        ({"model.task.marks": None}, ("line 1: no column 'head'", "model.task.head")),
        ({"data.max_length": 6}, ("line 1: what is marked takes", "raise data.max_length")),
        ({"model.task.dropout": 1.5}, ("task.dropout is 1.5",)),
        ({"model.task.reading": "first"}, ("model.task.reading is 'first'", "'start'")),
    ],
)
def test_mistakes(more, said, files, bpe_path, tmp_path):
    failed = call(words("fit", options(tmp_path / "run", files, bpe_path) | more))
    assert failed.code == 2, failed.err
    (line,) = failed.errors
    assert [part for part in said if part not in line] == [], line
