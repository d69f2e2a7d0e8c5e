"""From raw text to answers, each step a command: tokenizer, prepare, fit, fit, test, predict."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.kit import (
    Run,
    call,
    done,
    finetune,
    finish,
    launch,
    pretrain,
    read_json_lines,
    read_metrics,
    weights,
    words,
    write_examples,
)

from ptft_lightning.data.manifest import read_manifest
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.interop.open import open_model


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, corpus_documents: list[str]) -> list[str]:
    """The corpus as a person might have it: part .txt, part .jsonl.gz."""
    at = tmp_path_factory.mktemp("text")
    half = len(corpus_documents) // 2
    (at / "a.txt").write_text("\n\n".join(corpus_documents[:half]) + "\n", encoding="utf-8")
    with gzip.open(at / "b.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": d}) + "\n" for d in corpus_documents[half:])
    return [str(at / "a.txt"), str(at / "b.jsonl.gz")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, text: list[str]) -> Path:
    """A tokenizer learned by the command."""
    at = tmp_path_factory.mktemp("tokenizer")
    run = done(words("tokenizer", {"files": text, "vocab_size": 500, "output": str(at)}))
    assert run.out == (
        f"{at}/tokenizer.json: 500 ids from 300 documents, "
        f"fingerprint {Tokenizer.load(at).fingerprint}\n"
    )
    return at


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, text: list[str], tokenizer: Path) -> Path:
    """A token store made by the command."""
    at = tmp_path_factory.mktemp("prepared")
    options = {"files": text, "tokenizer": str(tokenizer), "output": str(at)}
    run = done(words("prepare", options | {"validation_share": 0.1}))
    assert f"{at}: fingerprint {read_manifest(at).fingerprint}\n" in run.out
    return at


@pytest.fixture(scope="module", params=["causal", "masked"])
def phase_one(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    prepared: Path,
    tokenizer: Path,
) -> Path:
    """The run directory of phase one, once for each objective."""
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    causal = request.param == "causal"
    done(words("fit", pretrain(run_dir, prepared, tokenizer, causal=causal)))
    return run_dir


@pytest.fixture(scope="module")
def phase_two(
    tmp_path_factory: pytest.TempPathFactory, phase_one: Path, examples: Path
) -> tuple[Path, Path]:
    """The run directory of phase two, and where the fit kept its own probabilities."""
    at = tmp_path_factory.mktemp("phase_two")
    keep = {"class_path": "faults.kit.KeepScores", "init_args": {"directory": str(at)}}
    options = finetune(at / "run", phase_one, examples, trainer__callbacks=[keep])
    done(words("fit", options | {"trainer.max_epochs": 6, "trainer.val_check_interval": 3}))
    return at / "run", at


def inspect(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(done(["inspect", str(path)]).out)
    return facts


# Phase one.


def test_phase_one_learns_and_leaves_the_last_step_s_bundle(phase_one):
    saved = torch.load(phase_one / "checkpoints" / "step=00000008.ckpt", weights_only=True)
    last = {k.removeprefix("net."): v for k, v in saved["state_dict"].items()}
    bundle = weights(phase_one)
    assert bundle.keys() == last.keys()
    assert all(torch.equal(bundle[name], last[name]) for name in last)
    losses = [float(row["train_loss"]) for row in read_metrics(phase_one)]
    assert losses[-1] < losses[0]
    assert sorted(path.name for path in (phase_one / "bundle").iterdir()) == [
        "README.md",
        "config.json",
        "lineage.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_fit_prepares_by_itself_what_prepare_would(text, tokenizer, prepared, tmp_path):
    options = pretrain(tmp_path / "run", tmp_path / "store", tokenizer, data__files=text)
    run = done(words("fit", options | {"data.validation_share": 0.1, "trainer.max_steps": 2}))
    assert "prepare: " in run.err
    assert read_manifest(tmp_path / "store").fingerprint == read_manifest(prepared).fingerprint


def test_going_on_from_a_bundle_keeps_its_head(phase_one, prepared, tmp_path):
    """A new schedule from a phase-one bundle: tokenizer, shape and weights are inherited."""
    causal = json.loads((phase_one / "bundle" / "config.json").read_text())
    objective = "CausalLM" if causal["head"]["name"] == "causal" else "MaskedLM"
    options = pretrain(tmp_path / "run", prepared, prepared, trainer__max_steps=1)
    inherit = {"model.backbone": None, "data.tokenizer": None, "model.objective": objective}
    still = {"model.optimizer": {"lr": 1e-30, "weight_decay": 0.0}}
    options |= inherit | still | {"model.init_from": str(phase_one)}
    run = done(words("fit", options))
    assert "inherited: tokenizer" in run.err
    assert "new: nothing" in run.err
    before, after = weights(phase_one), weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


# Phase two.


def test_phase_two_leaves_the_best_bundle(phase_two, examples, tmp_path):
    """Its predictions are, to the printed digit, those the fit computed at its best validation."""
    run_dir, kept = phase_two
    rows = [row for row in read_metrics(run_dir) if row["val_accuracy"]]
    accuracies = [float(row["val_accuracy"]) for row in rows]
    best = rows[accuracies.index(max(accuracies))]  # the first of the best
    assert len(set(accuracies)) > 2, "the test needs validations that differ"
    output = tmp_path / "predictions.jsonl"
    options = {"run_dir": str(run_dir), "data.predict": str(examples / "validation.jsonl")}
    done(words("predict", options | {"output": str(output)}))
    predicted = read_json_lines(output.read_text())
    computed = json.loads((kept / f"scores-{best['step']}.json").read_text())
    assert [list(line["probabilities"].values()) for line in predicted] == [
        [round(p, 6) for p in row] for row in computed
    ]
    labels = [row["label"] for row in read_json_lines((examples / "validation.jsonl").read_text())]
    right = [line["label"] == label for line, label in zip(predicted, labels, strict=True)]
    assert sum(right) / len(right) == pytest.approx(max(accuracies))


def test_test_needs_the_run_directory_alone(phase_two, examples, tmp_path, recwarn):
    run_dir, _ = phase_two
    run = done(["test", "--run_dir", str(run_dir)])
    assert [str(warning.message) for warning in recwarn] == []
    metrics = json.loads(run.out)
    assert json.loads((run_dir / "test.json").read_text()) == metrics
    output = tmp_path / "predictions.jsonl"
    options = {"run_dir": str(run_dir), "data.predict": str(examples / "test.jsonl")}
    done(words("predict", options | {"output": str(output)}))
    predicted = [line["label"] for line in read_json_lines(output.read_text())]
    labels = [row["label"] for row in read_json_lines((examples / "test.jsonl").read_text())]
    right = [p == label for p, label in zip(predicted, labels, strict=True)]
    assert metrics["test_accuracy"] == pytest.approx(sum(right) / len(right))
    assert metrics["test_macro_f1"] == pytest.approx(macro_f1(predicted, labels))


def macro_f1(predicted: list[str], labels: list[str]) -> float:
    scores = []
    for name in sorted(set(labels)):
        hits = sum(p == label == name for p, label in zip(predicted, labels, strict=True))
        scores.append(2 * hits / (predicted.count(name) + labels.count(name)))
    return sum(scores) / len(scores)


def test_validate_gives_the_best_validation(phase_two):
    run_dir, _ = phase_two
    metrics = json.loads(done(["validate", "--run_dir", str(run_dir)]).out)
    rows = [row for row in read_metrics(run_dir) if row["val_accuracy"]]
    assert metrics["val_accuracy"] == pytest.approx(max(float(r["val_accuracy"]) for r in rows))


def test_predict_a_text(phase_two):
    run_dir, _ = phase_two
    run = done(["predict", "--run_dir", str(run_dir), "--text", "the old river sees rain"])
    (line,) = read_json_lines(run.out)
    assert line["text"] == "the old river sees rain"
    assert line["probabilities"].keys() == {"land", "water"}
    assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert line["label"] == max(line["probabilities"], key=line["probabilities"].__getitem__)


@pytest.mark.parametrize("typed", ["#1 river", "[river, sea]", "null"])
def test_a_text_is_no_yaml(phase_two, typed):
    run = done(["predict", "--run_dir", str(phase_two[0]), "--text", typed])
    assert [line["text"] for line in read_json_lines(run.out)] == [typed]


def test_predict_several_texts_in_any_language(phase_two):
    run_dir, _ = phase_two
    texts = ["a hill", "模型 de langue, été", "", "[MASK]"]
    run = done(["predict", "--run_dir", str(run_dir), "--text", json.dumps(texts)])
    assert [line["text"] for line in read_json_lines(run.out)] == texts


def test_a_checkpoint_can_be_tested_in_place_of_the_bundle(phase_two):
    run_dir, _ = phase_two
    newest = sorted((run_dir / "checkpoints").glob("*.ckpt"))[-1]
    options = {"run_dir": str(run_dir), "ckpt_path": str(newest)}
    metrics = json.loads(done(words("validate", options)).out)
    last = [row for row in read_metrics(run_dir) if row["val_accuracy"]][-1]
    assert metrics["val_loss"] == pytest.approx(float(last["val_loss"]), rel=1e-5)


def test_a_bundle_is_complete_in_itself(phase_two, tmp_path):
    """Moved elsewhere, its parent and its tokenizer gone, it predicts the same."""
    run_dir, _ = phase_two
    words_here = ["--text", "new stone field"]
    here = done(["predict", "--run_dir", str(run_dir), *words_here]).out
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copytree(run_dir / "bundle", moved / "bundle")
    config = (run_dir / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace("init_from: /", "init_from: /gone/"))
    assert done(["predict", "--run_dir", str(moved), *words_here]).out == here


# Pairs and frozen features.


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, phase_one: Path, examples: Path) -> Path:
    """A run on pairs of texts in .tsv files, its backbone frozen."""
    run_dir = tmp_path_factory.mktemp("pairs") / "run"
    options = finetune(run_dir, phase_one, examples, trainer__max_epochs=1)
    files = {f"data.{s}": str(examples / f"{s}.tsv") for s in ("train", "validation", "test")}
    options |= {"model.tuning": "Frozen", "data.columns": {"pair": "second"}, **files}
    done(words("fit", options))
    return run_dir


def test_frozen_features_stay_as_phase_one_left_them(pairs, phase_one):
    before, after = weights(phase_one), open_model(pairs)
    backbone = [name for name in before if name.startswith("backbone.")]
    assert backbone
    assert all(torch.equal(before[name], after.tensor(name)) for name in backbone)
    assert set(weights(pairs)) == {"head.classifier.weight", "head.classifier.bias"}


def test_full_tuning_moves_every_parameter(phase_two, phase_one):
    before, after = weights(phase_one), weights(phase_two[0])
    still = [n for n in before if n in after and torch.equal(before[n], after[n])]
    assert still == []


def test_pairs_are_tested_and_predicted(pairs, examples):
    assert "test_accuracy" in json.loads(done(["test", "--run_dir", str(pairs)]).out)
    run = done(["predict", "--run_dir", str(pairs), "--text", "a river\tthe sea"])
    assert sum(read_json_lines(run.out)[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    run = call(["predict", "--run_dir", str(pairs), "--text", "a river"])
    assert run.code == 2
    assert "put a tab between the two" in run.errors[0]
    options = {"run_dir": str(pairs), "data.predict": str(examples / "test.tsv")}
    done(words("predict", options))
    assert len(read_json_lines((pairs / "predictions.jsonl").read_text())) == 23


# Two ranks.


@pytest.mark.parametrize("phase_one", ["masked"], indirect=True)  # once is enough
def test_two_ranks_predict_what_one_does(phase_two, examples, tmp_path):
    run_dir, _ = phase_two
    options = {"run_dir": str(run_dir), "data.predict": str(examples / "test.jsonl")}
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    done(words("predict", options | {"output": str(one)}))
    ranks = {"output": str(two), "trainer.devices": 2, "trainer.strategy": "ddp"}
    run: Run = finish(launch(words("predict", options | ranks)))
    assert run.code == 0, run.err
    mine, theirs = read_json_lines(one.read_text()), read_json_lines(two.read_text())
    texts = [row["text"] for row in read_json_lines((examples / "test.jsonl").read_text())]
    assert [line["text"] for line in mine] == [line["text"] for line in theirs] == texts
    for left, right in zip(mine, theirs, strict=True):
        assert left["label"] == right["label"]
        assert left["probabilities"] == pytest.approx(right["probabilities"], abs=2e-6)


# Inspect.


def test_inspect_a_tokenizer(tokenizer):
    facts = inspect(tokenizer / "tokenizer.json")
    assert (facts["kind"], facts["ids"], facts["round_trips"]) == ("tokenizer", 500, True)
    assert inspect(tokenizer) == facts, "its directory"


def test_inspect_a_store(prepared, corpus_documents):
    facts = inspect(prepared)
    assert facts["kind"] == "token store"
    assert facts["train"]["documents"] + facts["validation"]["documents"] == len(corpus_documents)
    assert facts["train"]["tokens"] == TokenStore(prepared, "train").total_tokens
    texts = sum(len(d.encode()) for d in corpus_documents)
    assert facts["train"]["text_bytes"] + facts["validation"]["text_bytes"] == texts


def test_inspect_a_run_its_bundle_and_its_checkpoint(phase_one, tokenizer):
    run, bundle = inspect(phase_one), inspect(phase_one / "bundle")
    assert run == bundle
    assert run["kind"] == "pretrain bundle"
    assert run["tokenizer"] == inspect(tokenizer)
    assert run["lineage"]["steps"] == 8
    assert run["lineage"]["samples"] == 8 * 6
    assert run["tensors"]["backbone.embedding.weight"] == [500, 32]
    checkpoint = inspect(phase_one / "checkpoints" / "step=00000008.ckpt")
    assert checkpoint["tensors"] == run["tensors"]
    assert checkpoint["hash"] == run["hash"]


def test_lineage_leads_back_to_phase_one(phase_two, phase_one):
    facts = inspect(phase_two[0])
    assert facts["kind"] == "finetune bundle"
    (parent,) = facts["lineage"]["parents"]
    assert parent["hash"] == inspect(phase_one)["hash"]
    assert parent["phase"] == "pretrain"
    assert parent["data"]["store"] == inspect(phase_one)["lineage"]["data"]["store"]
    assert facts["config"]["head"]["labels"] == ["land", "water"]


def test_a_run_stopped_early_by_the_user_leaves_a_bundle(prepared, tokenizer, tmp_path):
    """Early stopping, unlike preemption, is an end."""
    stop = {
        "class_path": "EarlyStopping",
        "init_args": {"monitor": "val_loss", "patience": 1, "min_delta": 100.0},
    }
    options = pretrain(tmp_path / "run", prepared, tokenizer, trainer__callbacks=[stop])
    options |= {"trainer.max_steps": 50, "trainer.val_check_interval": 2}
    run = done(words("fit", options))
    assert inspect(tmp_path / "run")["lineage"]["steps"] == 4
    assert run.err.endswith(f"done: {tmp_path / 'run' / 'bundle'}\n")


def test_a_dry_run_leaves_nothing(prepared, tokenizer, tmp_path):
    options = pretrain(tmp_path / "run", prepared, tokenizer, data__audit=None)
    done(words("fit", options | {"trainer.fast_dev_run": True}))
    assert not (tmp_path / "run").exists()
