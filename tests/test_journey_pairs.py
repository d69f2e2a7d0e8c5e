"""Pairs of sentences from text to a task: prepare, pretrain, resume, ranks, fine-tune, export."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.kit import (
    BACKBONE,
    LAND,
    OTHER,
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

from ptft_lightning.data.tokenizer_training import train_tokenizer

PAIRED = {**BACKBONE, "causal": False, "token_types": 2, "max_length": 48, "dropout": 0.0}
STILL = 1e-30  # too small to change a weight
HANZI = ("水江河海", "山石土木")


def make_texts(count: int = 240) -> list[str]:
    """Documents about water or about land, English and Chinese; some of one sentence."""
    rng = random.Random(5)
    texts = []
    for at in range(count):
        topic, sentences = rng.randrange(2), []
        for _ in range(rng.choice((1, 3, 4, 6))):
            if at % 2:
                sentences.append("".join(rng.choices(HANZI[topic], k=rng.randint(3, 8))) + "。")
            else:
                named = rng.choices((WATER, LAND)[topic], k=2)
                sentences.append(" ".join([*rng.choices(OTHER, k=3), *named]).capitalize() + ".")
        texts.append(("" if at % 2 else " ").join(sentences))
    return texts


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in make_texts()]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(make_texts()), "wordpiece", 300, lowercase=True).save(at)
    return at


@pytest.fixture(scope="module")
def pair_store(file: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command, in several shards."""
    at = tmp_path_factory.mktemp("store") / "s"
    given = {"files": [str(file)], "tokenizer": str(tokenizer), "output": str(at)}
    more = {"unit_bytes": 3000, "validation_share": 0.15, "sentences": True, "lengths": [48]}
    assert (
        "of one sentence make no pair in rows of 48 tokens"
        in done(words("prepare", given | more)).out
    )
    return at


def paired(run_dir: Path, store: Path, tokenizer: Path, **more: Any) -> dict[str, Any]:
    """Phase one on pairs; `objective` names it."""
    objective = more.pop("objective", "NextSentence")
    options = pretrain(run_dir, store, tokenizer, causal=False, **more)
    fixed = {"model.objective": objective, "data.layout": "sentence_pairs", "data.length": 48}
    return options | {"model.backbone": PAIRED} | fixed


