"""`plan` says what a fit will cost without building it; the fit says what it did cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults.kit import call, done, finetune, pretrain, words, write_examples

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"


def plan_of(options: dict[str, Any], file: Path, *more: str) -> dict[str, Any]:
    done([*words("plan", options | {"output": str(file), "peak_tflops": 1.0}), *more])
    record: dict[str, Any] = json.loads(file.read_text())
    return record


def costs_of(run_dir: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run_dir / "costs.json").read_text())
    return record


@pytest.mark.parametrize("causal", [True, False])
def test_a_fit_costs_what_was_planned(store, bpe_path, tmp_path, causal):
    run_dir = tmp_path / "run"
    options = pretrain(run_dir, store, bpe_path, causal=causal, trainer__max_steps=2)
    plan = plan_of(options, tmp_path / "plan.json")
    assert not run_dir.exists()
    run = done(words("fit", options))
    costs = costs_of(run_dir)
    lineage = json.loads((run_dir / "bundle" / "lineage.json").read_text())
    assert plan["parameters"]["total"] == lineage["parameters"]
    backbone = costs["backbone_parameters"]
    assert plan["backbone_parameters"] == backbone["predicted"] == backbone["measured"]
    counted = costs["flops_per_micro_batch"]
    assert plan["flops_per_micro_batch"] == counted["predicted"] == counted["measured"]
    assert plan["memory"]["single"]["peak"] == costs["peak_memory"]["predicted"]
    assert costs["peak_memory"]["measured"] is None  # of CUDA devices alone
    assert costs["seconds_per_step"] > 0
    assert (plan["steps"], plan["micro_batches_per_step"]) == (2, 2)
    assert (plan["tokens"], plan["tokens_per_step"]) == (2 * 6 * 32, 6 * 32)
    assert plan["hours"] == pytest.approx(plan["flops"] / 1e12 / 0.4 / 3600)
    assert "predicted: " in run.err
    assert "costs: " in run.err


def test_phase_two(store, bpe_path, tmp_path):
    """Its labels and steps come from the training file; examples are packed into fewer rows."""
    at = write_examples(tmp_path)
    done(words("fit", pretrain(at / "one", store, bpe_path, trainer__max_steps=1)))
    options = finetune(at / "two", at / "one", at, model__tuning="LoRA")
    plan = plan_of(options, at / "plan.json")
    assert plan["steps"] == 13  # 3 epochs of 60 examples, 14 a step
    assert plan["parameters"]["trained"] < plan["parameters"]["total"] / 3
    done(words("fit", options | {"trainer.max_epochs": 1}))
    costs = costs_of(at / "two")
    counted = costs["flops_per_micro_batch"]
    assert counted["predicted"] == counted["measured"] <= plan["flops_per_micro_batch"]
    missing = plan_of(options | {"data.train": str(at / "none")}, at / "other.json")
    assert missing["steps"] is None
    assert any("no training examples" in line for line in missing["assumed"])


def test_a_cluster_is_planned_without_one(tmp_path):
    """With neither tokenizer nor data nor GPU; what does not fit is said, with what to change."""
    options = {
        "config": str(CONFIGS / "pretrain" / "llama.yaml"),
        "trainer.accelerator": "gpu",
        "trainer.devices": 8,
        "trainer.num_nodes": 4,
        "trainer.strategy": "ddp",
        "model.backbone.dim": 1536,
        "model.backbone.depth": 24,
        "model.backbone.heads": 12,
        "data.global_batch_size": 512,
        "vocab_size": 50_000,
        "memory_gb": 12,
    }
    file = tmp_path / "plan.json"
    plan = plan_of(options, file)
    assert (plan["ranks"], plan["strategy"], plan["vocab_size"]) == (32, "ddp", 50_000)
    assert set(plan["memory"]) == {"single", "ddp", "fsdp2"}
    assert plan["memory"]["fsdp2"]["optimizer"] * 32 == plan["memory"]["ddp"]["optimizer"]
    (warning,) = plan["warnings"]
    assert warning.startswith("it will not fit: ")
    assert "data.micro_batch_size" in warning
    assert [line for line in plan["assumed"] if "a vocabulary of 50,000" in line]
    done([*words("plan", options), "--config", str(CONFIGS / "trainer" / "fsdp.yaml")])


@pytest.mark.parametrize("name", ["span_corruption", "electra", "albert_sop"])
def test_an_objective_is_planned_before_there_is_a_tokenizer(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"config": str(CONFIGS / "pretrain" / f"{name}.yaml"), "peak_tflops": 1}
    assert plan_of(options, tmp_path / "plan.json")["parameters"]["total"] > 10**6


def test_what_is_no_transformer_is_not_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = call(["plan", "--config", str(CONFIGS / "pretrain" / "elmo.yaml")])
    assert run.errors == ["error: what a fit costs is known of Transformers alone"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"mfu": -1}, "--mfu is -1"),
        ({"trainer.max_steps": -1}, "how long to train?"),
        ({"model.backbone.heads": 5}, "does not divide"),
        ({"data.length": 64}, "the backbone reads at most 32 tokens"),
        ({"trainer.strategy": "fsdp"}, "configs/trainer/fsdp.yaml"),
    ],
    ids=str,
)
def test_refusals(store, bpe_path, tmp_path, more, said):
    run = call(words("plan", pretrain(tmp_path / "run", store, bpe_path) | more))
    assert run.code == 2
    (error,) = run.errors
    assert said in error
    assert run.out == ""
