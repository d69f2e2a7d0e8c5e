"""Questions through the command line: both versions of SQuAD, windows, and whole documents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from faults.files_qa import flat, write_squad
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
    write_examples,
)
from torchmetrics.text import SQuAD

LONGER = {"max_length": 40, "dropout": 0.0}
QA: dict[bool, dict[str, Any]] = {
    False: {"class_path": "ExtractiveQA", "init_args": {"stride": 15, "squad_file": True}},
    True: {"class_path": "ExtractiveQA", "init_args": {"unanswerable": True}},
}


def options(run_dir: Path, files: Path, bpe_path: Path, unanswerable: bool) -> dict[str, Any]:
    """Trained and validated on the same questions, so that there is something to learn."""
    given = finetune(run_dir, run_dir, files, data__audit=None, trainer__max_epochs=30)
    given |= {"data.global_batch_size": 16, "data.micro_batch_size": 16, "data.max_length": 40}
    given |= {"model.init_from": None, "data.tokenizer": str(bpe_path)}
    given |= {"model.task": QA[unanswerable], "model.backbone": {**BACKBONE, **LONGER}}
    given |= {f"data.{split}": str(files / "test.json") for split in ("train", "test")}
    given |= {"data.validation": str(files / "test.jsonl"), "trainer.val_check_interval": 30}
    given |= {"model.optimizer.lr": 6e-3}
    return given


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bpe_path: Path) -> dict[bool, tuple[Path, Run]]:
    """Of each version, the directory of its files and its run."""
    found = {}
    for unanswerable in (False, True):
        at = write_squad(tmp_path_factory.mktemp("squad"), unanswerable, facts=4)
        given = options(at / "run", at, bpe_path, unanswerable)
        found[unanswerable] = at, done(words("fit", given))
    return found


def predicted(at: Path, file: Path, **more: Any) -> list[dict[str, Any]]:
    output = at / "predictions.jsonl"
    given = {"run_dir": str(at / "run"), "data.predict": str(file), "output": str(output)}
    done(words("predict", given | {k.replace("__", "."): v for k, v in more.items()}))
    return read_json_lines(output.read_text())


def gold(file: Path) -> list[dict[str, Any]]:
    data = json.loads(file.read_text())["data"]
    return flat([paragraph for article in data for paragraph in article["paragraphs"]])


@pytest.mark.parametrize("unanswerable", [False, True])
def test_it_learns_and_answers_with_the_contexts_characters(runs, unanswerable):
    at, fit = runs[unanswerable]
    assert re.search(r"24 questions are read in \d\d windows", fit.err)
    lines, asked = predicted(at, at / "test.json"), gold(at / "test.json")
    assert [line["id"] for line in lines] == [one["id"] for one in asked]
    right = 0
    for line, one in zip(lines, asked, strict=True):
        right += line["answer"] in (one["answers"]["text"] or [""])
        for answer in [line, *line["n_best"]] if line["answer"] else line["n_best"]:
            assert one["context"][answer["start"] : answer["end"]] == answer["answer"] != ""
        scores = [answer["score"] for answer in line["n_best"]]
        assert scores == sorted(scores, reverse=True)
    assert right >= 14, "of 24 questions, seen 30 times; 6 would be chance"


def test_measures_are_those_of_the_predictions(runs):
    at, _ = runs[False]
    measured = json.loads(done(["test", "--run_dir", str(at / "run")]).out)
    lines, asked = predicted(at, at / "test.json"), gold(at / "test.json")
    reference = SQuAD()
    reference.update(
        [{"prediction_text": line["answer"], "id": line["id"]} for line in lines],
        [{"answers": one["answers"], "id": one["id"]} for one in asked],
    )
    wanted = {k: float(v) / 100 for k, v in reference.compute().items()}
    assert {k: measured[f"test_{k}"] for k in wanted} == pytest.approx(wanted)
    kept = read_json_lines((at / "run" / "test_predictions.jsonl").read_text())
    assert [line["answer"] for line in kept] == [line["answer"] for line in lines]
    assert [line["gold"] for line in kept] == [one["answers"]["text"] for one in asked]


def test_the_official_scripts_file_stands_beside(runs):
    at, _ = runs[False]
    lines = predicted(at, at / "test.jsonl")
    official = json.loads((at / "predictions.squad.json").read_text())
    assert official == {line["id"]: line["answer"] for line in lines}


def test_two_ranks_measure_the_same(runs):
    """Also where the windows of one question are on both."""
    two = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.micro_batch_size": 7}
    for at, _ in runs.values():
        given = {"run_dir": str(at / "run")}
        wanted = json.loads(done(words("test", given)).out)
        run = finish(launch(words("test", given | two)))
        assert run.code == 0, run.err
        assert json.loads(run.out) == pytest.approx(wanted, rel=1e-5)


def test_the_threshold_travels_in_the_bundle(runs):
    at, _ = runs[True]
    metrics = json.loads((at / "run" / "bundle" / "lineage.json").read_text())["metrics"]
    threshold = metrics["val_best_f1_threshold"]
    lines = predicted(at, at / "test.json")
    assert [line["answer"] == "" for line in lines] == [line["doubt"] > threshold for line in lines]
    measured = json.loads(done(["test", "--run_dir", str(at / "run")]).out)
    assert measured["test_f1"] == pytest.approx(metrics["val_best_f1"])  # the same questions
    assert measured["test_f1"] == pytest.approx(measured["test_best_f1"])
    none = predicted(at, at / "test.json", model__task__threshold=-1e9)
    assert {line["answer"] for line in none} == {""}
    every = predicted(at, at / "test.json", model__task__threshold=1e9)
    assert "" not in {line["answer"] for line in every}
    assert {row["val_no_answer_accuracy"] for row in read_metrics(at / "run")} > {""}


def test_a_typed_question(runs):
    at, _ = runs[False]
    one = gold(at / "test.json")[0]
    text = f"{one['question']}\t{one['context']}"
    (line,) = read_json_lines(done(["predict", "--run_dir", str(at / "run"), "--text", text]).out)
    (same, *_) = predicted(at, at / "test.json")
    assert line["question"] == one["question"]
    assert line["answer"] == same["answer"]


def test_bad_questions_stop_or_are_counted(runs, tmp_path):
    at, _ = runs[False]
    content = json.loads((at / "test.json").read_text())
    content["data"][0]["paragraphs"][1]["qas"][0]["answers"][0]["answer_start"] += 1
    (tmp_path / "t.json").write_text(json.dumps(content))
    given = {"run_dir": str(at / "run"), "data.test": str(tmp_path / "t.json")}
    run = call(words("test", given))
    assert run.code == 2
    assert "t.json data[0].paragraphs[1].qas[0]: the answer '" in run.err
    assert "(1 of 24 examples (4.2%) of " in run.err
    assert "data.bad_examples skip" in run.err
    run = done(words("test", given | {"data.bad_examples": "skip"}))
    assert json.loads(run.out)["test_skipped"] == 1
    given = {"run_dir": str(at / "run"), "data.test": str(runs[True][0] / "test.json")}
    assert "set task.unanswerable true (12 of 24" in call(words("test", given)).err


def test_a_reader_is_not_another_reader(runs):
    """What a head was trained to say stays with it."""
    run_dir = str(runs[False][0] / "run")
    run = call(["test", "--run_dir", run_dir, "--model.task.unanswerable", "true"])
    assert run.code == 2
    assert "was tuned with model.task.unanswerable False" in run.err


# Whole documents.


@pytest.fixture
def documents(runs, tmp_path) -> Path:
    """The contexts of the questions, several in one document, and other text."""
    one = [paragraph["context"] for paragraph in gold(runs[False][0] / "test.json")]
    contexts = [*dict.fromkeys(one)]
    (tmp_path / "a.txt").write_text("Other words.\n\n" + "\n".join(contexts[:6]) + "\n")
    rows = [{"body": f"Nothing here.\n{c}\nNothing there."} for c in contexts[6:]]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_answers_from_whole_documents(runs, documents):
    at, _ = runs[False]
    question = gold(at / "test.json")[0]["question"]
    (documents / "q.txt").write_text(f"{question}\nzebra\n")
    given = {
        **{"run_dir": str(at / "run"), "files": [str(documents / "a.txt")], "n_best": 3},
        **{"questions": str(documents / "q.txt"), "output": str(documents / "out" / "a.jsonl")},
    }
    said = done(words("answer", given)).err
    assert "answer: 2 documents in " in said
    first, other = read_json_lines((documents / "out" / "a.jsonl").read_text())
    assert first["question"] == question
    document = (documents / "a.txt").read_text().strip().split("\n\n")[first["document"] - 1]
    assert document[first["start"] : first["end"]] == first["answer"] != ""
    assert first["file"] == str(documents / "a.txt")
    assert first["answer"] in first["passage"]
    assert len(first["n_best"]) == 3
    assert {k: first[k] for k in first["n_best"][0]} == first["n_best"][0]
    assert (other["answer"], other["n_best"]) == ("", [])


def test_documents_of_a_table_and_a_question_on_the_command_line(runs, documents):
    at, _ = runs[True]
    given = {
        **{"run_dir": str(at / "run"), "files": [str(documents / "b.jsonl")], "column": "body"},
        **{"question": "What does the river see?", "passages": 2, "passage_characters": 60},
    }
    (line,) = read_json_lines(done(words("answer", given)).out)
    rows = read_json_lines((documents / "b.jsonl").read_text())
    assert len({(a["document"], a["passage"]) for a in line["n_best"]}) <= 2
    for answer in line["n_best"]:
        text = rows[answer["document"] - 1]["body"]
        assert text[answer["start"] : answer["end"]] == answer["answer"]
        assert answer["passage"] in text
        assert answer["bm25"] > 0


def test_mistakes_of_answer(runs, documents, tmp_path, bpe_path):
    at, _ = runs[False]
    write_examples(tmp_path)
    scratch = {"model__init_from": None, "data__tokenizer": str(bpe_path)}
    scratch |= {"model__backbone": BACKBONE, "trainer__max_epochs": 1}
    done(words("fit", finetune(tmp_path / "other", tmp_path, tmp_path, **scratch)))
    good = {"run_dir": str(at / "run"), "files": [str(documents / "a.txt")], "question": "x"}
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "dots.txt").write_text("...\n")
    for changed, said in (
        ({"run_dir": str(tmp_path / "none")}, "no bundle in"),
        ({"run_dir": str(tmp_path / "other")}, "is of 'classification': give one tuned with"),
        ({"question": None}, "what to answer? give --question TEXT or --questions FILE"),
        ({"questions": "q.txt"}, "what to answer? give --question TEXT or --questions FILE"),
        ({"question": " "}, "question 1 is empty"),
        ({"question": None, "questions": str(tmp_path / "empty.txt")}, "holds no questions"),
        ({"passages": 0}, "--passages is 0: give 1 or more"),
        ({"files": [str(tmp_path / "gone.txt")]}, "file not found"),
        ({"files": [str(tmp_path / "dots.txt")]}, "the passages hold no word"),
        ({"column": "text", "files": [str(documents / "b.jsonl")]}, "no text column 'text'"),
    ):
        run = call(words("answer", good | changed))
        assert run.code == 2, (changed, run.err)
        assert said in run.errors[-1], run.err
