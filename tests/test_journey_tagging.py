"""Tagging and semantic roles through the command line: formats, windows, a CRF, ranks, measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults.files_tagging import COUNTS, LONG, write_characters, write_roles, write_tagged
from faults.kit import (
    BACKBONE,
    Run,
    done,
    finetune,
    finish,
    launch,
    read_json_lines,
    read_metrics,
    words,
)
from seqeval.metrics import classification_report
from sklearn.metrics import accuracy_score, f1_score

# Windows of 16 tokens: the files have longer sentences.
KINDS: dict[str, dict[str, Any]] = {
    "columns": {"model__task": "Tagging"},
    "spans": {"model__task": "Tagging", "model__task__crf": True, "model__task__presplit": True},
    "characters": {
        "model__task": "Tagging",
        "model__task__pooling": "mean",
        "trainer__max_epochs": 30,  # its sentences are short
    },
    "universal": {"model__task": "Tagging", "model__task__monitor": "accuracy"},
    "roles": {"model__task": "SemanticRoles", "model__task__crf": True, "data__max_length": 24},
}
ENDINGS = {"columns": ".conll", "spans": ".jsonl", "universal": ".conllu", "characters": ".bmes"}
SEQEVAL = (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Of each kind of file the options that name its splits."""
    at = tmp_path_factory.mktemp("files")
    (roles := at / "roles").mkdir()
    found = {"roles": write_roles(roles)}
    write_tagged(at)
    write_characters(at)
    for kind, ending in ENDINGS.items():
        found[kind] = {f"data.{split}": str(at / f"{split}{ending}") for split in COUNTS}
    return found


def options(kind: str, run_dir: Path, files: Any, tokenizer: Path, **more: Any) -> dict[str, Any]:
    scratch = {"model__init_from": None, "model__backbone": {**BACKBONE, "causal": False}}
    scratch |= {"data__tokenizer": str(tokenizer), "data__audit": None, "data__max_length": 16}
    scratch |= {"trainer__max_epochs": 12, "model__optimizer__lr": 5e-3}
    return finetune(run_dir, run_dir, run_dir, **scratch | KINDS[kind] | more) | files[kind]


class Runs(dict[str, tuple[Path, Run]]):
    """Fits of each kind, made when first asked for."""

    def __init__(self, at: Path, files: Any, tokenizer: Path) -> None:
        self.made = at, files, tokenizer

    def __missing__(self, kind: str) -> tuple[Path, Run]:
        at, files, tokenizer = self.made
        run = done(words("fit", options(kind, at / kind, files, tokenizer)))
        self[kind] = at / kind, run
        return self[kind]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, files: Any, bpe_path: Path) -> Runs:
    # WordPiece is learned in another order every time, and what is learned here depends on it.
    return Runs(tmp_path_factory.mktemp("runs"), files, bpe_path)


