"""Pretraining while the text is still being prepared: the run is the one of a finished store."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data.test_growing import begun, copy_shard, place
from faults.kit import (
    assert_same_weights,
    call,
    done,
    finish,
    launch,
    pretrain,
    read_audit,
    read_metrics,
    wait_for_lines,
    words,
)

from ptft_lightning.data.manifest import read_manifest
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
DDP = {"trainer.devices": 2, "config": str(ROOT / "configs" / "trainer" / "ddp.yaml")}
STEPS = 40


@pytest.fixture(scope="module")
def finished(corpus_file: Path, bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    prepare_store([str(corpus_file)], bpe, directory, validation_share=0.1, unit_bytes=2048)
    assert len(read_manifest(directory).train) > 10
    return directory


def following(run_dir: Path, store: Path, tokenizer: Path, **more: Any) -> dict[str, Any]:
    options = pretrain(run_dir, store, tokenizer, data__window=2, **more)
    return options | {
        "data.growing": True,
        "trainer.max_steps": STEPS,
        "trainer.val_check_interval": 20,
        "trainer.log_every_n_steps": 10,
        "checkpoint.every_n_steps": 10,
    }


@pytest.fixture(scope="module")
def reference(finished: Path, bpe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on the store prepared beforehand."""
    run_dir = tmp_path_factory.mktemp("reference")
    done(words("fit", following(run_dir, finished, bpe_path)))
    return run_dir


def grow(source: Path, store: Path, goes_on: Callable[[], bool], first: int) -> None:
    """Copy shard after shard while a run is at work, each once all before it were waited for."""
    count = len(read_manifest(source).train)
    for number in range(first, count):
        assert goes_on()
        copy_shard(source, store, number)
        time.sleep(0.05)
    place(source / "manifest.json", store)


def assert_same_run(run_dir: Path, reference: Path) -> None:
    assert read_audit(run_dir) == read_audit(reference)
    assert_same_weights(run_dir, reference)


def test_the_run_is_that_of_a_store_prepared_beforehand(finished, reference, bpe_path, tmp_path):
    store = begun(finished, tmp_path / "store", 3)
    run_dir = tmp_path / "run"
    process = launch(words("fit", following(run_dir, store, bpe_path)))
    wait_for_lines(process, run_dir / "audit", 2)  # the first window is enough to begin
    assert process.poll() is None
    made = len(read_audit(run_dir))
    time.sleep(2)
    held = len(read_audit(run_dir))
    assert made <= held < STEPS  # it waits for shards
    grow(finished, store, lambda: process.poll() is None, 3)
    run = finish(process)
    assert run.code == 0, run.err
    assert_same_run(run_dir, reference)
    assert read_metrics(run_dir) == read_metrics(reference)
    # The samples are those of a run that knows nothing of growing, too.
    plain = following(tmp_path / "plain", finished, bpe_path) | {"data.growing": False}
    done(words("fit", plain))
    assert read_audit(tmp_path / "plain") == read_audit(reference)


def test_killed_and_resumed_with_workers_and_two_ranks(finished, reference, bpe_path, tmp_path):
    store = begun(finished, tmp_path / "store", 3)
    run_dir = tmp_path / "run"
    options = following(run_dir, store, bpe_path) | {"data.workers": 1}
    process = launch(words("fit", options))
    wait_for_lines(process, run_dir / "audit", 2)
    grow_to = len(read_manifest(finished).train) - 3
    for number in range(3, grow_to):
        copy_shard(finished, store, number)
    wait_for_lines(process, run_dir / "audit", 21)
    process.kill()
    process.wait()
    for number in range(grow_to, grow_to + 3):
        copy_shard(finished, store, number)
    place(finished / "manifest.json", store)
    resumed = finish(launch(words("fit", options | DDP | {"ckpt_path": "last"})))
    assert resumed.code == 0, resumed.err
    assert read_audit(run_dir) == read_audit(reference)


def test_one_command_prepares_and_trains(finished, reference, corpus_file, bpe_path, tmp_path):
    """The preparation is a process of its own, which goes on after a short training."""
    store, run_dir = tmp_path / "store", tmp_path / "run"
    options = following(run_dir, store, bpe_path) | {
        "data.files": [str(corpus_file)],
        "data.validation_share": 0.1,
        "data.window": 1,
        "trainer.max_steps": 4,
    }
    run = finish(launch(words("fit", options)))
    assert run.code == 0, run.err
    assert "beside the training: process" in run.err
    beforehand = tmp_path / "beforehand"
    tokenizer = Tokenizer.load(bpe_path)
    prepare_store([str(corpus_file)], tokenizer, beforehand, validation_share=0.1)
    deadline = time.monotonic() + 60
    while not (store / "manifest.json").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert read_manifest(store) == read_manifest(beforehand)
    again = options | {"run_dir": str(tmp_path / "again"), "data.audit": str(tmp_path / "audit")}
    done(words("fit", again | {"data.store": str(beforehand)}))
    assert (tmp_path / "audit").read_text() == (run_dir / "audit").read_text()


def test_a_preparation_that_fails_is_said(corpus_file, bpe_path, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"other": "x"}\n' * 20)
    options = following(tmp_path / "run", tmp_path / "store", bpe_path)
    run = call(words("fit", options | {"data.files": [str(bad)]}))
    assert run.code == 2
    assert "cannot be prepared" in run.errors[0]
    assert "bad.jsonl" in run.errors[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"trainer.max_steps": None, "trainer.max_epochs": 1}, "give trainer.max_steps"),
        ({"trainer.val_check_interval": 0.5}, "give trainer.max_steps"),
        ({"data.store": "s3://bucket/store"}, "is a URL"),
        ({"data.replay": {"other": 0.5}}, "leave data.mixture"),
        ({"data.layout": "sentence_pairs"}, "wait for `prepare`"),
    ],
)
def test_what_cannot_be_followed_is_refused(more, said, finished, bpe_path, tmp_path):
    store = begun(finished, tmp_path / "store", 5)
    run = call(words("fit", following(tmp_path / "run", store, bpe_path) | more))
    assert run.code == 2
    assert said in run.errors[0]


def test_a_preparation_that_died_ends_the_run_with_everything_saved(
    finished, bpe_path, tmp_path, monkeypatch
):
    monkeypatch.setattr("ptft_lightning.data.growing.PATIENCE_S", 0.5)
    store = begun(finished, tmp_path / "store", 3)
    run_dir = tmp_path / "run"
    run = call(words("fit", following(run_dir, store, bpe_path) | {"checkpoint.every_n_steps": 2}))
    assert run.code == 2
    assert "nobody is preparing" in run.errors[0]
    assert list((run_dir / "checkpoints").iterdir())
