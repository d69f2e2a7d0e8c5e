"""From a phase-one bundle to vectors, ranked passages, filled gaps and prompts: whole commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.files_matching import write_gaps, write_pairs
from faults.kit import TESTS, call, done, finish, launch, pretrain, read_json_lines, words
from ranks.contrasts import step

from ptft_lightning.handoff.bundle import open_bundle

COLUMNS = {"text": "query", "pair": "passage", "label": "score"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> Path:
    """Phase-one runs, `masked` and `causal`."""
    at = tmp_path_factory.mktemp("bases")
    for causal in (False, True):
        run_dir = at / ("causal" if causal else "masked")
        done(words("fit", pretrain(run_dir, store, bpe_path, causal=causal, trainer__max_steps=2)))
    return at


def options(run_dir: Path, base: Path, made: dict[str, Any], **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "run_dir": str(run_dir),
        "model": "FinetuneModule",
        "model.task": "Matching",
        "model.init_from": str(base),
        "data": "TaskDataModule",
        "data.max_length": 32,
        "data.global_batch_size": 8,
        "data.micro_batch_size": 8,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 2,
        "report": False,
    }
    return given | made | {k.replace("__", "."): v for k, v in more.items()}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = write_pairs(tmp_path_factory.mktemp("pairs"))
    return made | {"data.columns": COLUMNS}


@pytest.fixture(scope="module")
def matching(bases: Path, pairs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every setting of in-batch negatives."""
    run_dir = tmp_path_factory.mktemp("matching") / "run"
    task = {"threshold": 3, "symmetric": True, "negatives": ["wrong"], "gather": True}
    given = {f"model.task.{name}": value for name, value in task.items()}
    out = done(words("fit", options(run_dir, bases / "masked", pairs) | given)).err
    assert "16 of 24 pairs match (from 3.0 on)" in out
    return run_dir


def test_what_is_measured_and_kept(matching):
    """The cutoff found in validation decides in the test."""
    measured = json.loads(done(words("test", {"run_dir": str(matching)})).out)
    config = json.loads((matching / "bundle" / "config.json").read_text())
    cutoff = config["found"]["cutoff"]
    lines = read_json_lines((matching / "test_predictions.jsonl").read_text())
    assert len(lines) == 24
    right = [line["match"] == (line["gold"] >= 3) for line in lines]
    assert [line["match"] for line in lines] == [line["cosine"] >= cutoff for line in lines]
    assert measured["test_accuracy"] == pytest.approx(sum(right) / 24)
    places = [line["rank"] for line in lines if line["gold"] >= 3]
    assert all("rank" not in line for line in lines if line["gold"] < 3)
    assert measured["test_mrr"] == pytest.approx(sum(1 / p for p in places) / len(places))
    for name in ("spearman", "pearson", "recall_at_5", "average_precision", "f1"):
        assert 0 <= abs(measured[f"test_{name}"]) <= 1


def test_two_ranks_measure_the_same(matching):
    """Also with more places for examples than there are examples."""
    given = {"run_dir": str(matching)}
    wanted = json.loads(done(words("test", given)).out)
    two = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.micro_batch_size": 7}
    run = finish(launch(words("test", given | two)), timeout=280)
    assert run.code == 0, run.err
    found = json.loads(run.out.splitlines()[-1])
    # The loss is that of other negatives.
    del found["test_loss"], wanted["test_loss"]
    assert found == pytest.approx(wanted, rel=1e-5)


