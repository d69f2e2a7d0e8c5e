"""Early stopping: the best bundle stays, a resume keeps the count, an ended run stays ended."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from faults.kit import (
    BACKBONE,
    assert_same_weights,
    call,
    done,
    finetune,
    pretrain,
    read_audit,
    read_metrics,
    words,
)

from ptft_lightning.modules.early_stopping import StopEarly
from ptft_lightning.modules.preempt import EXIT_CODE


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels that nothing tells: what is learned by heart makes validation worse."""
    at, rng = tmp_path_factory.mktemp("noise"), random.Random(0)
    for split, count in (("train", 28), ("validation", 23), ("test", 23)):
        rows = [
            {
                "text": " ".join(rng.choices(["river", "stone", "bread", "music"], k=4)),
                "label": "ab"[i % 2],
            }
            for i in range(count)
        ]
        (at / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return at


@pytest.fixture
def options(noise: Path, bpe_path: Path, tmp_path: Path) -> Any:
    def of(run: str, **more: Any) -> dict[str, Any]:
        scratch = {"model__init_from": None, "model__backbone": BACKBONE}
        scratch |= {"data__tokenizer": str(bpe_path), "model__task__monitor": "loss"}
        scratch |= {"trainer__max_epochs": 30, "early_stopping__patience": 3}
        return finetune(tmp_path / run, tmp_path, noise, **(scratch | more))

    return of


def losses_of(run_dir: Path) -> list[float]:
    return [float(row["val_loss"]) for row in read_metrics(run_dir) if row["val_loss"]]


def stopped_at(losses: list[float], patience: int, min_delta: float) -> int | None:
    """How many validations there are until `patience` in a row improve on none before."""
    best, waited = float("inf"), 0
    for count, loss in enumerate(losses, start=1):
        waited = 0 if best - loss > min_delta else waited + 1
        best = loss if waited == 0 else best
        if waited == patience:
            return count
    return None


def test_it_stops_with_the_best_bundle_and_a_checkpoint(options, tmp_path):
    run = done(words("fit", options("run")))
    losses = losses_of(tmp_path / "run")
    assert stopped_at(losses, 3, 0.0) == len(losses) < 30
    step = 2 * len(losses)  # two steps an epoch
    said = f"stopped early at step {step}: 3 validations without improvement of val_loss (best"
    assert run.err.count(said) == 1
    assert len(read_audit(tmp_path / "run")) == step
    lineage = json.loads((tmp_path / "run" / "bundle" / "lineage.json").read_text())
    assert lineage["metrics"]["val_loss"] == pytest.approx(min(losses), rel=1e-6)
    assert lineage["steps"] == 2 * (1 + losses.index(min(losses))) < step
    assert (tmp_path / "run" / "checkpoints" / f"step={step:08d}.ckpt").is_file()
    assert "done: " in run.err


def test_a_run_that_stopped_early_stays_ended(options, tmp_path):
    given = options("run")
    done(words("fit", given))
    audit, metrics = read_audit(tmp_path / "run"), read_metrics(tmp_path / "run")
    bundle = (tmp_path / "run" / "bundle" / "lineage.json").read_text()
    run = done(words("fit", given | {"ckpt_path": "last"}))
    assert "stopped early at step" in run.err
    assert read_audit(tmp_path / "run") == audit
    assert read_metrics(tmp_path / "run") == metrics
    assert (tmp_path / "run" / "bundle" / "lineage.json").read_text() == bundle
    longer = given | {"ckpt_path": "last", "early_stopping.patience": 5}
    done(words("fit", longer))  # more patience takes it further
    assert len(read_audit(tmp_path / "run")) > len(audit)


@pytest.mark.parametrize("step", [7, 8])  # within an epoch, and where a validation follows
def test_a_resume_keeps_the_count(options, tmp_path, step):
    done(words("fit", options("whole")))
    stop = {"class_path": "faults.kit.Terminate", "init_args": {"step": step}}
    run = call(words("fit", options("parts", trainer__callbacks=[stop])))
    assert run.code == EXIT_CODE, run.err
    assert len(read_audit(tmp_path / "parts")) < len(read_audit(tmp_path / "whole"))
    done(words("fit", options("parts") | {"ckpt_path": "last"}))
    assert read_audit(tmp_path / "whole") == read_audit(tmp_path / "parts")
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_small_improvements_do_not_count(options, tmp_path):
    done(words("fit", options("run", early_stopping__min_delta=10.0)))
    assert len(losses_of(tmp_path / "run")) == 4  # the first, and three that are not 10 better


def test_phase_one_stops_by_its_loss(store, bpe_path, tmp_path):
    more = {"early_stopping__patience": 2, "early_stopping__min_delta": 10.0}
    given = pretrain(tmp_path / "run", store, bpe_path, trainer__max_steps=60, **more)
    run = done(words("fit", given | {"trainer.val_check_interval": 4}))
    assert len(losses_of(tmp_path / "run")) == 3
    lineage = json.loads((tmp_path / "run" / "bundle" / "lineage.json").read_text())
    assert lineage["steps"] == 12  # phase one's bundle is the last step's
    assert "stopped early at step 12" in run.err


def test_a_metric_that_is_never_a_number_is_no_improvement():
    callback = StopEarly(patience=2)
    trainer: Any = type("T", (), {"sanity_checking": False, "global_step": 1})()
    trainer.state = type("S", (), {"fn": "fit"})()
    trainer.is_global_zero, trainer.should_stop = True, False
    module: Any = object()
    for value, waited in ((float("nan"), 1), (2.0, 0), (float("nan"), 1), (3.0, 2)):
        trainer.callback_metrics = {"val_loss": value}
        callback.on_validation_end(trainer, module)
        assert (callback.waited, trainer.should_stop) == (waited, waited == 2)
    assert callback.state_dict() == {"best": 2.0, "waited": 2}
