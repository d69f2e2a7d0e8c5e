"""Span corruption from text to answers: tokenizer, pretrain, resume, ranks, generate, fine-tune."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from faults.kit import (
    BACKBONE,
    LAND,
    WATER,
    assert_same_weights,
    call,
    done,
    finetune,
    finish,
    launch,
    pretrain,
    read_audit,
    read_json_lines,
    read_metrics,
    weights,
    words,
    write_examples,
)

from ptft_lightning.modules.finetune import FinetuneModule
from ptft_lightning.tasks.classification import Classification

SHAPE = {**BACKBONE, "causal": True, "prefix_lm": True, "max_length": 48, "dropout": 0.0}
STILL = 1e-30  # too small to change a weight
LENGTH = 48


@pytest.fixture(scope="module")
def tokenizer(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command, with sentinels."""
    at = tmp_path_factory.mktemp("tokenizer") / "t"
    given = {"files": [str(corpus_file)], "output": str(at), "vocab_size": 600}
    done(words("tokenizer", given | {"sentinels": 10}))
    return at


@pytest.fixture(scope="module")
def span_store(
    corpus_file: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    at = tmp_path_factory.mktemp("store") / "s"
    given = {"files": [str(corpus_file)], "tokenizer": str(tokenizer), "output": str(at)}
    done(words("prepare", given | {"unit_bytes": 8192, "validation_share": 0.1}))
    return at


def corrupted(run_dir: Path, store: Path, tokenizer: Path, **more: Any) -> dict[str, Any]:
    options = pretrain(run_dir, store, tokenizer, data__layout="documents", **more)
    fixed = {"model.objective": "SpanCorruption", "data.length": LENGTH}
    return {**options, **fixed, "model.backbone": SHAPE}


@pytest.fixture(scope="module")
def undisturbed(
    span_store: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    done(words("fit", corrupted(run_dir, span_store, tokenizer)))
    return run_dir


def test_a_run_tells_what_it_learns(undisturbed):
    rows = read_metrics(undisturbed)
    last = next(row for row in reversed(rows) if row["val_loss"])
    assert float(last["val_perplexity"]) > 1
    assert float(last["val_accuracy"]) >= 0
    assert "val_bits_per_byte" not in last  # a loss of targets is none of the text
    config = json.loads((undisturbed / "bundle" / "config.json").read_text())
    assert config["head"]["name"] == "span_corruption"
    assert config["backbone"]["config"]["prefix_lm"] is True
    assert (undisturbed / "samples.jsonl").is_file()


def test_resumed_it_is_the_same_run(undisturbed, span_store, tokenizer, tmp_path):
    flat = {"model.optimizer.schedule": "constant", "model.optimizer.warmup": 0}
    whole = corrupted(tmp_path / "a", span_store, tokenizer) | flat
    done(words("fit", whole))
    assert read_audit(tmp_path / "a") == read_audit(undisturbed)
    short = corrupted(tmp_path / "b", span_store, tokenizer, trainer__max_steps=3) | flat
    done(words("fit", short))
    (tmp_path / "b" / "bundle").rename(tmp_path / "b" / "bundle-3")
    done(words("fit", short | {"trainer.max_steps": 8, "ckpt_path": "last", "data.workers": 2}))
    assert read_audit(tmp_path / "b") == read_audit(undisturbed)
    assert_same_weights(tmp_path / "b", tmp_path / "a")


def test_two_ranks_train_the_same(undisturbed, span_store, tokenizer, tmp_path):
    two = {"trainer.devices": 2, "trainer.strategy": "ddp"}
    options = corrupted(tmp_path / "two", span_store, tokenizer) | two
    run = finish(launch(words("fit", options)), 240)
    assert run.code == 0, run.err
    assert read_audit(tmp_path / "two") == read_audit(undisturbed)
    mine, theirs = weights(tmp_path / "two"), weights(undisturbed)
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=2e-4)


def test_it_goes_on_and_begins_with_a_causal_model(undisturbed, span_store, tokenizer, tmp_path):
    start = {"model.backbone": None, "model.optimizer.lr": STILL, "trainer.max_steps": 1}
    options = corrupted(tmp_path / "on", span_store, tokenizer) | start
    run = done(words("fit", options | {"model.init_from": str(undisturbed)}))
    assert "head 'span_corruption'" in run.err
    assert_same_weights(tmp_path / "on", undisturbed)
    causal = pretrain(tmp_path / "causal", span_store, tokenizer, trainer__max_steps=1)
    untied = {**BACKBONE, "causal": True, "max_length": 48, "tie_embeddings": False}
    done(words("fit", causal | {"model.backbone": untied}))
    given = {"run_dir": str(tmp_path / "from"), "model.init_from": str(tmp_path / "causal")}
    run = done(words("fit", options | given))
    assert "head 'span_corruption': what it shares with 'causal'" in run.err
    assert_same_weights(tmp_path / "from", tmp_path / "causal")
    # And its head serves a task that writes.
    options = answers(tmp_path / "task", tmp_path / "from", tmp_path)
    run = done(words("fit", options | {"model.optimizer.lr": STILL, "trainer.max_epochs": 1}))
    projection = weights(tmp_path / "causal")["head.projection.weight"]
    assert torch.equal(weights(tmp_path / "task")["head.projection.weight"], projection)


def answers(run_dir: Path, init_from: Path, at: Path) -> dict[str, Any]:
    """A word to be named by another that comes before or behind it."""
    rng = random.Random(3)
    for split, count in (("train", 120), ("validation", 20), ("test", 20)):
        lines = []
        for _ in range(count):
            kind = rng.randrange(2)
            text = " ".join(rng.choices((WATER, LAND)[kind], k=3))
            lines.append(json.dumps({"text": text, "label": ("water", "land")[kind]}) + "\n")
        (at / f"{split}.jsonl").write_text("".join(lines))
    options = finetune(run_dir, init_from, at)
    task = {
        "decoding": {"max_new_tokens": 8},
        "validation_examples": 20,
        "metrics": ["exact_match"],
    }
    return options | {
        "model.task": {"class_path": "Generation", "init_args": task},
        "data.max_length": 32,
    }


def test_a_task_that_writes(undisturbed, tmp_path):
    options = answers(tmp_path / "run", undisturbed, tmp_path)
    done(words("fit", options | {"trainer.max_epochs": 6, "model.optimizer.lr": 1e-2}))
    done(["test", "--run_dir", tmp_path / "run"])
    lines = read_json_lines((tmp_path / "run" / "test_predictions.jsonl").read_text())
    right = sum(line["prediction"] == line["reference"] for line in lines)
    assert right >= 16  # of 20, half of them by chance


def test_a_task_that_understands_reads_the_whole_text_as_a_prefix(undisturbed, tmp_path):
    options = finetune(tmp_path / "run", undisturbed, write_examples(tmp_path))
    done(words("fit", options))
    done(["test", "--run_dir", tmp_path / "run"])
    config = json.loads((tmp_path / "run" / "bundle" / "config.json").read_text())
    assert config["backbone"]["config"]["prefix_lm"] is True  # the shape, not the reading
    module = FinetuneModule(Classification(), init_from=str(tmp_path / "run"))
    data: Any = SimpleNamespace(tokenizer=module.bundle.tokenizer, labels=["a", "b"])
    with torch.device("meta"):
        backbone = module.build_net(data).backbone
    assert (backbone.causal, backbone.prefix_lm) == (False, False)


def test_generate_and_score(undisturbed, tmp_path):
    file = tmp_path / "out.jsonl"
    options = {"init_from": str(undisturbed), "prompt": ["The river", "a"], "max_new_tokens": 6}
    done(words("generate", options | {"output": str(file)}))
    assert len(read_json_lines(file.read_text())) == 2
    done(["score", "--init_from", undisturbed, "--text", "The river is green."])
    run = call(["export", "--init_from", str(undisturbed), "--output", str(tmp_path / "hf")])
    assert run.code == 2
    assert "prefix_lm" in run.err


def test_samples_can_be_shown(undisturbed):
    """As text, before anything was cut out of it."""
    lines = read_json_lines(
        done(["show-samples", "--run_dir", undisturbed, "--samples", "[0, 1]"]).out
    )
    assert [line["sample"] for line in lines] == [0, 1]
    assert "extra_id" not in json.dumps(lines)


MISTAKES = {
    "tokenizer": ({"data.tokenizer": "bpe"}, "the tokenizer has no special token <extra_id_0>"),
    "length": (
        {"data.length": 300, "model.backbone": {**SHAPE, "max_length": 300}},
        "rows of data.length 300 have 14 spans, and the tokenizer has 10 sentinels",
    ),
    "direction": (
        {"model.backbone": {**SHAPE, "causal": False}},
        "backbone.prefix_lm needs backbone.causal true",
    ),
    "masked": (
        {"model.objective": "MaskedLM"},
        "objective 'masked' needs model.backbone.causal false",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_fix(name, span_store, tokenizer, bpe_path, tmp_path):
    more, told = MISTAKES[name]
    options = corrupted(tmp_path / "run", span_store, tokenizer) | more
    if options["data.tokenizer"] == "bpe":
        options["data.tokenizer"] = str(bpe_path)
    run = call(words("fit", options))
    assert run.code == 2
    assert told in run.err
    assert len(run.errors) == 1
