"""Events in examples and tokens: what is marked, in Chinese too; places by other conventions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptft_lightning.data.examples import Columns
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.event_arguments import EventArguments, Triggered
from ptft_lightning.tasks.events import EventTriggers, event_scores
from ptft_lightning.tasks.marking import signs_of


def read(task: EventTriggers, rows: list[dict[str, Any]], tmp_path: Path) -> list[Any]:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    return task.read(str(tmp_path / "t.jsonl"), Columns(), True, BadExamples("stop"))


CHINESE = {
    "text": "昨天大地公司在年中收购了国家子公司。",
    "event_list": [
        {
            "event_type": "收购",
            "trigger": "收购",
            "trigger_start_index": 9,
            "arguments": [
                {"role": "买方", "argument": "大地公司", "argument_start_index": 2},
                {"role": "标的", "argument": "国家子公司", "argument_start_index": 12},
            ],
        }
    ],
}
DUEE: dict[str, Any] = {"events": "event_list", "kind": "event_type", "trigger": "trigger"}


def test_chinese_is_tagged_by_character(tmp_path: Path) -> None:
    (document,) = read(EventTriggers(**DUEE), [CHINESE], tmp_path)
    assert document.tokens == [*CHINESE["text"]]
    assert document.labels == ["O"] * 9 + ["B-收购", "I-收购"] + ["O"] * 7
    (event,) = read(EventArguments(**DUEE, reach=7), [CHINESE], tmp_path)
    assert event.text == CHINESE["text"][2:18]
    tags = ["B-买方", *["I-买方"] * 3, *["O"] * 6, "B-标的", *["I-标的"] * 4, "O"]
    assert event.labels == tags
    assert event.said["trigger_span"] == [9, 11]
    assert [a["text"] for a in event.gold] == ["大地公司", "国家子公司"]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_trigger_stands_between_signs(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    task = EventArguments(**DUEE, presplit=True)
    examples = read(task, [CHINESE], tmp_path)
    labels = task.schema(examples)
    (item,) = task.encode(examples, labels, tokenizer, 64)
    (sign,) = signs_of(tokenizer, 1)
    plain = [i for i in item.tokens if [i] != sign]
    pieces = [tokenizer.begin, *tokenizer.encode(["收购"])[0]]
    pieces += [i for c in CHINESE["text"] for i in tokenizer.encode([c])[0]]
    assert plain == [*pieces, tokenizer.end]
    assert sum([i] == sign for i in item.tokens) == 4
    # Every word is read at its own tokens, not at a sign.
    for number, (start, end) in zip(
        item.targets["number"].tolist(), item.targets["word"].tolist(), strict=True
    ):
        own = tokenizer.encode([CHINESE["text"][number]])[0]
        assert item.tokens[start:end] == own
    assert [labels[i] for i in item.targets["label"]] == examples[0].labels


def test_windows_far_from_the_trigger_know_its_kind(bpe: Tokenizer, tmp_path: Path) -> None:
    text = "the river reads " + "stone " * 60
    event = {"subtype": "Look", "nugget": {"start": 10, "end": 15, "text": "reads"}}
    who = {"role": "Who", "start": 4, "end": 9, "text": "river"}
    row = {"text": text, "events": [event | {"arguments": [who]}]}
    task = EventArguments(reach=100)
    examples = read(task, [row], tmp_path)
    windows = task.encode(examples, task.schema(examples), bpe, 40)
    assert len(windows) > 2
    (sign,) = signs_of(bpe, 1)
    before = [bpe.begin, *sign, *bpe.encode(["Look"])[0], *sign]
    assert all(w.tokens[: len(before)] == before and len(w.tokens) <= 40 for w in windows)
    seen = np.concatenate([w.targets["number"] for w in windows])
    assert sorted(seen.tolist()) == list(range(len(examples[0].words)))


def test_scores_of_places_and_kinds() -> None:
    """Counted by hand: 3 wanted, 4 said, 2 at the right place, 1 of the right kind."""
    gold = [[("A", 0, 2), ("B", 4, 5)], [("A", 1, 2)]]
    said = [[("A", 0, 2), ("A", 4, 5), ("B", 7, 8)], [("A", 1, 3)]]
    scores = event_scores(gold, said)
    assert scores["identification_precision"] == pytest.approx(2 / 4)
    assert scores["identification_recall"] == pytest.approx(2 / 3)
    assert scores["identification_f1"] == pytest.approx(4 / 7)
    assert scores["classification_f1"] == pytest.approx(2 / 7)
    assert scores["f1_A"] == pytest.approx(2 / 5)


def test_events_of_a_document_are_held_out_together(tmp_path: Path) -> None:
    """The texts around its triggers overlap."""
    text = "one two three four five six"
    nuggets = [{"start": 0, "end": 3, "text": "one"}, {"start": 24, "end": 27, "text": "six"}]
    row = {"text": text, "events": [{"subtype": "X", "nugget": n} for n in nuggets]}
    one, two = read(EventArguments(reach=1), [row], tmp_path)
    assert (one.text, two.text) == ("one two", "five six")
    assert one.group == two.group == text


def test_an_example_knows_its_document(tmp_path: Path) -> None:
    text = "one two three four five six"
    nugget = {"start": 8, "end": 13, "text": "three"}
    row = {"text": text, "events": [{"subtype": "X", "nugget": nugget}]}
    (example,) = read(EventArguments(reach=1), [row], tmp_path)
    assert isinstance(example, Triggered)
    assert (example.text, example.offset, example.place[-14:]) == (
        *("two three four", 4),
        "line 1 event 1",
    )
    assert example.labels == ["O"] * 3
    blank = {"start": 3, "end": 4, "text": " "}
    row = {"text": text, "events": [{"subtype": "X", "nugget": blank}]}
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n")
    bad = BadExamples("stop")
    assert EventArguments().read(str(tmp_path / "b.jsonl"), Columns(), True, bad) == []
    with pytest.raises(UserError, match="at 3 to 4 is blank"):
        bad.settle("b.jsonl", 0)
