"""When checkpoints are written, which stay, and what writing them beside training changes."""

from __future__ import annotations

import csv
import errno
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from faults.kit import (
    assert_same_weights,
    call,
    done,
    finetune,
    pretrain,
    read_metrics,
    words,
    write_examples,
)

from ptft_lightning.errors import UserError
from ptft_lightning.modules.checkpoints import is_whole, list_checkpoints
from ptft_lightning.modules.lightning_edges import AtomicCheckpointIO
from ptft_lightning.modules.save_times import SaveTimes

STEP = 6 * 32  # tokens


def fit(run_dir: Path, store: Path, bpe_path: Path, **more: object) -> list[str]:
    return words("fit", pretrain(run_dir, store, bpe_path, **more))


def steps(run_dir: Path) -> list[int]:
    return [int(p.name[5:13]) for p in list_checkpoints(run_dir / "checkpoints")]


def test_by_tokens_with_milestones(store, bpe_path, tmp_path):
    policy = {
        "checkpoint__every_n_steps": None,
        "checkpoint__every_n_tokens": 2 * STEP,
        "checkpoint__keep": 1,
        "checkpoint__keep_every_n_steps": 6,
        "trainer__max_steps": 15,
    }
    run = done(fit(tmp_path / "run", store, bpe_path, **policy))
    assert steps(tmp_path / "run") == [6, 12, 15]
    assert "checkpoints: 8 saves, training waited" in run.err  # 2, 4, .. 14 and the end
    with open(tmp_path / "run" / "metrics.csv", newline="") as stream:
        saved = [int(row["step"]) for row in csv.DictReader(stream) if row["save_seconds"]]
    assert saved == [2, 4, 6, 8, 10, 12, 14, 15]


def test_phase_two_has_no_tokens_to_count(store, bpe_path, tmp_path):
    more = {"checkpoint.every_n_steps": None, "checkpoint.every_n_tokens": 100}
    (tmp_path / "examples").mkdir()
    examples = write_examples(tmp_path / "examples")
    done(fit(tmp_path / "one", store, bpe_path, trainer__max_steps=1))
    options = finetune(tmp_path / "two", tmp_path / "one" / "bundle", examples)
    run = call(words("fit", options | more))
    assert run.code == 2
    assert "checkpoint.every_n_tokens is 100, which counts the rows of phase one" in run.err
    assert read_metrics(tmp_path / "two") == []  # before the first step


def test_the_best_validation_stays(store, bpe_path, tmp_path):
    """A rate that ruins the model makes the first validation the best one."""
    policy = {
        "checkpoint__every_n_steps": 100,
        "checkpoint__keep": 1,
        "checkpoint__keep_best": True,
        "model__optimizer__lr": 0.05,
        "model__optimizer__warmup": 0,
        "trainer__max_steps": 13,
        "trainer__val_check_interval": 3,
    }
    done(fit(tmp_path / "run", store, bpe_path, **policy))
    with open(tmp_path / "run" / "metrics.csv", newline="") as stream:
        losses = {
            int(row["step"]): float(row["val_loss"])
            for row in csv.DictReader(stream)
            if row["val_loss"]
        }
    best = min(losses, key=lambda step: losses[step])
    assert steps(tmp_path / "run") == sorted({best, 13})


def test_written_beside_training_is_what_is_written_between_steps(store, bpe_path, tmp_path):
    for name, beside in (("one", False), ("other", True)):
        done(fit(tmp_path / name, store, bpe_path, checkpoint__asynchronous=beside))
    assert_same_weights(tmp_path / "one", tmp_path / "other")
    files = [list_checkpoints(tmp_path / name / "checkpoints") for name in ("one", "other")]
    assert [p.name for p in files[0]] == [p.name for p in files[1]]
    io = AtomicCheckpointIO()
    one, other = (io.load_checkpoint(found[0])["state_dict"] for found in files)
    assert all((one[name] == other[name]).all() for name in one)
    # And it can be gone on with.
    files[1][-1].unlink()
    more = {"checkpoint__asynchronous": True, "ckpt_path": "last"}
    done(fit(tmp_path / "other", store, bpe_path, **more))
    assert_same_weights(tmp_path / "one", tmp_path / "other")
    rows = [read_metrics(tmp_path / name) for name in ("one", "other")]
    assert [row["train_loss"] for row in rows[0]] == [row["train_loss"] for row in rows[1]]


def test_a_full_disk_is_told_and_leaves_the_checkpoint_before(
    store, bpe_path, tmp_path, monkeypatch
):
    write = AtomicCheckpointIO._write

    def full(self: AtomicCheckpointIO, checkpoint: dict[str, object], target: Path) -> None:
        if "00000006" in target.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        write(self, checkpoint, target)

    monkeypatch.setattr(AtomicCheckpointIO, "_write", full)
    run = call(fit(tmp_path / "run", store, bpe_path, checkpoint__asynchronous=True))
    assert run.code != 0
    assert "No space left on device" in run.err
    (kept,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert kept.name == "step=00000003.ckpt"
    assert is_whole(kept)


def trainer(step: int) -> SimpleNamespace:
    return SimpleNamespace(
        global_step=step, world_size=1, strategy=SimpleNamespace(broadcast=lambda value: value)
    )


def test_by_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    times = SaveTimes(None, None, 2.0)
    now[0] = 119.0
    assert not times.due(trainer(1))
    now[0] = 121.0
    assert times.due(trainer(2))
    times.start()
    assert not times.due(trainer(3))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((None, None, None), "are null: give one of them"),
        ((0, None, None), "checkpoint.every_n_steps is 0"),
        ((None, -5, None), "checkpoint.every_n_tokens is -5"),
        ((None, None, 0.0), "checkpoint.every_minutes is 0.0"),
    ],
)
def test_times_that_make_no_sense(given: tuple[int | None, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        SaveTimes(*given)
