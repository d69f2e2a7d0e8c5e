"""Events through the command line: triggers, then the arguments of what was predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults.files_events import event_rows, write_events
from faults.kit import (
    BACKBONE,
    Run,
    call,
    done,
    finetune,
    finish,
    launch,
    read_json_lines,
    words,
)

KINDS = ("EventTriggers", "EventArguments")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("events")
    write_events(at)
    return at


def options(kind: str, run_dir: Path, files: Path, bpe_path: Path, **more: Any) -> dict[str, Any]:
    """A run from scratch; documents of triggers take several windows."""
    given = finetune(run_dir, run_dir, files, data__tokenizer=str(bpe_path), data__audit=None)
    given |= {
        "model.init_from": None,
        "model.backbone": {**BACKBONE, "max_length": 64, "dropout": 0.0},
        "model.task": kind,
        "data.max_length": 24 if kind == "EventTriggers" else 48,
        "trainer.max_epochs": 8 if kind == "EventTriggers" else 16,
    }
    return given | {k.replace("__", "."): v for k, v in more.items()}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, files: Path, bpe_path: Path
) -> dict[str, tuple[Path, Run]]:
    at = tmp_path_factory.mktemp("runs")
    return {k: (at / k, done(words("fit", options(k, at / k, files, bpe_path)))) for k in KINDS}


def predicted(run_dir: Path, file: Path) -> list[dict[str, Any]]:
    given = {"run_dir": str(run_dir), "data.predict": str(file)}
    done(words("predict", given | {"output": str(run_dir / "out.jsonl")}))
    return read_json_lines((run_dir / "out.jsonl").read_text())


def f1(gold: list[set[Any]], said: list[set[Any]]) -> float:
    right = sum(len(g & s) for g, s in zip(gold, said, strict=True))
    return 2 * right / max(sum(map(len, gold)) + sum(map(len, said)), 1)


def stretch(item: dict[str, Any]) -> tuple[int, int]:
    return item["start"], item["end"]


def test_triggers_are_learned_and_measured_on_the_predictions(runs, files):
    run_dir, _ = runs["EventTriggers"]
    measured = json.loads(done(["test", "--run_dir", str(run_dir)]).out)
    rows = read_json_lines((files / "test.jsonl").read_text())
    answers = predicted(run_dir, files / "test.jsonl")
    sides = [
        [{(e["subtype"], *stretch(e["nugget"])) for e in line["events"]} for line in side]
        for side in (rows, answers)
    ]
    assert measured["test_classification_f1"] == pytest.approx(f1(*sides))
    assert measured["test_classification_f1"] > 0.9
    bare = [[{event[1:] for event in line} for line in side] for side in sides]
    assert measured["test_identification_f1"] == pytest.approx(f1(*bare))
    assert {"test_f1_Look", "test_f1_Make"} <= measured.keys()


def test_arguments_of_given_triggers(runs, files):
    run_dir, _ = runs["EventArguments"]
    measured = json.loads(done(["test", "--run_dir", str(run_dir)]).out)
    rows = read_json_lines((files / "test.jsonl").read_text())
    events = [event for row in rows for event in row["events"]]
    answers = predicted(run_dir, files / "test.jsonl")
    assert [a["event"] for a in answers] == [event["subtype"] for event in events]
    assert [a["trigger_span"][0] for a in answers] == [e["nugget"]["start"] for e in events]
    sides = [
        [{(a["role"], *stretch(a)) for a in event["arguments"]} for event in side]
        for side in (events, answers)
    ]
    assert measured["test_classification_f1"] == pytest.approx(f1(*sides))
    assert measured["test_classification_f1"] > 0.6
    kept = read_json_lines((run_dir / "test_predictions.jsonl").read_text())
    gold = [{a["text"] for a in line["gold"]} for line in kept]
    assert gold == [{a["text"] for a in event["arguments"]} for event in events]


def test_predicted_triggers_are_a_file_of_events(runs, files):
    triggers, arguments = (runs[kind][0] for kind in KINDS)
    events = [e for line in predicted(triggers, files / "test.jsonl") for e in line["events"]]
    answers = predicted(arguments, triggers / "out.jsonl")
    assert len(answers) == len(events) > 0
    assert [a["trigger"] for a in answers] == [e["nugget"]["text"] for e in events]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_measure_the_same(kind, runs):
    given = {"run_dir": str(runs[kind][0])}
    wanted = json.loads(done(words("test", given)).out)
    two = {"trainer.devices": 2, "trainer.strategy": "ddp"}
    both = finish(launch(words("test", given | two)))
    assert both.code == 0, both.err
    assert json.loads(both.out) == pytest.approx(wanted, rel=1e-5)


def test_offsets_that_are_wrong(runs, files, tmp_path):
    """Refused with their place, skipped with a count, or looked for nearby."""
    rows = event_rows(6, 9)
    for row, key in ((rows[2], "nugget"), (rows[4], "arguments")):
        item = row["events"][0][key]
        item = item if key == "nugget" else item[0]
        item["start"] += 1
        item["end"] += 1
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = sum(len(row["events"]) for row in rows)
    given = {"data.test": str(tmp_path / "t.jsonl")}
    for kind, where, count, total, moved in (
        ("EventTriggers", "t.jsonl line 3: the nugget of", 1, len(rows), 1),
        ("EventArguments", "t.jsonl line 3 event 1: the nugget of", 2, events, 2),
    ):
        mine = given | {"run_dir": str(runs[kind][0])}
        failed = call(words("test", mine))
        assert failed.code == 2
        assert where in failed.err
        assert f"({count} of {total} examples" in failed.err
        skipped = json.loads(done(words("test", mine | {"data.bad_examples": "skip"})).out)
        assert skipped["test_skipped"] == count
        near = done(words("test", mine | {"model.task.offsets": "nearest"}))
        assert f": {moved} of " in near.err
        assert "were taken where they occur nearest" in near.err


def test_what_no_tag_can_say_is_counted_and_missed(runs, tmp_path):
    """Arguments out of reach, or inside a longer one, count in the measures."""
    (row,) = event_rows(1, 3)
    far = row["text"] + " the" * 9 + " lake"
    arguments = row["events"][0]["arguments"]
    start = arguments[0]["start"]
    inner = {"role": "What", "start": start, "end": start + len(arguments[0]["text"])}
    end = arguments[1]["end"]
    arguments[:] = [
        {"role": "Who", "start": start, "end": end, "text": far[start:end]},
        inner,
        {"role": "What", "start": len(far) - 4, "end": len(far), "text": "lake"},
    ]
    row = {"text": far, "events": row["events"][:1]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    given = {"run_dir": str(runs["EventArguments"][0]), "data.test": str(tmp_path / "t.jsonl")}
    run = done(words("test", given | {"model.task.reach": 5}))
    assert "t.jsonl': 2 of 3 arguments are further from their trigger than task.reach" in run.err
    kept = read_json_lines((runs["EventArguments"][0] / "test_predictions.jsonl").read_text())
    assert len(kept[0]["gold"]) == 3
    assert len(kept[0]["text"].split()) <= 11


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("EventTriggers", {"model.task.events": "list"}, ("line 1: no column 'list'",)),
        ("EventTriggers", {"model.task.kind": "sort"}, ("an event without 'sort'", "task.kind")),
        ("EventTriggers", {"model.task.trigger": "t"}, ("the t of", "model.task.trigger")),
        ("EventArguments", {"model.task.reach": -1}, ("task.reach is -1",)),
    ],
)
def test_mistakes(kind, more, said, files, bpe_path, tmp_path):
    failed = call(words("fit", options(kind, tmp_path / "run", files, bpe_path) | more))
    assert failed.code == 2, failed.err
    (line,) = failed.errors
    assert [part for part in said if part not in line] == [], line


def test_arguments_cannot_be_typed(runs):
    failed = call(["predict", "--run_dir", str(runs["EventArguments"][0]), "--text", "a river"])
    assert failed.code == 2
    assert "give a file with --data.predict" in failed.err
