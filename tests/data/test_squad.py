"""Questions: both layouts give the same, compressed or not; what cannot be used is said with its
place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from faults.files_qa import write_squad

from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.squad import Answer, Question, read_questions
from ptft_lightning.errors import UserError

CONTEXT = "The old river sees the sea. The river is long."
GOOD: dict[str, Any] = {
    **{"id": "q1", "question": "What sees the sea?", "context": CONTEXT},
    "answers": {"text": ["river", "The old river"], "answer_start": [8, 0]},
}


def read(path: Path, unanswerable: bool = False, labelled: bool = True) -> list[Question]:
    bad = BadExamples("stop")
    found = read_questions(str(path), labelled, unanswerable, bad)
    assert bad.found == []
    return found


def one_bad(tmp_path: Path, unanswerable: bool = False, **changed: Any) -> tuple[str, str]:
    """Place and reason of the second of two lines."""
    lines = [GOOD, {k: v for k, v in (GOOD | {"id": "q2"} | changed).items() if v is not ...}]
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bad = BadExamples("skip")
    assert len(read_questions(str(file), True, unanswerable, bad)) == 1
    (found,) = bad.found
    return found


@pytest.mark.parametrize("unanswerable", [False, True])
def test_both_layouts_give_the_same(tmp_path: Path, unanswerable: bool) -> None:
    write_squad(tmp_path, unanswerable)
    nested = read(tmp_path / "train.json", unanswerable)
    flat = read(tmp_path / "train.jsonl", unanswerable)

    def content(questions: list[Question]) -> list[Any]:
        return [(q.id, q.text, q.pair, q.answers) for q in questions]

    assert content(nested) == content(flat)
    assert len(nested) == 80
    assert nested[3].place == f"{tmp_path}/train.json data[0].paragraphs[1].qas[1]"
    assert flat[3].place == f"{tmp_path}/train.jsonl line 4"
    assert {len(q.answers or ()) for q in nested} == ({0, 1, 2} if unanswerable else {1, 2})
    for question in nested:
        for answer in question.answers or ():
            assert question.text[answer.start :].startswith(answer.text)
    (tmp_path / "z.json.gz").write_bytes(gzip.compress((tmp_path / "train.json").read_bytes()))
    assert content(read(tmp_path / "z.json.gz", unanswerable)) == content(nested)


def test_what_an_example_says(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\ufeff" + json.dumps(GOOD) + "\n\n")
    (question,) = read(tmp_path / "q.jsonl")
    assert question.answers == (Answer("river", 8), Answer("The old river", 0))
    assert question.said == {"id": "q1", "question": "What sees the sea?"}
    assert question.gold == ["river", "The old river"]
    (bare,) = read(tmp_path / "q.jsonl", labelled=False)
    assert (bare.answers, bare.gold) == (None, None)


WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "shifted": (
        {"answers": {"text": ["river"], "answer_start": [9]}},
        ("the answer 'river' is not at character 9, where 'iver ' stands", "nearest one is at 8"),
    ),
    "shifted, nearer to the second": (
        {"answers": {"text": ["river"], "answer_start": [30]}},
        ("nearest one is at 32",),
    ),
    "negative": (
        {"answers": {"text": ["The"], "answer_start": [-3]}},
        ("is not at character -3", "nearest one is at 0"),
    ),
    "elsewhere": (
        {"answers": {"text": ["lake"], "answer_start": [8]}},
        ("the answer 'lake' is not at character 8", "which the context does not have"),
    ),
    "empty answer": ({"answers": {"text": [""], "answer_start": [0]}}, ("an answer is ''",)),
    "blank answer": ({"answers": {"text": [" "], "answer_start": [3]}}, ("an answer is ' '",)),
    "no text": ({"answers": [{"answer_start": 3}]}, ("it needs a 'text' and an 'answer_start'",)),
    "a word for a place": (
        {"answers": [{"text": "river", "answer_start": "8"}]},
        ("it needs a 'text' and an 'answer_start'",),
    ),
    "uneven lists": (
        {"answers": {"text": ["river"], "answer_start": []}},
        ("'text' and 'answer_start', equally long",),
    ),
    "a word for answers": ({"answers": "river"}, ("the answers are 'river': give a list",)),
    "no question": ({"question": ...}, ("no 'question', only 'id', 'context', 'answers'",)),
    "no context": ({"context": None}, ("no 'context', only ",)),
    "no id": ({"id": ...}, ("no 'id', only ",)),
    "no answers": ({"answers": ...}, ("no 'answers', only ",)),
    "empty question": ({"question": " \t"}, ("the question is ' \\t': give a text",)),
    "empty context": ({"context": ""}, ("the context is '': give a text",)),
    "a number for a question": ({"question": 3}, ("the question is 3: give a text",)),
    "no answer in 1.1": (
        {"answers": {"text": [], "answer_start": []}},
        ("no answer: where that is meant (SQuAD 2.0), set task.unanswerable true",),
    ),
    "half a surrogate": ({"question": "\ud800?"}, ("half of a surrogate pair",)),
}


def test_questions_may_share_an_id(tmp_path: Path) -> None:
    """As in TyDi QA's files; an id only names an answer in what is written."""
    (tmp_path / "q.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD) + "\n")
    assert [q.id for q in read(tmp_path / "q.jsonl")] == ["q1", "q1"]


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_used_is_said(what: str, tmp_path: Path) -> None:
    changed, parts = WRONG[what]
    place, reason = one_bad(tmp_path, **changed)
    assert place == f"{tmp_path / 'q.jsonl'} line 2"
    assert [part for part in parts if part not in reason] == [], reason


def test_answers_and_is_impossible_must_agree(tmp_path: Path) -> None:
    none = {"text": [], "answer_start": []}
    assert "and yet it has answers" in one_bad(tmp_path, True, is_impossible=True)[1]
    assert "is_impossible is false" in one_bad(tmp_path, True, is_impossible=False, answers=none)[1]


def test_records_that_are_none_are_counted(tmp_path: Path) -> None:
    """At every level of SQuAD's layout."""
    good = {"context": CONTEXT, "qas": [{"id": 7, "question": "Why?", "answers": [], "x": 1}]}
    data = ["no article", {"paragraphs": ["no paragraph", good, {"qas": [3]}, {"context": "x"}]}]
    (tmp_path / "q.json").write_text(json.dumps({"data": data}))
    bad = BadExamples("skip")
    (question,) = read_questions(str(tmp_path / "q.json"), False, False, bad)
    assert (question.id, question.pair) == ("7", "Why?")
    places = [place.removeprefix(f"{tmp_path}/q.json ") for place, _ in bad.found]
    assert places == [
        *("data[0].paragraphs[0].qas[0]", "data[1].paragraphs[0].qas[0]"),
        *("data[1].paragraphs[2].qas[0]", "data[1].paragraphs[3].qas[0]"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.json", b'{"data": [', "not JSON"),
        ("q.json", b'{"version": "1.1"}', "no list 'data' of articles"),
        ("q.json", b"[]", "no list 'data' of articles"),
        ("q.json", b'{"data": []}', "holds no questions"),
        ("q.jsonl", b'{"id": \n', "line 1: not JSON"),
        ("q.jsonl", "é\n".encode("latin-1"), "is not UTF-8"),
        ("q.json.gz", gzip.compress(b'{"data": []}' * 99, mtime=0)[:-9], "is damaged"),
        ("q.csv", b"id,question\n", "expected SQuAD's .json, or .jsonl"),
        ("q.jsonl", b"\n", "holds no questions"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read(tmp_path / name)
