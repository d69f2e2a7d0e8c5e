"""Linformer and Reformer through both phases by the command line: learn, resume, tune, refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.kit import (
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

SIZE = {"dim": 32, "depth": 2, "heads": 2, "max_length": 32, "dropout": 0.1}
BACKBONES: dict[str, dict[str, Any]] = {
    "linformer": {"class_path": "LinformerConfig", "init_args": {**SIZE, "projected_length": 8}},
    "reformer": {
        "class_path": "ReformerConfig",
        "init_args": {**SIZE, "causal": True, "chunk_length": 8, "hash_rounds": 2},
    },
}
kinds = pytest.mark.parametrize("kind", BACKBONES)


def options(kind: str, run_dir: Path, store: Path, bpe_path: Path, **more: Any) -> dict[str, Any]:
    causal = kind == "reformer"
    given = {"model__backbone": BACKBONES[kind], **more}
    return pretrain(run_dir, store, bpe_path, causal=causal, **given)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> Path:
    """A phase-one run of each kind, under its name."""
    at = tmp_path_factory.mktemp("runs")
    for kind in BACKBONES:
        done(words("fit", options(kind, at / kind, store, bpe_path)))
    return at


@kinds
def test_a_bundle_says_its_kind(kind: str, runs: Path) -> None:
    config = json.loads((runs / kind / "bundle" / "config.json").read_text())["backbone"]
    assert config["kind"] == kind
    wanted = BACKBONES[kind]["init_args"]
    assert {name: config["config"][name] for name in wanted} == wanted
    shown = done(["inspect", str(runs / kind)])
    assert kind in shown.out + shown.err
    assert json.loads(done(["test", "--run_dir", str(runs / kind)]).out)["test_loss"] < 6.5


@kinds
def test_a_resumed_run_ends_in_the_same_bits(
    kind: str, runs: Path, store: Path, bpe_path: Path, tmp_path: Path
) -> None:
    whole = options(kind, tmp_path / "whole", store, bpe_path, checkpoint__keep=9)
    done(words("fit", whole))
    checkpoint = tmp_path / "whole" / "checkpoints" / "step=00000003.ckpt"
    again = whole | {"run_dir": str(tmp_path / "again"), "ckpt_path": str(checkpoint)}
    again["data.audit"] = str(tmp_path / "again" / "audit")
    done(words("fit", again))
    assert_same_weights(tmp_path / "again", tmp_path / "whole")
    rest = read_metrics(tmp_path / "again")
    assert rest == read_metrics(tmp_path / "whole")[-len(rest) :]


@kinds
def test_two_ranks_learn_the_same(kind: str, store: Path, bpe_path: Path, tmp_path: Path) -> None:
    """Without dropout, whose numbers are a rank's own."""
    backbone = {**BACKBONES[kind], "init_args": {**BACKBONES[kind]["init_args"], "dropout": 0.0}}
    more = {"model__backbone": backbone, "data__global_batch_size": 8, "trainer__max_steps": 4}
    one = options(kind, tmp_path / "one", store, bpe_path, **more)
    two = options(kind, tmp_path / "two", store, bpe_path, **more)
    run = finish(launch(words("fit", two | {"trainer.devices": 2, "trainer.strategy": "ddp"})))
    assert run.code == 0, run.err
    done(words("fit", one))
    mine, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, atol=2e-5, rtol=1e-3)
    assert read_audit(tmp_path / "one") == read_audit(tmp_path / "two")


@kinds
@pytest.mark.parametrize("tuning", [None, "LoRA", "PromptTuning"])
def test_phase_two(kind: str, tuning: str | None, runs: Path, tmp_path: Path) -> None:
    examples = write_examples(tmp_path)
    given = finetune(tmp_path / "two", runs / kind, examples, trainer__max_epochs=1)
    done(words("fit", given | {"model.tuning": tuning}))
    measured = json.loads(done(["test", "--run_dir", str(tmp_path / "two")]).out)
    assert 0 <= measured["test_accuracy"] <= 1


def test_a_reformer_writes_text_and_a_linformer_fills_masks(runs: Path) -> None:
    more = ["--temperature", "0", "--max_new_tokens", "6"]
    given = ["--init_from", str(runs / "reformer"), "--prompt", '["The river", "a"]', *more]
    both = done(["generate", *given]).out
    alone = done(["generate", *given[:2], "--prompt", "The river", *more]).out
    assert alone.strip() in both
    done(["generate", "--init_from", str(runs / "linformer"), "--prompt", "The [MASK] river"])


REFUSED = [
    ("linformer", {"model.tuning": "PrefixTuning"}, ["model.tuning prefix", "PromptTuning"]),
    ("reformer", {"model.tuning": "PrefixTuning"}, ["model.tuning prefix", "bucket"]),
    ("reformer", {"model.compile_layers": True}, ["model.compile_layers", "reversible false"]),
    (
        "reformer",
        {"model.activation_checkpointing": True},
        ["model.activation_checkpointing", "reversible false"],
    ),
    ("reformer", {"trainer.precision": "bf16-true"}, ["bf16-true", "bf16-mixed"]),
]


@pytest.mark.parametrize(("kind", "changes", "said"), REFUSED)
def test_what_does_not_go_together_is_refused(
    kind: str, changes: dict[str, Any], said: list[str], runs: Path, tmp_path: Path
) -> None:
    examples = write_examples(tmp_path)
    run = call(words("fit", finetune(tmp_path / "two", runs / kind, examples) | changes))
    assert run.code == 2
    (error,) = run.errors
    assert all(word in error for word in said), error


@kinds
def test_wrong_direction_and_wrong_settings(
    kind: str, store: Path, bpe_path: Path, tmp_path: Path
) -> None:
    given = options(kind, tmp_path / "run", store, bpe_path)
    other = {"linformer": "CausalLM", "reformer": "MaskedLM"}[kind]
    run = call(words("fit", given | {"model.objective": other}))
    assert run.code == 2
    assert "model.backbone.causal" in run.errors[0]
    wrong = {**BACKBONES[kind], "init_args": {"heads": 5, "dim": 32}}
    run = call(words("fit", given | {"model.backbone": wrong}))
    assert run.code == 2
    assert "backbone.heads 5 does not divide backbone.dim 32" in run.errors[0]


@kinds
def test_plan_and_export_say_no(
    kind: str, runs: Path, store: Path, bpe_path: Path, tmp_path: Path
) -> None:
    run = call(words("plan", options(kind, tmp_path / "run", store, bpe_path)))
    assert run.code == 2
    assert run.errors == ["error: what a fit costs is known of Transformers alone"]
    given = ["--init_from", str(runs / kind), "--output", str(tmp_path / "out")]
    run = call(["export", *given])
    assert run.code == 2
    (error,) = run.errors
    assert f"a {kind} has no counterpart" in error
