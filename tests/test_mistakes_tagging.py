"""What is wrong with files of tagged words is one line that names value, place and fix."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.files_tagging import write_roles, write_tagged
from faults.kit import BACKBONE, call, done, finetune, read_json_lines, words
from test_mistakes import NOISE

# What a run may say before it is refused.
NEWS = re.compile(r"inherited: |'.*': \d+ of \d+ |model: |loaded from |optimizer: |bundle: ")
GOOD = {"tokens": ["the", "sea", "sleeps"], "tags": ["O", "B-WATER", "O"]}
FRAME = {"predicate": 2, "args": [["ARG0", 0, 1]]}


def roles(*frames: dict[str, Any], tokens: Any = ("the", "sea", "sleeps")) -> str:
    good = {"tokens": GOOD["tokens"], "frames": [FRAME]}
    bad = {"tokens": list(tokens), "frames": list(frames)}
    return json.dumps(good) + "\n" + json.dumps(bad) + "\n"


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# Name and content of a training file, further settings, what must be said.
TAGGING: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "tags that do not line up": (
        "t.jsonl",
        lines(GOOD, GOOD | {"tags": ["O"]}),
        {},
        ("t.jsonl line 2", "3 tokens and 1 tags", "1 of 2 examples", "data.bad_examples skip"),
    ),
    "a row with another number of columns": (
        "t.conll",
        "a O\nb\n\nc B-X\n",
        {},
        ("t.conll line 2", "1 columns", "the first line has 2", "data.bad_examples skip"),
    ),
    "I- without B-": (
        "t.conll",
        "a O\nb I-X\n\nc B-X\n",
        {"model.task.ill_formed": "refuse"},
        ("t.conll line 1", "tag 'I-X' of word 2, 'b'", "BIO", "task.ill_formed repair"),
    ),
    "a scheme nobody knows": (
        "t.conll",
        "a X-A\nb B-A\n",
        {},
        ("t.conll'", "'X-A' is neither O nor a prefix and a kind", "task.scheme none"),
    ),
    "a scheme that is another": (
        "t.conll",
        "a B-A\nb E-A\n",
        {"model.task.scheme": "BIO"},
        ("t.conll'", "begin with E, which BIO does not know", "task.scheme auto"),
    ),
    "a name of no scheme": (
        "t.conll",
        "a B-A\n",
        {"model.task.scheme": "IOBX"},
        ("model.task.scheme is 'IOBX'", "'BIOES'"),
    ),
    "one tag": ("t.conll", "a NN\nb NN\n", {}, ("two tags or more", "['NN']")),
    "overlapping spans": (
        "t.jsonl",
        lines({"text": "the sea", "label": [[0, 7, "A"], [4, 7, "B"]]}),
        {},
        ("t.jsonl line 1", "spans 0 to 7 (A) and 4 to 7 (B) overlap", "keep one"),
    ),
    "a span beyond the text": (
        "t.jsonl",
        lines({"text": "the sea", "label": [[4, 8, "A"]]}, {"text": "a", "label": []}),
        {},
        ("t.jsonl line 1", "span 4 to 8 (A)", "text of 7 characters", "1 of 2 examples"),
    ),
    "borders inside words": (
        "t.jsonl",
        lines({"text": "a sea-wood", "label": [[2, 5, "A"]]}),
        {},
        ("t.jsonl'", "1 of 1 entities (100.0%)", "inside a word", "task.split signs"),
    ),
    "an empty sentence": (
        "t.jsonl",
        lines(GOOD, {"tokens": [], "tags": []}),
        {},
        ("t.jsonl line 2", "a sentence without tokens", "data.bad_examples skip"),
    ),
    "an empty file": ("t.conll", "\n\n", {}, ("t.conll' holds no sentences",)),
    "no tag column": ("t.conll", "a\nb\n", {}, ("t.conll'", "task.tag_column")),
    "a column beyond": (
        "t.conll",
        "a O\n",
        {"model.task.tag_column": 3},
        ("t.conll' has 2 columns", "task.tag_column 3"),
    ),
    "no room": (
        "t.conll",
        "a O\nb B-A\n",
        {"data.max_length": 4, "model.task.overlap": 0.7},
        ("task.overlap is 0.7", "0 to 0.5"),
    ),
    "a metric of no tagging": (
        "t.conll",
        "a O\nb B-A\n",
        {"model.task.monitor": "bleu"},
        ("model.task.monitor is 'bleu'", "'macro_f1'"),
    ),
}
ROLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "a predicate outside the sentence": (
        roles({"predicate": 3, "args": []}),
        ("t.jsonl line 2", "predicate 3 is outside the sentence of 3 words", "1 of 2 examples"),
    ),
    "a predicate that is a word": (
        roles({"predicate": "sleeps", "args": []}),
        ("t.jsonl line 2", "no number of a word under 'predicate'"),
    ),
    "an argument outside the sentence": (
        roles(FRAME, {"predicate": 2, "args": [["ARG0", 1, 3]]}),
        ("t.jsonl line 2 frame 2", "['ARG0', 1, 3] is outside the sentence of 3 words"),
    ),
    "arguments that overlap": (
        roles({"predicate": 2, "args": [["ARG0", 0, 1], ["ARG1", 1, 1]]}),
        ("t.jsonl line 2", "arguments ARG0 and ARG1 share word 1"),
    ),
    "no arguments": (roles({"predicate": 2}), ("t.jsonl line 2", "no list under 'args'")),
    "half an argument": (
        roles({"predicate": 2, "args": [["ARG0", 1]]}),
        ("t.jsonl line 2", "is not [role, first word, last word]"),
    ),
    "no words": (roles(FRAME, tokens=()), ("t.jsonl line 2", "no words under 'tokens'")),
    "no predicates": (
        lines({"tokens": ["a"], "frames": []}),
        ("t.jsonl' holds no predicates",),
    ),
}


@pytest.fixture
def train(tmp_path: Path, wordpiece_path: Path) -> Callable[..., Any]:
    def of(task: str, name: str, text: str, **more: Any) -> Any:
        (tmp_path / name).write_text(text)
        options = finetune(tmp_path / "run", tmp_path, tmp_path, model__task=task)
        options |= {"model.init_from": None, "model.backbone": BACKBONE}
        options |= {"data.tokenizer": str(wordpiece_path), "data.train": str(tmp_path / name)}
        options |= {"data.validation": str(tmp_path / name), "data.test": None}
        return call(words("fit", options | more))

    return of


def assert_refused(run: Any, parts: tuple[str, ...]) -> None:
    assert run.code == 2, run.err
    *news, last = run.err.splitlines()
    assert last.startswith("error: ")
    assert [line for line in news if not NEWS.match(line)] == []
    assert NOISE.search(last) is None, last
    assert [part for part in parts if part not in last] == [], last


@pytest.mark.parametrize("case", TAGGING)
def test_tagging_refuses_in_one_line(case, train):
    name, text, more, parts = TAGGING[case]
    assert_refused(train("Tagging", name, text, **more), parts)


@pytest.mark.parametrize("case", ROLES)
def test_roles_are_refused_in_one_line(case, train):
    text, parts = ROLES[case]
    assert_refused(train("SemanticRoles", "t.jsonl", text), parts)


def test_bad_sentences_are_left_out_and_counted(train, tmp_path):
    text = lines(*[GOOD] * 5, GOOD | {"tags": ["O"]}, {"tokens": [], "tags": []}, *[GOOD] * 5)
    more = {"data.bad_examples": "skip", "trainer.max_epochs": 1}
    run = train("Tagging", "t.jsonl", text, **more)
    assert run.code == 0, run.err
    said = "t.jsonl': 2 of 12 examples (16.7%) left out, 3 tokens and 1 tags"
    assert said in run.err
    file = str(tmp_path / "t.jsonl")
    out = done(["test", "--run_dir", str(tmp_path / "run"), "--data.test", file]).out
    assert json.loads(out)["test_skipped"] == 2


def test_a_typed_sentence_needs_one_predicate(train, tmp_path):
    many = roles(FRAME) * 3
    assert train("SemanticRoles", "t.jsonl", many, **{"trainer.max_epochs": 1}).code == 0
    for text in ("The sea sleeps", "The [sea] [sleeps]", "The [sea sleeps]"):
        run = call(["predict", "--run_dir", str(tmp_path / "run"), "--text", text])
        assert run.code == 2
        last = run.err.splitlines()[-1]
        assert last.startswith("error: --text 1: put the predicate, one word, in brackets")


def test_a_bundle_keeps_how_its_words_are_read(tmp_path, wordpiece_path):
    """Task settings of the bundle alone decide; those that shape a head cannot change."""
    write_tagged(tmp_path)
    write_roles(tmp_path)
    options = finetune(tmp_path / "run", tmp_path, tmp_path, model__task="Tagging")
    options |= {"model.init_from": None, "model.backbone": BACKBONE, "model.task.crf": True}
    options |= {"data.tokenizer": str(wordpiece_path), "trainer.max_epochs": 1}
    options |= {f"data.{s}": str(tmp_path / f"{s}.conll") for s in ("train", "validation", "test")}
    done(words("fit", options))
    more = {"run_dir": str(tmp_path / "again"), "model.init_from": str(tmp_path / "run")}
    more |= {"model.backbone": None, "data.tokenizer": None, "model.task.crf": False}
    run = call(words("fit", options | more))
    assert run.code == 2
    assert "was tuned with model.task.crf True, yours is False" in run.err.splitlines()[-1]
    out = done(["predict", "--run_dir", str(tmp_path / "run" / "bundle"), "--text", "a sea"]).out
    assert read_json_lines(out)[0]["tokens"] == ["a", "sea"]
