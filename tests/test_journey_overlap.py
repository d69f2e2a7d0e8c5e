"""Test examples are looked for in the pretraining text before a score is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from faults.kit import call, done, finetune, pretrain, read_json_lines, words

from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.tokenizer import Tokenizer

PLANTED = (3, 7, 11)


def text(number: int) -> str:
    """Words that no other text has in this order."""
    return " ".join(f"{a}{number}{b}" for a in "xyzw" for b in "pqr") + " river"


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory, bpe: Tokenizer, bpe_path: Path) -> Path:
    """A run of each phase; three test examples stand in the pretraining text."""
    at = tmp_path_factory.mktemp("overlap")
    corpus = [f"before it. {text(i)}, and after" for i in PLANTED]
    corpus += [f"{text(i + 100)} {text(i + 300)}" for i in range(60)]
    (at / "corpus.txt").write_text("\n\n".join(corpus) + "\n")
    prepare_store([str(at / "corpus.txt")], bpe, at / "store", validation_share=0.0)
    for name, count in (("train", 20), ("validation", 20), ("test", 15)):
        first = {"train": 500, "validation": 600, "test": 0}[name]
        rows = [{"text": text(first + i), "label": "ab"[i % 2]} for i in range(count)]
        (at / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done(words("fit", pretrain(at / "one", at / "store", bpe_path, trainer__max_steps=2)))
    done(words("fit", finetune(at / "two", at / "one", at, trainer__max_epochs=1)))
    return at


@pytest.fixture
def run(at: Path, tmp_path: Path) -> Path:
    """A copy of the run of phase two, with nothing kept from an earlier test."""
    shutil.copytree(at / "two", tmp_path / "two")
    return tmp_path / "two"


def test_a_test_says_how_much_of_it_was_seen(run):
    tested = done(["test", "--run_dir", str(run)])
    results = json.loads(tested.out)
    assert results["test_contaminated"] == 3
    assert results["test_contaminated_share"] == 3 / 15
    assert json.loads((run / "test.json").read_text()) == results
    assert "overlap: 3 of 15 examples (20.0%) occur in the training text" in tested.err
    lines = read_json_lines((run / "overlap.jsonl").read_text())
    assert [line["text"] for line in lines] == [text(i) for i in PLANTED]
    assert [line["place"].partition("test.jsonl ")[2] for line in lines] == [
        f"line {i + 1}" for i in PLANTED
    ]
    assert {line["covered"] for line in lines} == {1.0}


def test_a_second_test_does_not_search_again(run):
    first = done(["test", "--run_dir", str(run)])
    second = done(["test", "--run_dir", str(run)])
    assert " MB/s" in first.err.partition("overlap: ")[2]
    assert " MB/s" not in second.err.partition("overlap: ")[2]
    assert second.out == first.out
    other = [*("--data.test", str(run.parent / "other.jsonl"))]
    (run.parent / "other.jsonl").write_text(json.dumps({"text": text(3), "label": "a"}) + "\n")
    third = done(["test", "--run_dir", str(run), *other])
    assert json.loads(third.out)["test_contaminated"] == 1


def test_it_can_be_left_out(run):
    tested = done(["test", "--run_dir", str(run), "--overlap", "false"])
    assert "test_contaminated" not in json.loads(tested.out)
    assert "overlap: " not in tested.err


@pytest.mark.parametrize("fate", ["gone", "changed"])
def test_a_store_that_is_gone_is_one_line_and_no_failure(run, at, bpe, fate):
    aside = at / "aside"
    (at / "store").rename(aside)
    try:
        if fate == "changed":
            (at / "new.txt").write_text("other text\n\nand more of it\n")
            prepare_store([str(at / "new.txt")], bpe, at / "store", validation_share=0.0)
        tested = done(["test", "--run_dir", str(run)])
    finally:
        shutil.rmtree(at / "store", ignore_errors=True)
        aside.rename(at / "store")
    why = {"gone": "is not here any more", "changed": "holds other text now"}[fate]
    (line,) = [line for line in tested.err.splitlines() if line.startswith("overlap: ")]
    assert f"{why}: test examples are not compared" in line
    assert "test_contaminated" not in json.loads(tested.out)


def test_the_command_writes_the_hits(at, tmp_path):
    args = {"store": at / "store", "file": at / "test.jsonl", "tokenizer": at / "one"}
    options = [word for k, v in args.items() for word in (f"--{k}", str(v))]
    found = done(["overlap", *options, "--output", str(tmp_path / "hits.jsonl")])
    assert json.loads(found.out)["contaminated"] == 3
    lines = read_json_lines((tmp_path / "hits.jsonl").read_text())
    assert [line["text"] for line in lines] == [text(i) for i in PLANTED]
    assert {line["document"] for line in lines} == {0, 1, 2}
    clean = done(["overlap", *options[:2], "--file", str(at / "train.jsonl"), *options[4:],
                  "--output", str(tmp_path / "none.jsonl")])  # fmt: skip
    assert json.loads(clean.out)["contaminated"] == 0
    assert (tmp_path / "none.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"store": "nowhere"}, "no token store at 'nowhere'"),
        ({"file": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"tokenizer": "WORDPIECE"}, "was made with another tokenizer"),
        ({"text": "body"}, "no column 'body'"),
    ],
    ids=str,
)
def test_mistakes_of_the_command(change, said, at, wordpiece_path, tmp_path):
    given = {"store": at / "store", "file": at / "test.jsonl", "tokenizer": at / "one"} | change
    options = [w for k, v in given.items() for w in (f"--{k}", str(v))]
    options = [str(wordpiece_path) if w == "WORDPIECE" else w for w in options]
    run = call(["overlap", *options, "--output", str(tmp_path / "hits.jsonl")])
    assert run.code == 2
    assert said in run.errors[0]
