"""`sweep`: spaces, trials in directories of their own, a killed sweep that goes on, failures."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from faults.kit import (
    assert_same_weights,
    call,
    done,
    finish,
    launch,
    read_metrics,
    wait_for_lines,
)
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ptft_lightning.commands.sweep import direction_of
from ptft_lightning.commands.sweep_results import aligned, error_of, values_of
from ptft_lightning.commands.sweep_space import overlay, read_space
from ptft_lightning.errors import UserError

CONFIG = {
    "model": {
        "class_path": "PretrainModule",
        "init_args": {"optimizer": {"lr": 1e-3}, "tuning": None, "backbone": {"heads": 2}},
    },
    "trainer": {"max_steps": 3},
    "run_dir": "runs/x",
}


def space(at: Path, content: str) -> Any:
    (at / "space.yaml").write_text(content)
    return read_space(str(at / "space.yaml"), CONFIG)


def test_a_space(tmp_path):
    text = """
model.optimizer.lr: {log_uniform: [1e-4, 1.0e-2]}
model.init_args.backbone.heads: {int: [1, 4]}
model.tuning: {categorical: [Full, null]}
trainer.max_steps: {uniform: [1, 2]}
"""
    assert space(tmp_path, text) == {
        "model.optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True),
        "model.init_args.backbone.heads": IntDistribution(1, 4),
        "model.tuning": CategoricalDistribution(["Full", None]),
        "trainer.max_steps": FloatDistribution(1, 2),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no settings"),
        ("[a]", "holds no settings"),
        ("a: [", "not YAML"),
        ("model.optimizer.lrr: {uniform: [1, 2]}", "'model.optimizer': did you mean 'lr'"),
        ("modle.optimizer: {uniform: [1, 2]}", "the config: did you mean 'model'"),
        ("trainer.max_steps.x: {uniform: [1, 2]}", "'trainer.max_steps' has: none"),
        ("run_dir: {categorical: [a]}", "run_dir cannot vary"),
        ("trainer.max_steps: {uniform: [2, 1]}", r"\[2, 1\]: the first number must be below"),
        ("trainer.max_steps: {uniform: [1]}", r"give two numbers \[low, high\]"),
        ("trainer.max_steps: {uniform: [a, b]}", r"give two numbers \[low, high\]"),
        ("trainer.max_steps: {int: [1.5, 2]}", "give whole numbers"),
        ("trainer.max_steps: {log_uniform: [0, 2]}", "must be above 0"),
        ("trainer.max_steps: {normal: [0, 2]}", "give one of log_uniform"),
        ("trainer.max_steps: 3", "give one of log_uniform"),
        ("trainer.max_steps: {categorical: [[1], [2]]}", "takes plain values"),
    ],
)
def test_what_is_no_space(text, words, tmp_path):
    with pytest.raises(UserError, match=words):
        space(tmp_path, text)


def test_the_overlay_stands_where_the_config_has_it():
    chosen = {"model.optimizer.lr": 0.1, "model.init_args.tuning": "Full", "trainer.max_steps": 2}
    assert overlay(chosen, CONFIG, "space.yaml") == {
        "model": {"init_args": {"optimizer": {"lr": 0.1}, "tuning": "Full"}},
        "trainer": {"max_steps": 2},
    }


def test_directions():
    assert direction_of("val_loss", None) == "minimize"
    assert direction_of("val_perplexity", None) == "minimize"
    assert direction_of("val_accuracy", None) == "maximize"
    assert direction_of("tokens_per_s", "maximize") == "maximize"
    with pytest.raises(UserError, match="give --direction"):
        direction_of("grad_norm", None)


def test_metrics_that_are_being_written(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,val_loss,lr\n3,,0.1\n6,2.5,0.1\n9,2.2,0.1\n12,2")
    assert values_of(tmp_path, "val_loss") == [(6, 2.5), (9, 2.2)]
    assert values_of(tmp_path, "lr") == [(3, 0.1), (6, 0.1), (9, 0.1)]
    assert values_of(tmp_path / "nowhere", "lr") == []


def test_what_a_trial_said_last(tmp_path):
    assert error_of(tmp_path) == "it said nothing"
    (tmp_path / "log.txt").write_text("model: 1 M\nerror: too large\n\nfarewell\n")
    assert error_of(tmp_path) == "error: too large"
    (tmp_path / "log.txt").write_text("Traceback\nRuntimeError: the machine burns\n\n")
    assert error_of(tmp_path) == "RuntimeError: the machine burns"


def test_a_table():
    assert list(aligned([["a", "bb"], ["ccc", ""]])) == ["a    bb", "ccc"]


# Journeys.


@pytest.fixture
def base(store: Path, bpe_path: Path, tmp_path: Path) -> Path:
    config = {
        "run_dir": str(tmp_path / "base"),
        "model": {
            "class_path": "PretrainModule",
            "init_args": {
                "objective": "CausalLM",
                "backbone": {"dim": 32, "depth": 2, "heads": 2, "max_length": 32, "causal": True},
            },
        },
        "data": {
            "class_path": "CorpusDataModule",
            "init_args": {
                **{"store": str(store), "tokenizer": str(bpe_path), "length": 32},
                **{"global_batch_size": 4, "micro_batch_size": 4},
            },
        },
        "trainer": {
            **{"accelerator": "cpu", "max_steps": 60, "val_check_interval": 30},
            "log_every_n_steps": 1,
        },
        "checkpoint": {"every_n_steps": 2},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "base.yaml"


def sweep(base: Path, space: str, **more: str) -> list[str]:
    at = base.parent
    (at / "space.yaml").write_text(space)
    words = ["sweep", "--config", str(base), "--space", str(at / "space.yaml")]
    words += ["--output", str(at / "sweep")]
    return words + [part for name, value in more.items() for part in (f"--{name}", value)]


LR = "model.optimizer.lr: {log_uniform: [1.0e-4, 1.0e-2]}\n"


def test_a_killed_sweep_goes_on_to_the_same_bits(base, tmp_path):
    out = tmp_path / "sweep"
    args = sweep(base, LR, trials="2")
    process = launch(args)
    wait_for_lines(process, out / "trial-000" / "metrics.csv", 5)
    refused = call(args)
    assert refused.code == 2
    assert "another sweep" in refused.errors[0]
    os.killpg(process.pid, signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL
    for _ in range(100):  # its trial may outlive it for a moment
        run = call(args)
        if "still works there" not in run.err:
            break
        time.sleep(0.1)
    assert run.code == 0, run.err
    assert "resuming from" in (out / "trial-000" / "log.txt").read_text()
    assert "2 trials, 0 failed" in run.err
    with open(out / "trials.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["trial"] for row in rows) == ["0", "1"]
    assert float(rows[0]["val_loss"]) < float(rows[1]["val_loss"])
    for row in rows:
        last = read_metrics(out / f"trial-{int(row['trial']):03d}")[-1]
        assert float(row["val_loss"]) == pytest.approx(float(last["val_loss"]), rel=1e-5)
    # The best trial's settings as an overlay give the best trial.
    chosen = ["--config", str(base), "--config", str(out / "best.yaml")]
    done(["fit", *chosen, "--run_dir", str(tmp_path / "again")])
    assert_same_weights(tmp_path / "again", out / f"trial-{int(rows[0]['trial']):03d}")
    # Asked for no more trials, it only tells.
    again = done(args)
    assert again.out == run.out
    refused = call(sweep(base, LR.replace("-2", "-3"), trials="3"))
    assert refused.code == 2
    assert "holds a sweep with space" in refused.errors[0]


def test_trials_that_fail_are_told(base, tmp_path):
    run = call(sweep(base, "model.backbone.heads: {categorical: [3, 5]}\n", trials="1"))
    assert run.code == 2
    assert "1 trials, 1 failed" in run.err
    assert "does not divide backbone.dim 32" in run.errors[0]
    assert "does not divide backbone.dim 32" in run.out
    assert not (tmp_path / "sweep" / "best.yaml").exists()


def test_an_unknown_metric(base):
    base.write_text(base.read_text().replace("max_steps: 60", "max_steps: 2"))
    options = {"metric": "val_los", "direction": "minimize", "trials": "1"}
    run = call(sweep(base, LR, **options))
    assert run.code == 2
    assert "--metric 'val_los' is no column of" in run.errors[0]
    assert "train_loss" in run.errors[0]


def test_a_trial_worse_than_the_median_is_ended(base, tmp_path):
    (tmp_path / "sweep").mkdir()
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path / 'sweep' / 'sweep.db'}", study_name="sweep"
    )
    for number in range(5):
        study.add_trial(
            optuna.trial.create_trial(
                params={"model.optimizer.lr": 1e-3},
                distributions={"model.optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True)},
                value=0.1,
                intermediate_values=dict.fromkeys(range(100), 0.1),
            )
        )
        (tmp_path / "sweep" / f"trial-{number:03d}").mkdir()
    base.write_text(base.read_text().replace("max_steps: 60", "max_steps: 100000"))
    run = done([*sweep(base, LR, trials="6", metric="train_loss"), "--prune"])
    assert "ended early" in run.err
    assert "6 trials, 0 failed, 1 ended early" in run.err
    assert study.trials[5].state == optuna.trial.TrialState.PRUNED