def test_the_gradient_over_ranks_is_that_of_one_process(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "ranks.contrasts", str(tmp_path / "out.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join(p for p in (str(TESTS), os.environ.get("PYTHONPATH")) if p)
    run = subprocess.run(
        command, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    for symmetric in (False, True):
        wanted, whole = step(0, 1, symmetric, gather=False)
        gradients, part = found[f"{symmetric}-True"]
        for mine, theirs in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
        assert 0 < part < whole
        alone, _ = found[f"{symmetric}-False"]  # fewer negatives: another gradient
        assert not torch.allclose(alone[0], wanted[0], rtol=1e-2)


def test_vectors_of_texts_and_what_is_nearest(matching, pairs, tmp_path):
    """As .jsonl and as .npy; two texts that are the same are found in each other first."""
    given = {"run_dir": str(matching), "data.predict": pairs["data.test"]}
    given |= {"data.columns.text": "passage", "data.columns.pair": "null"}
    done(words("predict", given | {"output": str(tmp_path / "v.jsonl")}))
    done(words("predict", given | {"output": str(tmp_path / "v.npy")}))
    lines = read_json_lines((tmp_path / "v.jsonl").read_text())
    vectors = np.array([line["embedding"] for line in lines], np.float32)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), vectors)
    assert vectors.shape == (24, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)

    file = str(tmp_path / "v.jsonl")
    ranked = read_json_lines(done(words("rank", {"queries": file, "passages": file, "top": 3})).out)
    similar = vectors.astype(float) @ vectors.T.astype(float)
    for number, line in enumerate(ranked):
        assert line["query"] == line["passages"][0]["text"] == lines[number]["text"]
        values = [found["cosine"] for found in line["passages"]]
        np.testing.assert_allclose(values, np.sort(similar[number])[::-1][:3], atol=1e-5)

    typed = {"run_dir": str(matching), "text": ["the river", "the river\tthe stone"]}
    alone, pair = read_json_lines(done(words("predict", typed)).out)
    assert len(alone["embedding"]) == 32
    assert -1 <= pair["cosine"] <= 1
    assert pair["pair"] == "the stone"


def test_labels_by_softmax(bases, pairs, tmp_path):
    """One of several labels; what is new in its head must be trained."""
    columns = {"data.columns": COLUMNS | {"label": "label"}, "model.task.loss": "softmax"}
    given = options(tmp_path / "run", bases / "masked", pairs) | columns
    refused = call(words("test", given))
    assert refused.code == 2
    assert "is not tuned for 'matching': fit first" in refused.errors[0]
    done(words("fit", given))
    measured = json.loads(done(words("test", {"run_dir": str(tmp_path / "run")})).out)
    assert 0 <= measured["test_macro_f1"] <= 1
    lines = read_json_lines((tmp_path / "run" / "test_predictions.jsonl").read_text())
    assert {line["label"] for line in lines} <= {"all", "half", "none"}
    right = [line["label"] == line["gold"] for line in lines]
    assert measured["test_accuracy"] == pytest.approx(sum(right) / 24)


def test_cosines_before_anything_is_trained(bases, pairs, tmp_path):
    given = options(tmp_path / "run", bases / "masked", pairs)
    given |= {"model.task.loss": "cosine", "model.task.low": 1, "model.task.high": 5}
    run = done(words("test", given))
    assert "nothing is trained for 'matching': zero-shot" in run.err
    measured = json.loads(run.out)
    assert set(measured) == {"test_loss", "test_spearman", "test_pearson"}
    lines = read_json_lines((tmp_path / "run" / "test_predictions.jsonl").read_text())
    errors = [(line["cosine"] - (line["gold"] - 1) / 4) ** 2 for line in lines]
    assert measured["test_loss"] == pytest.approx(sum(errors) / 24, rel=1e-3)


@pytest.mark.parametrize("base", ["masked", "causal"])
def test_gaps_before_and_after_training(base, bases, tmp_path):
    """The head is phase one's: nothing is new, and the run's bundle needs no other."""
    made = write_gaps(tmp_path) | {"data.columns": {"text": "sentence", "label": "label"}}
    given = options(tmp_path / "run", bases / base, made, model__task="Cloze")
    given |= {"model.task.objective": base}
    given["model.task.template"] = "{text} the river is {mask}"
    given = dict(sorted(given.items()))  # the task before its settings
    run = done(words("test", given))
    assert "new: nothing; unused: nothing" in run.err
    before = json.loads(run.out)
    done(words("fit", given))
    bundle = open_bundle(tmp_path / "run")
    assert set(bundle.names()) == set(open_bundle(bases / base).names())
    assert bundle.config["head"]["config"]["verbalizer"] == made["model.task.verbalizer"]
    after = json.loads(done(words("test", {"run_dir": str(tmp_path / "run")})).out)
    assert after["test_loss"] != before["test_loss"]
    kept = tmp_path / "elsewhere"
    (tmp_path / "run" / "bundle").rename(kept)
    line = json.loads(done(words("predict", {"run_dir": str(kept), "text": "the stone"})).out)
    assert set(line["probabilities"]) == {"0", "1"}


def test_prompts_with_and_without_examples(bases, tmp_path):
    made = write_gaps(tmp_path)
    given = {
        "init_from": str(bases / "causal"),
        "test": made["data.test"],
        "text": "sentence",
        "template": "{text} is {label}",
        "names": {"0": "small", "1": "very large"},
        "device": "cpu",
    }
    for normalise in ("none", "length", "prior"):
        output = tmp_path / f"{normalise}.jsonl"
        shown = {"normalise": normalise, "output": str(output)}
        values = json.loads(done(words("prompt", given | shown)).out)
        lines = read_json_lines(output.read_text())
        right = [line["label"] == line["gold"] for line in lines]
        assert values["accuracy"] == pytest.approx(sum(right) / 12)
        assert values["most_common_label"] == 0.5
        for line in lines:
            assert line["label"] == max(line["scores"], key=line["scores"].get)
    plain, length = (
        [line["scores"] for line in read_json_lines((tmp_path / f"{n}.jsonl").read_text())]
        for n in ("none", "length")
    )
    tokens = [p["1"] / n["1"] for p, n in zip(plain, length, strict=True)]
    assert tokens == pytest.approx([round(tokens[0])] * 12, rel=1e-3)
    assert round(tokens[0]) > 1

    shots = {"train": made["data.train"], "shots": 4, "separator": " "}
    first, again = (done(words("prompt", given | shots)) for _ in range(2))
    assert first.out == again.out
    assert "left no room for all 4 shots" in first.err  # a model of 32 tokens
    assert json.loads(first.out)["fewer_shots"] == 12
