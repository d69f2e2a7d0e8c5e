"""Files of conversations: every format gives the same, mistakes have a place and a count."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ptft_lightning.data.conversations import Conversation, Layout, Turn, read_conversations
from ptft_lightning.data.examples import Columns
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.errors import UserError

ASKED = [Turn("user", "Where is the river?")]
TALK = [Turn("user", "Hello"), Turn("assistant", "Hi"), Turn("user", "Where?")]


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(path: str, format: Any, labelled: bool = True, **more: Any) -> list[Conversation]:
    bad = BadExamples("stop")
    found = read_conversations(path, Layout(format, Columns(), **more), labelled, bad)
    bad.settle(path, len(found))
    return found


def said(format: str, talk: bool) -> dict[str, Any]:
    """One of the two conversations with its answer, in a format."""
    texts = [turn.content for turn in (TALK if talk else ASKED)] + ["North"]
    if format == "turns":
        return {"turns": texts}
    names = ("from", "value") if format == "sharegpt" else ("role", "content")
    roles = ("human", "gpt") if format == "sharegpt" else ("user", "assistant")
    turns = [dict(zip(names, (roles[i % 2], t), strict=True)) for i, t in enumerate(texts)]
    return {"conversations" if format == "sharegpt" else "messages": turns}


@pytest.mark.parametrize("format", ["turns", "sharegpt", "messages"])
def test_formats_of_several_turns_agree(format, tmp_path):
    path = write(tmp_path / "a.jsonl", said(format, talk=False), said(format, talk=True))
    one, several = read(path, format)
    assert [list(one.turns), list(several.turns)] == [ASKED, TALK]
    assert (one.label, several.label) == ("North", "North")
    assert one.said == {"source": "Where is the river?"}
    assert several.said["source"][1] == {"role": "assistant", "content": "Hi"}
    assert several.place == f"{path} line 2"


@pytest.mark.parametrize(
    ("format", "record"),
    [
        ("columns", {"text": "Where is the river?", "label": "North"}),
        ("alpaca", {"instruction": "Where is the river?", "input": "", "output": "North"}),
    ],
)
def test_formats_of_one_turn_agree(format, record, tmp_path):
    (one,) = read(write(tmp_path / "a.jsonl", record), format)
    assert (list(one.turns), one.label, one.references) == (ASKED, "North", ("North",))


def test_alpaca_s_input_follows_its_instruction(tmp_path):
    record = {"instruction": "Translate", "input": "the sea", "output": "la mer"}
    (one,) = read(write(tmp_path / "a.jsonl", record), "alpaca")
    assert one.turns == (Turn("user", "Translate\n\nthe sea"),)


def test_a_system_turn_stands_first(tmp_path):
    record = {"system": "Be brief.", **said("sharegpt", talk=False)}
    (one,) = read(write(tmp_path / "a.jsonl", record), "sharegpt")
    assert one.turns == (Turn("system", "Be brief."), *ASKED)


def test_lines_of_parallel_files_belong_together(tmp_path):
    (tmp_path / "train.en.gz").write_bytes(gzip.compress(b"one\r\ntwo\x0bhalf\n"))
    (tmp_path / "train.de.gz").write_bytes(gzip.compress(b"eins\nzwei\n"))
    found = read(str(tmp_path / "train.en.gz"), "parallel", parallel=(".en", ".de"))
    assert [(e.text, e.label) for e in found] == [("one", "eins"), ("two\x0bhalf", "zwei")]
    (tmp_path / "train.de.gz").unlink()
    alone = read(str(tmp_path / "train.en.gz"), "parallel", False, parallel=(".en", ".de"))
    assert [e.label for e in alone] == [None, None]


def test_further_references(tmp_path):
    rows = [{"text": "a", "label": "b", "refs": ["c", "d"]}, {"text": "a", "label": "b"}]
    path = write(tmp_path / "a.jsonl", *rows)
    first, second = read(path, "columns", references="refs")
    assert (first.references, first.gold) == (("b", "c", "d"), ["b", "c", "d"])
    assert (second.references, second.gold) == (("b",), "b")


def test_a_list_of_answers_is_the_first_and_further_references(tmp_path):
    (found,) = read(write(tmp_path / "a.jsonl", {"text": "a", "label": ["b", "c"]}), "columns")
    assert (found.label, list(found.references)) == ("b", ["b", "c"])


def test_a_file_to_predict_needs_no_answers(tmp_path):
    open_ended = {"messages": said("messages", talk=True)["messages"][:-1]}
    path = write(tmp_path / "a.jsonl", open_ended, said("messages", talk=True))
    waiting, answered = read(path, "messages", labelled=False)
    assert (list(waiting.turns), waiting.label) == (TALK, None)
    assert (list(answered.turns), answered.label) == (TALK, "North")
    (next_one,) = read(write(tmp_path / "b.jsonl", {"turns": ["a", "b"]}), "turns", labelled=False)
    assert [turn.role for turn in next_one.turns] == ["assistant", "user"]


ROLE = "only user, human, assistant, gpt, chatgpt, model, bot, system are known"


@pytest.mark.parametrize(
    ("format", "record", "reason"),
    [
        ("columns", {"text": "a", "label": " "}, "the answer is empty"),
        ("columns", {"body": "a"}, "no 'text', there are ['body']"),
        ("columns", {"text": ["a"], "label": "b"}, "'text' is \"['a']\", a list: give a text"),
        ("columns", {"text": "a", "label": {"b": 1}}, "a dict: give a text"),
        ("alpaca", {"instruction": "a", "output": ""}, "the answer is empty"),
        ("alpaca", {"instruction": "a", "output": None}, "'output' is null: give a text"),
        ("alpaca", {"instruction": "a"}, "no 'output', there are ['instruction']"),
        ("sharegpt", {"conversations": []}, "'conversations' is []: give a list of turns"),
        ("alpaca", {"instruction": "a", "output": {"k": 1}}, "a dict: give a text"),
        ("messages", {"messages": [{"role": ["x"], "content": "a"}]}, "role ['x']"),
        ("turns", {"turns": ["a"]}, "1 turns: give 2 or more"),
        ("turns", {"turns": ["a", ""]}, "the answer is empty"),
        ("turns", {"turns": ["a", 3]}, "a turn is '3': give texts"),
        ("messages", {"text": "a"}, "no list 'messages', there are ['text']"),
        ("messages", {"messages": [{"role": "user", "content": "a"}]}, "the last turn is the user"),
        ("messages", {"messages": [{"role": "system", "content": "a"}]}, "no user turn"),
        ("messages", {"messages": [{"role": "tool", "content": "a"}]}, f"role 'tool': {ROLE}"),
        ("messages", {"messages": [{"role": "user", "content": ["a"]}]}, "has no text 'content'"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": "a"}]}, "it must be of 'user'"),
        (
            "messages",
            {"messages": [{"role": role, "content": "a"} for role in ("user", "user")]},
            "turn 2 is of 'user', it must be of 'assistant'",
        ),
        (
            "messages",
            {"messages": [{"role": r, "content": " "} for r in ("user", "assistant", "user")]},
            "the answer is empty",
        ),
    ],
)
def test_what_cannot_be_used_is_told_with_place_and_count(format, record, reason, tmp_path):
    good = {"text": "a", "label": "b", "instruction": "a", "output": "b"}
    good |= said("turns", talk=True) | said("messages", talk=True) | said("sharegpt", talk=True)
    path = write(tmp_path / "a.jsonl", good, record, record)
    with pytest.raises(UserError) as stopped:
        read(path, format)
    assert str(stopped.value).startswith(f"{path} line 2: ")
    assert reason in str(stopped.value)
    assert "2 of 3 examples (66.7%)" in str(stopped.value)


@pytest.mark.parametrize(("en", "de"), [("a\nb\n", "a\n"), ("a\n", "a\nb\n")])
def test_parallel_files_of_different_lengths(en, de, tmp_path):
    (tmp_path / "t.en").write_text(en)
    (tmp_path / "t.de").write_text(de)
    longer, shorter = ("t.en", "t.de") if len(en) > len(de) else ("t.de", "t.en")
    with pytest.raises(
        UserError, match=rf"{longer}' has more lines than '.*{shorter}', which has 1"
    ):
        read(str(tmp_path / "t.en"), "parallel", parallel=(".en", ".de"))


def test_a_name_without_what_is_to_be_replaced(tmp_path):
    (tmp_path / "train.fr").write_text("a\n")
    with pytest.raises(UserError, match=r"'train.fr' has no '.en' to be replaced by '.de'"):
        read(str(tmp_path / "train.fr"), "parallel", parallel=(".en", ".de"))