def measured(run_dir: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads(done(["test", "--run_dir", str(run_dir)]).out)
    return values


def predicted(run_dir: Path, file: str) -> list[dict[str, Any]]:
    output = str(run_dir / "out.jsonl")
    done(words("predict", {"run_dir": str(run_dir), "data.predict": file, "output": output}))
    return read_json_lines(Path(output).read_text())


def gold_of(run_dir: Path) -> list[dict[str, Any]]:
    """What the run keeps beside its test: gold tags and predictions of each example."""
    if not (run_dir / "test_predictions.jsonl").exists():
        measured(run_dir)
    return read_json_lines((run_dir / "test_predictions.jsonl").read_text())


@pytest.mark.parametrize("kind", ["columns", "spans", "characters", "roles"])
def test_measures_are_those_of_seqeval(kind, runs):
    run_dir, _ = runs[kind]
    values = measured(run_dir)
    lines = gold_of(run_dir)
    theirs = classification_report(
        [line["gold"] for line in lines],
        [line["tags"] for line in lines],
        output_dict=True,
        zero_division=0,
    )
    for name, of in SEQEVAL:
        assert values[f"test_{name}"] == pytest.approx(theirs["micro avg"][of], abs=1e-6)
        assert values[f"test_macro_{name}"] == pytest.approx(theirs["macro avg"][of], abs=1e-6)
        for label in theirs.keys() - {"micro avg", "macro avg", "weighted avg"}:
            assert values[f"test_{name}_{label}"] == pytest.approx(theirs[label][of], abs=1e-6)
    assert values["test_support"] == theirs["micro avg"]["support"]
    assert values["test_f1"] > 0.8, "it learned"


def test_plain_tags_are_measured_by_word(runs):
    run_dir, _ = runs["universal"]
    values = measured(run_dir)
    gold, said = (
        [tag for line in gold_of(run_dir) for tag in line[side]] for side in ("gold", "tags")
    )
    assert values["test_accuracy"] == pytest.approx(accuracy_score(gold, said), abs=1e-6)
    assert values["test_f1"] == values["test_accuracy"]
    assert values["test_macro_f1"] == pytest.approx(f1_score(gold, said, average="macro"), abs=1e-6)
    assert values["test_accuracy"] > 0.9
    assert "entities" not in gold_of(run_dir)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_whole_and_in_characters(kind, runs, files):
    run_dir, _ = runs[kind]
    lines = predicted(run_dir, files[kind]["data.test"])
    assert [line["tags"] for line in lines] == [line["tags"] for line in gold_of(run_dir)]
    assert max(len(line["tokens"]) for line in lines) >= LONG
    spans = 0
    for line in lines:
        assert len(line["tags"]) == len(line["tokens"])
        for span in line.get("roles" if kind == "roles" else "entities", []):
            text = line["text"][span["start"] : span["end"]]
            assert span["text"] == text
            joined = "" if kind == "characters" else " "
            assert text in joined.join(line["tokens"])
            spans += 1
    assert spans > 20 or kind == "universal"
    if kind == "roles":
        assert {line["predicate"]["text"] for line in lines} == {"sees", "builds"}
    else:
        assert len(lines) == COUNTS["test"]


@pytest.mark.parametrize("kind", ["columns", "roles"])
def test_two_ranks_measure_the_same(kind, runs):
    run_dir, _ = runs[kind]
    two = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.micro_batch_size": 7}
    run = finish(launch(words("test", {"run_dir": str(run_dir)} | two)))
    assert run.code == 0, run.err
    assert json.loads(run.out) == pytest.approx(measured(run_dir), rel=1e-5)


def test_windows_are_told(runs):
    assert "sentences are read in windows, " in runs["columns"][1].err


def test_the_micro_batch_and_windows_change_no_step(runs, files, bpe_path, tmp_path):
    """The loss is the mean over the words of a step, however it is split."""
    rows = []
    for micro in (3, 14):
        run_dir = tmp_path / str(micro)
        more = {"data__micro_batch_size": micro, "trainer__max_epochs": 2}
        more |= {"model__backbone": {**BACKBONE, "causal": False, "dropout": 0.0}}
        more |= {"model__task__dropout": 0.0}
        done(words("fit", options("spans", run_dir, files, bpe_path, **more)))
        rows.append([float(row["train_loss"] or "nan") for row in read_metrics(run_dir)])
    assert rows[0] == pytest.approx(rows[1], rel=1e-3, nan_ok=True)


def test_typed_text_is_cut_into_words(runs):
    typed = "The old lake, (wood) 江河!"
    out = done(words("predict", {"run_dir": str(runs["spans"][0]), "text": typed})).out
    (line,) = read_json_lines(out)
    assert line["tokens"] == ["The", "old", "lake", ",", "(", "wood", ")", "江", "河", "!"]
    assert line["text"] == typed
    # Signs were never learned: what is meant is asked of words, at their own characters.
    known = "the old   lake sees wood"
    out = done(words("predict", {"run_dir": str(runs["spans"][0]), "text": known})).out
    (line,) = read_json_lines(out)
    assert {"type": "WATER", "start": 10, "end": 14, "text": "lake"} in line["entities"]
    out = done(words("predict", {"run_dir": str(runs["roles"][0]), "text": "sea [sees] wood"})).out
    (line,) = read_json_lines(out)
    assert line["predicate"] == {"word": 1, "text": "sees"}
    assert [(r["type"], r["text"]) for r in line["roles"]] == [("ARG0", "sea"), ("ARG1", "wood")]


def test_a_model_of_characters_reads_typed_characters(runs):
    out = done(words("predict", {"run_dir": str(runs["characters"][0]), "text": "大2009国 人"})).out
    (line,) = read_json_lines(out)
    assert line["tokens"] == [*"大2009国人"]


def test_an_empty_text_has_an_empty_answer(runs):
    out = done(words("predict", {"run_dir": str(runs["columns"][0]), "text": ["", "sea"]})).out
    one, two = read_json_lines(out)
    assert one == {"text": "", "tokens": [], "tags": [], "entities": []}
    assert two["tokens"] == ["sea"]