@pytest.fixture(scope="module")
def undisturbed(
    pair_store: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A run of each objective."""
    at = tmp_path_factory.mktemp("runs")
    for objective in ("NextSentence", "SentenceOrder"):
        run = done(words("fit", paired(at / objective, pair_store, tokenizer, objective=objective)))
        assert "documents have one sentence, make no pair and are left out" in run.err
    return {path.name: path for path in at.iterdir()}


BOTH = pytest.mark.parametrize("objective", ["NextSentence", "SentenceOrder"])


@BOTH
def test_a_run_tells_both_losses_and_how_many_pairs_are_judged_rightly(undisturbed, objective):
    rows = read_metrics(undisturbed[objective])
    last = next(row for row in reversed(rows) if row["val_loss"])
    for name in ("pair_accuracy", "masked_loss", "pair_loss", "accuracy", "perplexity"):
        assert float(last[f"val_{name}"]) >= 0
        assert any(row[f"train_{name}"] for row in rows)
    both = float(last["val_masked_loss"]) + float(last["val_pair_loss"])
    assert float(last["val_loss"]) == pytest.approx(both, rel=1e-5)
    tensors = weights(undisturbed[objective])
    assert tensors["head.pooler.weight"].shape == (32, 32)
    assert tensors["head.classifier.weight"].shape == (2, 32)
    assert "head.dense.weight" in tensors
    assert (undisturbed[objective] / "samples.jsonl").is_file()


@BOTH
def test_resumed_with_other_workers_and_micro_batches(
    undisturbed, objective, pair_store, tokenizer, tmp_path
):
    run = tmp_path / "run"
    given = paired(run, pair_store, tokenizer, objective=objective)
    done(words("fit", given | {"trainer.max_steps": 3, "trainer.val_check_interval": 3}))
    (run / "bundle").rename(run / "bundle-3")
    more = {"ckpt_path": "last", "data.workers": 2, "data.micro_batch_size": 2}
    done(words("fit", given | more))
    assert read_audit(run) == read_audit(undisturbed[objective])


def test_two_ranks_read_the_same_pairs(undisturbed, pair_store, tokenizer, tmp_path):
    options = paired(tmp_path / "two", pair_store, tokenizer)
    two = {"trainer.devices": 2, "trainer.strategy": "ddp"}
    run = finish(launch(words("fit", options | two)), timeout=240)
    assert run.code == 0, run.err
    assert read_audit(tmp_path / "two") == read_audit(undisturbed["NextSentence"])
    mine, theirs = weights(tmp_path / "two"), weights(undisturbed["NextSentence"])
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=2e-4)


def test_fit_finds_the_sentences_of_a_new_store(file, undisturbed, tokenizer, pair_store, tmp_path):
    options = paired(tmp_path / "run", tmp_path / "new", tokenizer)
    given = {"data.files": [str(file)], "data.validation_share": 0.15, "trainer.max_steps": 2}
    done(words("fit", options | given | {"model.objective": "SentenceOrder"}))
    assert list((tmp_path / "new").glob("*.sentences.npy"))


def test_a_mixture_of_stores_of_pairs(file, tokenizer, pair_store, tmp_path):
    other = tmp_path / "other"
    given = {"files": [str(file)], "tokenizer": str(tokenizer), "output": str(other), "seed": 9}
    done(words("prepare", given | {"sentences": True, "validation_share": 0.3}))
    options = paired(tmp_path / "run", pair_store, tokenizer, trainer__max_steps=2)
    done(words("fit", options | {"data.replay": {str(other): 0.4}}))
    told = [row["train_other_share"] for row in read_metrics(tmp_path / "run")]
    shares = [float(share) for share in told if share]
    assert sum(shares) / len(shares) == pytest.approx(0.4, abs=0.1)
    plain = tmp_path / "plain"
    done(words("prepare", given | {"output": str(plain)}))
    run = call(
        words("fit", options | {"run_dir": str(tmp_path / "b"), "data.replay": {str(plain): 0.4}})
    )
    assert run.code == 2
    assert f"token store '{plain}' was made without sentence starts" in run.err


def test_pairs_alone_learn_an_order_that_can_be_told(tokenizer, tmp_path):
    """Documents begin with water and end with land."""
    rng, lines = random.Random(6), []
    for _ in range(300):
        topics = [WATER] * rng.randint(1, 3) + [LAND] * rng.randint(1, 3)
        texts = [" ".join([*rng.choices(OTHER, k=2), *rng.choices(t, k=2)]) for t in topics]
        lines.append(json.dumps({"text": ". ".join(t.capitalize() for t in texts) + "."}) + "\n")
    (tmp_path / "text.jsonl").write_text("".join(lines))
    alone = {"class_path": "SentenceOrder", "init_args": {"rate": None}}
    options = paired(tmp_path / "run", tmp_path / "store", tokenizer, objective=alone)
    more = {"trainer.max_steps": 60, "trainer.val_check_interval": 60, "data.audit": None}
    size = {"data.global_batch_size": 24, "data.micro_batch_size": 24, "model.optimizer.lr": 3e-3}
    text = {"data.files": [str(tmp_path / "text.jsonl")], "data.validation_share": 0.2}
    done(words("fit", options | more | size | text | {"checkpoint.every_n_steps": 60}))
    rows = read_metrics(tmp_path / "run")
    assert float(next(row for row in rows if row["val_loss"])["val_pair_accuracy"]) > 0.8
    assert "val_perplexity" not in rows[0]
    assert not (tmp_path / "run" / "samples.jsonl").exists()
    run = call(["score", "--init_from", str(tmp_path / "run"), "--text", "The old river."])
    assert run.code == 2
    assert "learnt 'sentence_order' alone and predicts no tokens" in run.err


def test_a_task_on_pairs_begins_with_the_pooler(undisturbed, tmp_path):
    examples = write_examples(tmp_path)
    task = {"class_path": "Classification", "init_args": {"pooling": "first", "transform": "tanh"}}
    options = finetune(tmp_path / "run", undisturbed["NextSentence"], examples)
    more = {"model.task": task, "data.columns": {"text": "text", "pair": "second"}}
    start = {"model.optimizer.lr": STILL, "trainer.max_epochs": 1}
    run = done(words("fit", options | more | start))
    pooler = weights(undisturbed["NextSentence"])["head.pooler.weight"]
    assert torch.equal(weights(tmp_path / "run")["head.dense.weight"], pooler)
    assert "head.pooler" not in run.err  # neither new nor unused
    done(words("fit", options | more | {"run_dir": str(tmp_path / "tuned")}))
    done(["test", "--run_dir", tmp_path / "tuned"])
    lines = read_json_lines((tmp_path / "tuned" / "test_predictions.jsonl").read_text())
    assert len(lines) == 23
    mean = {"class_path": "Classification"}
    done(
        words("fit", options | more | start | {"model.task": mean, "run_dir": str(tmp_path / "m")})
    )
    assert "head.dense.weight" not in weights(tmp_path / "m")


def test_heads_that_share_masked_lm_begin_with_it(undisturbed, pair_store, tokenizer, tmp_path):
    start = {"model.backbone": None, "model.optimizer.lr": STILL, "trainer.max_steps": 1}
    given = start | {"model.init_from": str(undisturbed["NextSentence"])}
    masked = pretrain(tmp_path / "masked", pair_store, tokenizer, causal=False)
    run = done(words("fit", masked | given))
    assert "head 'masked': what it shares with 'next_sentence', the rest is new" in run.err
    before, after = weights(undisturbed["NextSentence"]), weights(tmp_path / "masked")
    assert "head.dense.weight" in after
    assert [name for name in after if not torch.equal(after[name], before[name])] == []
    back = paired(tmp_path / "back", pair_store, tokenizer, objective="SentenceOrder")
    done(words("fit", back | start | {"model.init_from": str(tmp_path / "masked")}))
    again = weights(tmp_path / "back")
    assert [name for name in after if not torch.equal(after[name], again[name])] == []
    assert "head.pooler.weight" in again
    same = paired(tmp_path / "same", pair_store, tokenizer)
    done(words("fit", same | given))
    assert_same_weights(tmp_path / "same", undisturbed["NextSentence"])


def test_a_next_sentence_model_goes_to_transformers_and_back(file, pair_store, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    bert = {"positions": "learned", "norm_first": False, "embedding_norm": True, "norm_eps": 1e-12}
    options = paired(tmp_path / "run", pair_store, tokenizer, trainer__max_steps=2)
    done(words("fit", options | {"model.backbone": {**PAIRED, **bert}}))
    run = done(["export", "--init_from", tmp_path / "run", "--output", tmp_path / "hf"])
    assert "as transformers computes it" in run.out
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["architectures"] == ["BertForPreTraining"]
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "hf")
    mine = weights(tmp_path / "run")
    assert torch.equal(theirs.cls.seq_relationship.weight, mine["head.classifier.weight"])
    assert torch.equal(theirs.bert.pooler.dense.bias, mine["head.pooler.bias"])
    given = {"model.backbone": None, "model.init_from": str(tmp_path / "hf")}
    start = {"run_dir": str(tmp_path / "on"), "model.optimizer.lr": STILL, "trainer.max_steps": 1}
    text = {"data.tokenizer": None, "data.files": [str(file)], "data.store": str(tmp_path / "s")}
    done(words("fit", options | given | start | text))
    assert_same_weights(tmp_path / "on", tmp_path / "run")
    order = paired(tmp_path / "sop", pair_store, tokenizer, objective="SentenceOrder")
    done(words("fit", order | {"model.backbone": {**PAIRED, **bert}, "trainer.max_steps": 1}))
    run = call(["export", "--init_from", str(tmp_path / "sop"), "--output", str(tmp_path / "no")])
    assert run.code == 2
    assert "the head is 'sentence_order'" in run.err


MISTAKES = {
    "layout": (
        {"data.layout": "blocks"},
        "learns from pairs of sentences, data.layout is 'blocks': set data.layout sentence_pairs",
    ),
    "objective": (
        {"model.objective": "MaskedLM"},
        "objective 'masked' does not learn from pairs: set data.layout documents, or take",
    ),
    "causal objective": (
        {"model.objective": "CausalLM", "model.backbone.causal": True},
        "objective 'causal' does not learn from pairs",
    ),
    "causal backbone": ({"model.backbone.causal": True}, "needs model.backbone.causal false"),
    "token types": ({"model.backbone.token_types": 0}, "set model.backbone.token_types 2"),
    "rate": (
        {"model.objective": {"class_path": "NextSentence", "init_args": {"rate": 1.5}}},
        "objective.rate is 1.5",
    ),
    "length": ({"data.length": 4}, "data.length is 4: a pair of sentences takes 5 tokens"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_fix(name, pair_store, tokenizer, tmp_path):
    more, told = MISTAKES[name]
    options = paired(tmp_path / "run", pair_store, tokenizer)
    backbone = dict(options["model.backbone"])
    for key, value in more.items():
        if key.startswith("model.backbone."):
            backbone[key.rpartition(".")[2]] = value
        else:
            options[key] = value
    run = call(words("fit", options | {"model.backbone": backbone}))
    assert run.code == 2
    assert told in run.err
    assert len(run.errors) == 1


def test_a_store_without_sentences(store, bpe_path, tmp_path):
    run = call(words("fit", paired(tmp_path / "run", store, bpe_path)))
    assert run.code == 2
    assert "data.layout sentence_pairs needs sentence starts" in run.err
    assert "--sentences true" in run.err
