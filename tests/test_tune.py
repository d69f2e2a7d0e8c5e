"""`tune`: what it suggests, what it leaves, and that a fit can follow in the same directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.kit import call, done, finetune, pretrain, words, write_examples

from ptft_lightning.commands.tune import suggest_rate
from ptft_lightning.errors import UserError
from ptft_lightning.modules.phase import PhaseModule


def tune(options: dict[str, Any], **more: Any) -> list[str]:
    return words("tune", options | more)


def left(run_dir: Path) -> list[str]:
    return sorted(str(p.relative_to(run_dir)) for p in run_dir.rglob("*") if p.is_file())


def test_the_rate_rises_from_end_to_end_and_nothing_else_is_left(store, bpe_path, tmp_path):
    run_dir = tmp_path / "run"
    options = pretrain(run_dir, store, bpe_path, trainer__max_steps=2)
    run = done(tune(options, what="lr", min_lr=1e-4, max_lr=0.3, steps=40))
    assert left(run_dir) == ["tune/lr.json", "tune/lr.png"]
    found = json.loads((run_dir / "tune" / "lr.json").read_text())
    rates = [rate for rate, _ in found["points"]]
    assert rates == pytest.approx(np.geomspace(1e-4, 0.3, 40).tolist())
    assert json.loads(run.out) == {"lr": found["suggestion"]}
    assert 1e-4 < found["suggestion"] < 0.3
    losses = [loss for _, loss in found["points"]]
    assert losses[0] == pytest.approx(np.log(600), abs=0.5)
    assert min(losses) < losses[0] - 0.5
    assert (run_dir / "tune" / "lr.png").read_bytes().startswith(b"\x89PNG")
    done(words("fit", options))
    assert (run_dir / "bundle").is_dir()


def test_a_loss_that_runs_away_ends_the_test(store, bpe_path, tmp_path):
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__gradient_clip_val=0)
    done(tune(options, what="lr", min_lr=1e-3, max_lr=1e4, steps=60))
    found = json.loads((tmp_path / "run" / "tune" / "lr.json").read_text())
    losses = [loss for _, loss in found["points"]]
    assert len(losses) < 60
    assert losses[-1] > 2 * min(losses)


def test_phase_two(store, bpe_path, tmp_path):
    write_examples(tmp_path)
    done(words("fit", pretrain(tmp_path / "one", store, bpe_path, trainer__max_steps=2)))
    options = finetune(tmp_path / "two", tmp_path / "one", tmp_path)
    done(tune(options, what="lr", steps=30))
    assert left(tmp_path / "two") == ["tune/lr.json", "tune/lr.png"]


def test_sizes_double_until_memory_ends(store, bpe_path, tmp_path, monkeypatch):
    """A training step that runs out of memory beyond four rows, as CUDA would say it."""
    step = PhaseModule.training_step
    seen = []

    def limited(self: PhaseModule, batch: Any, batch_idx: int) -> torch.Tensor:
        seen.append((self.data.global_batch_size, len(batch.tokens)))
        if len(batch.tokens) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PhaseModule, "training_step", limited)
    options = pretrain(tmp_path / "run", store, bpe_path, data__global_batch_size=24)
    run = done(tune(options, what="micro_batch_size"))
    found = json.loads((tmp_path / "run" / "tune" / "micro_batch_size.json").read_text())
    assert [size for size, _ in found["points"]] == [1, 2, 4]
    assert found["largest"] == 4
    assert found["suggestion"] in (1, 2, 4)
    assert "micro_batch_size 8: out of memory" in run.err
    assert {whole // micro for whole, micro in seen} == {2}, "two micro-batches a step"
    assert left(tmp_path / "run") == ["tune/micro_batch_size.json", "tune/micro_batch_size.png"]


def test_sizes_end_with_the_global_batch(store, bpe_path, tmp_path):
    options = pretrain(tmp_path / "run", store, bpe_path, data__global_batch_size=3)
    done(tune(options, what="micro_batch_size"))
    found = json.loads((tmp_path / "run" / "tune" / "micro_batch_size.json").read_text())
    assert [size for size, _ in found["points"]] == [1, 2, 3]
    assert all(speed > 0 for _, speed in found["points"])


def test_other_errors_are_not_taken_for_memory(store, bpe_path, tmp_path, monkeypatch):
    def broken(self: PhaseModule, batch: Any, batch_idx: int) -> torch.Tensor:
        raise RuntimeError("the machine burns")

    monkeypatch.setattr(PhaseModule, "training_step", broken)
    with pytest.raises(RuntimeError, match="the machine burns"):
        call(tune(pretrain(tmp_path / "run", store, bpe_path), what="micro_batch_size"))


# The suggestion.

RATES = np.geomspace(1e-6, 1, 120)


def test_the_steepest_fall_per_decade():
    """A logistic fall around 1e-3 under noise; a slope per unit of the rate would be at 1e-6."""
    noise = np.random.default_rng(0).normal(0, 0.02, len(RATES))
    losses = 8 - 4 / (1 + np.exp(-4 * (np.log10(RATES) + 3))) + noise
    assert 10**-3.3 < suggest_rate(RATES.tolist(), losses.tolist()) < 10**-2.7


def test_what_is_not_finite_is_left_out():
    losses = 8 - 4 / (1 + np.exp(-4 * (np.log10(RATES) + 3)))
    whole = suggest_rate(RATES.tolist(), losses.tolist())
    losses[RATES > 0.1] = np.nan
    assert suggest_rate(RATES.tolist(), losses.tolist()) == whole


def test_without_a_fall_there_is_no_suggestion():
    with pytest.raises(UserError, match="never falls"):
        suggest_rate(RATES.tolist(), np.linspace(1, 2, len(RATES)).tolist())
    with pytest.raises(UserError, match="ran away at once"):
        suggest_rate(RATES.tolist(), [float("nan")] * len(RATES))
