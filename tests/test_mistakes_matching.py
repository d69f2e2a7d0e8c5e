"""What a user does wrong with matching, gaps, prompts and vectors is one line with its fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults.files_matching import write_gaps, write_pairs
from faults.kit import call, done, pretrain, words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> Path:
    """Phase-one runs and files, good and bad."""
    at = tmp_path_factory.mktemp("mistakes")
    for causal in (False, True):
        run_dir = at / ("causal" if causal else "masked")
        done(words("fit", pretrain(run_dir, store, bpe_path, causal=causal, trainer__max_steps=1)))
    write_pairs(at)
    write_gaps(at)
    line = {"query": "a", "passage": "b", "score": "high"}
    (at / "words.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"score": 1}))
    (at / "short.jsonl").write_text('{"text": "a", "embedding": [1.0, 2.0]}\n')
    (at / "long.jsonl").write_text('{"text": "a", "embedding": [1.0, 2.0, 3.0]}\n')
    return at


COMMON = {
    "run_dir": "{}/run",
    "model": "FinetuneModule",
    "model.init_from": "{}/masked",
    "data": "TaskDataModule",
    "data.max_length": 32,
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 1,
}
PAIRS = COMMON | {
    "model.task": "Matching",
    "data.train": "{}/pairs_train.jsonl",
    "data.columns": {"text": "query", "pair": "passage", "label": "score"},
}
GAPS = COMMON | {
    "model.task": "Cloze",
    "model.task.template": "{text} is {mask}",
    "model.task.verbalizer": {"0": ["small"], "1": ["large"]},
    "data.train": "{}/gaps_train.tsv",
    "data.columns": {"text": "sentence"},
}
PROMPT = {"init_from": "{}/causal", "test": "{}/gaps_test.tsv", "template": "{text} {label}"}
FILES = {"data.train": "{}/words.jsonl", "model.task.loss": "cosine"}
RANK = {"queries": "{}/short.jsonl", "passages": "{}/long.jsonl"}

CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "no second text": (
        "fit",
        PAIRS | {"data.columns": {"text": "query"}},
        ("data.columns.pair is missing", "second text"),
    ),
    "no such column": (
        "fit",
        PAIRS | {"model.task.negatives": ["wron"]},
        ("pairs_train.jsonl line 1: no column 'wron'", "model.task.negatives"),
    ),
    "a label that is no number": (
        "fit",
        PAIRS | FILES,
        ("words.jsonl line 1: label 'high' is not a number", "data.bad_examples skip"),
    ),
    "no pair matches": (
        "fit",
        PAIRS | {"model.task.threshold": 9},
        ("task.threshold 9", "lower it"),
    ),
    "a monitor that is not measured": (
        "fit",
        PAIRS | {"model.task.monitor": "f1"},
        ("task.monitor is 'f1'", "mrr, recall_at_1"),
    ),
    "pairs as a numpy file": (
        "predict",
        PAIRS | {"data.predict": "{}/pairs_test.jsonl", "output": "{}/x.npy"},
        ("x.npy' takes vectors", "data.columns.pair null", ".jsonl"),
    ),
    "a word that is several tokens": (
        "fit",
        GAPS | {"model.task.verbalizer": {"0": ["small"], "1": ["extraordinary"]}},
        ("the word 'extraordinary' of label '1' has", "the template 1", "{mask}"),
    ),
    "a label without words": (
        "fit",
        GAPS | {"model.task.verbalizer": {"0": ["small"], "2": ["large"]}},
        ("gaps_train.tsv line", "label '1' is not one of ['0', '2']"),
    ),
    "a masked gap for a causal model": (
        "fit",
        GAPS | {"model.init_from": "{}/causal"},
        ("task.objective is 'masked'", "give causal"),
    ),
    "a template without a gap": (
        "fit",
        GAPS | {"model.task.template": "{text} is good"},
        ("task.template '{text} is good' needs {text} once, {mask}",),
    ),
    "prompting a masked model": (
        "prompt",
        PROMPT | {"init_from": "{}/masked", "text": "sentence"},
        ("masked' is no causal model", "Cloze"),
    ),
    "a prompt without an answer": (
        "prompt",
        PROMPT | {"template": "{text} is"},
        ("--template is '{text} is'", "{label} at its end"),
    ),
    "shots without a file": (
        "prompt",
        PROMPT | {"shots": 3},
        ("--train and --shots go together",),
    ),
    "more shots than examples": (
        "prompt",
        PROMPT | {"train": "{}/gaps_train.tsv", "shots": 13},
        ("--shots is 13", "has 12 examples"),
    ),
    "vectors of two models": (
        "rank",
        RANK,
        ("short.jsonl' have 2 numbers", "long.jsonl' 3", "the same model"),
    ),
    "lines without vectors": (
        "rank",
        RANK | {"queries": "{}/pairs_test.jsonl"},
        ("pairs_test.jsonl line 1: no text with an embedding", "predict"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line(name, place, tmp_path):
    command, given, parts = CASES[name]
    filled = {k: v.replace("{}", str(place)) if isinstance(v, str) else v for k, v in given.items()}
    if "run_dir" in filled:
        filled["run_dir"] = str(tmp_path / "run")
    run = call(words(command, filled))
    assert run.code == 2, run.err
    assert "Traceback" not in run.err
    (line,) = run.errors
    assert [part for part in parts if part not in line] == [], line
