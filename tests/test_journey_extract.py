"""Plain text to triples and to events, by two runs one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults.files_events import event_rows, write_events
from faults.files_relations import COUNTS, LABELS, relation_rows, write_relations
from faults.kit import BACKBONE, call, done, finetune, read_json_lines, words


def fit(run_dir: Path, files: Path, bpe_path: Path, task: str, **more: Any) -> str:
    given = finetune(run_dir, run_dir, files, data__tokenizer=str(bpe_path), data__audit=None)
    given |= {"model.init_from": None, "model.task": task, "data.max_length": 64}
    given |= {"model.backbone": {**BACKBONE, "max_length": 64, "dropout": 0.0}}
    done(words("fit", given | {"trainer.max_epochs": 12} | more))
    return str(run_dir)


def tagged(row: dict[str, Any]) -> dict[str, Any]:
    """Head and tail of a relation as tags of its words."""
    tags = ["O"] * len(row["text"])
    for name, kind in (("head", "WATER"), ("tail", "LAND")):
        start, end = row[name]
        tags[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
    return {"tokens": row["text"], "tags": tags}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bpe_path: Path) -> dict[str, str]:
    at = tmp_path_factory.mktemp("extract")
    for name in ("relations", "tags", "events"):
        (at / name).mkdir()
    given = write_relations(at / "relations")
    for seed, (split, count) in enumerate(COUNTS.items()):
        lines = [json.dumps(tagged(row)) + "\n" for row in relation_rows(count, seed)]
        (at / "tags" / f"{split}.jsonl").write_text("".join(lines))
    write_events(at / "events")
    events = at / "events"
    return {
        "relations": fit(at / "r", at / "relations", bpe_path, "RelationExtraction", **given),
        "entities": fit(at / "t", at / "tags", bpe_path, "Tagging"),
        "triggers": fit(at / "e", events, bpe_path, "EventTriggers"),
        "arguments": fit(at / "a", events, bpe_path, "EventArguments"),
    }


def texts_of(rows: list[dict[str, Any]], file: Path) -> list[str]:
    texts = [" ".join(r["text"]) if isinstance(r["text"], list) else r["text"] for r in rows]
    file.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    return texts


def test_triples(runs, tmp_path):
    # Entities of one word: where two of a kind end is hard to learn in a few steps.
    rows = [row for row in relation_rows(200, 77) if row["tail"][1] - row["head"][0] == 3][:20]
    texts = texts_of(rows, tmp_path / "t.jsonl")
    given = {name: runs[name] for name in ("entities", "relations")}
    given |= {"texts": str(tmp_path / "t.jsonl"), "column": "body", "accelerator": "cpu"}
    out = tmp_path / "o.jsonl"
    run = done(words("extract", given | {"output": str(out)}))
    lines = read_json_lines(out.read_text())
    assert [line["text"] for line in lines] == texts
    assert " triples in 20 texts" in run.err
    wanted, said = set(), set()
    for number, (row, line) in enumerate(zip(rows, lines, strict=True)):
        head, tail = (" ".join(row["text"][slice(*row[name])]) for name in ("head", "tail"))
        if row["label"] == LABELS[1]:
            head, tail = tail, head
        if row["label"] != "Other":
            wanted.add((number, head, "Feeds", tail))
        for triple in line["triples"]:
            for end in ("head", "tail"):
                entity = triple[end]
                assert line["text"][entity["start"] : entity["end"]] == entity["text"]
            assert 0 < triple["probability"] <= 1
            names = (triple["head"]["text"], triple["relation"], triple["tail"]["text"])
            said.add((number, *names))
    assert len(wanted & said) > 0.6 * len(wanted | said)
    # The likeliest only, then only what stands side by side.
    fewer = read_json_lines(done(words("extract", given | {"threshold": 1.0})).out)
    assert [line["triples"] for line in fewer] == [[]] * 20
    none = read_json_lines(done(words("extract", given | {"distance": 0})).out)
    assert [line["triples"] for line in none] == [[]] * 20
    assert [line["entities"] for line in none] == [line["entities"] for line in lines]


def test_a_text_with_other_line_ends_is_one_text(runs, tmp_path):
    (tmp_path / "t.txt").write_text("a river\u2028in the old\x0bland\nsnow\n")
    given = {name: runs[name] for name in ("entities", "relations")} | {"accelerator": "cpu"}
    lines = read_json_lines(done(words("extract", given | {"texts": str(tmp_path / "t.txt")})).out)
    assert [line["text"] for line in lines] == ["a river\u2028in the old\x0bland", "snow"]


def test_events(runs, tmp_path):
    rows = event_rows(8, 78)
    texts = texts_of(rows, tmp_path / "t.jsonl")
    given = {name: runs[name] for name in ("triggers", "arguments")} | {"accelerator": "cpu"}
    lines = read_json_lines(done(words("extract", given | {"text": json.dumps(texts)})).out)
    wanted = [[(e["subtype"], e["nugget"]["start"]) for e in row["events"]] for row in rows]
    said = [[(e["type"], e["trigger"]["start"]) for e in line["events"]] for line in lines]
    right = sum(len({*w} & {*s}) for w, s in zip(wanted, said, strict=True))
    assert right > 0.8 * sum(map(len, wanted))
    some = [(line, a) for line in lines for e in line["events"] for a in e["arguments"]]
    assert some
    assert all(line["text"][a["start"] : a["end"]] == a["text"] for line, a in some)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"relations": None}, ("what to extract?", "--relations RUN")),
        ({"text": None}, ("of what?", "--texts FILE")),
        ({"distance": -1}, ("--distance is -1",)),
        ({"threshold": 2.0}, ("--threshold 2.0",)),
        ({"entities": "relations"}, ("is a run of 'relations': give one of 'tagging'",)),
    ],
)
def test_mistakes(more, said, runs):
    given = {"entities": runs["entities"], "relations": runs["relations"], "text": "a river"}
    more = {k: runs.get(v, v) if isinstance(v, str) else v for k, v in more.items()}
    failed = call(words("extract", given | more))
    assert failed.code == 2
    (line,) = failed.errors
    assert [part for part in said if part not in line] == [], line
