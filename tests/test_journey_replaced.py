"""Replaced-token detection from text to a task: pretrain, resume, ranks, go on, fine-tune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.kit import (
    BACKBONE,
    assert_same_weights,
    call,
    done,
    finetune,
    finish,
    launch,
    pretrain,
    read_audit,
    read_metrics,
    weights,
    words,
    write_examples,
)

SHAPE = {**BACKBONE, "causal": False, "dropout": 0.0}
OBJECTIVE = {"class_path": "ReplacedTokens", "init_args": {"generator_width": 0.5}}
STILL = 1e-30  # too small to change a weight
REPORTED = (
    *("masked_loss", "replaced_loss", "masked_accuracy", "perplexity", "replaced_accuracy"),
    *("replaced_share", "replaced_called", "replaced_precision", "replaced_recall"),
)


def electra(run_dir: Path, store: Path, tokenizer: Path, **more: Any) -> dict[str, Any]:
    options = pretrain(run_dir, store, tokenizer, causal=False, **more)
    return {**options, "model.objective": OBJECTIVE, "model.backbone": SHAPE}


@pytest.fixture(scope="module")
def undisturbed(store: Path, bpe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    done(words("fit", electra(run_dir, store, bpe_path)))
    return run_dir


def test_a_run_tells_of_generator_and_detector(undisturbed):
    rows = read_metrics(undisturbed)
    last = next(row for row in reversed(rows) if row["val_loss"])
    for name in REPORTED:
        assert float(last[f"val_{name}"]) >= 0
        assert any(row[f"train_{name}"] for row in rows)
    both = float(last["val_masked_loss"]) + float(last["val_replaced_loss"])
    assert float(last["val_loss"]) == pytest.approx(both, rel=1e-5)
    assert 0.1 < float(last["val_replaced_share"]) < 0.16
    config = json.loads((undisturbed / "bundle" / "config.json").read_text())
    assert config["head"]["config"]["generator_width"] == 0.5
    tensors = weights(undisturbed)
    assert tensors["backbone.layers.1.ffn.up.weight"].shape == (128, 32)
    assert tensors["head.generator.layers.1.ffn.up.weight"].shape == (64, 16)
    assert tensors["head.generator.narrow.weight"].shape == (16, 32)
    assert not (undisturbed / "samples.jsonl").exists()


def test_resumed_it_is_the_same_run(undisturbed, store, bpe_path, tmp_path):
    given = electra(tmp_path / "run", store, bpe_path)
    done(words("fit", given | {"trainer.max_steps": 3, "trainer.val_check_interval": 3}))
    (tmp_path / "run" / "bundle").rename(tmp_path / "run" / "bundle-3")
    # The learning rate's schedule is that of the whole run only where both know its length.
    done(words("fit", given | {"ckpt_path": "last", "data.workers": 1}))
    assert read_audit(tmp_path / "run") == read_audit(undisturbed)
    # Bit for bit with the schedule of the whole run from the start.
    whole = electra(tmp_path / "stopped", store, bpe_path)
    flat = {"model.optimizer.schedule": "constant", "model.optimizer.warmup": 0}
    done(words("fit", whole | flat | {"run_dir": str(tmp_path / "a"), "data.audit": None}))
    short = {"run_dir": str(tmp_path / "b"), "data.audit": None, "trainer.max_steps": 3}
    done(words("fit", whole | flat | short))
    (tmp_path / "b" / "bundle").rename(tmp_path / "b" / "bundle-3")
    more = {"trainer.max_steps": 8, "ckpt_path": "last"}
    done(words("fit", whole | flat | short | more))
    assert_same_weights(tmp_path / "b", tmp_path / "a")


def test_two_ranks_train_the_same(undisturbed, store, bpe_path, tmp_path):
    two = {"trainer.devices": 2, "trainer.strategy": "ddp"}
    run = finish(launch(words("fit", electra(tmp_path / "two", store, bpe_path) | two)), 240)
    assert run.code == 0, run.err
    assert read_audit(tmp_path / "two") == read_audit(undisturbed)
    mine, theirs = weights(tmp_path / "two"), weights(undisturbed)
    assert list(mine) == list(theirs)
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=2e-4)


def test_it_goes_on_with_its_generator(undisturbed, store, bpe_path, tmp_path):
    start = {"model.backbone": None, "model.optimizer.lr": STILL, "trainer.max_steps": 1}
    given = start | {"model.init_from": str(undisturbed)}
    run = done(words("fit", electra(tmp_path / "on", store, bpe_path) | given))
    assert "head 'replaced'" in run.err
    assert_same_weights(tmp_path / "on", undisturbed)
    # A generator of another size is no head of this bundle.
    other = {"class_path": "ReplacedTokens", "init_args": {"generator_width": 1.0}}
    options = electra(tmp_path / "other", store, bpe_path) | given | {"model.objective": other}
    run = call(words("fit", options))
    assert run.code == 2
    assert "head.generator" in run.err


def test_from_and_to_masked_lm_the_heads_begin_anew(undisturbed, store, bpe_path, tmp_path):
    masked = pretrain(tmp_path / "masked", store, bpe_path, causal=False, trainer__max_steps=1)
    start = {"model.backbone": None, "model.optimizer.lr": STILL, "trainer.max_steps": 1}
    run = done(words("fit", masked | start | {"model.init_from": str(undisturbed)}))
    assert "has a head for 'replaced', the one for 'masked' begins anew" in run.err
    back = electra(tmp_path / "back", store, bpe_path) | start
    run = done(words("fit", back | {"model.init_from": str(tmp_path / "masked")}))
    assert "has a head for 'masked', the one for 'replaced' begins anew" in run.err
    before, after = weights(undisturbed), weights(tmp_path / "back")
    backbone = [name for name in before if name.startswith("backbone.")]
    assert [name for name in backbone if not torch.equal(before[name], after[name])] == []


def test_phase_two_takes_the_detector(undisturbed, tmp_path):
    options = finetune(tmp_path / "tuned", undisturbed, write_examples(tmp_path))
    start = {"model.optimizer.lr": STILL, "trainer.max_epochs": 1}
    done(words("fit", options | start))
    mine, theirs = weights(tmp_path / "tuned"), weights(undisturbed)
    for name in mine:
        if name.startswith("backbone."):
            assert torch.equal(mine[name], theirs[name]), name
    assert not any("generator" in name for name in mine)
    done(words("fit", options | {"run_dir": str(tmp_path / "t")}))
    done(["test", "--run_dir", tmp_path / "t"])


def test_what_predicts_no_tokens_says_so(undisturbed, tmp_path):
    run = call(["score", "--init_from", str(undisturbed), "--text", "The river."])
    assert run.code == 2
    assert "learnt 'replaced', which predicts no tokens" in run.err
    run = call(["export", "--init_from", str(undisturbed), "--output", str(tmp_path / "hf")])
    assert run.code == 2
    assert "the nearest is electra" in run.err
    assert "backbone.positions is 'rotary' and would have to be 'learned'" in run.err
    assert "the head is" not in run.err


def test_a_causal_backbone_is_refused(store, bpe_path, tmp_path):
    options = electra(tmp_path / "run", store, bpe_path)
    run = call(words("fit", options | {"model.backbone": {**SHAPE, "causal": True}}))
    assert run.code == 2
    assert "objective 'replaced' needs model.backbone.causal false" in run.err
