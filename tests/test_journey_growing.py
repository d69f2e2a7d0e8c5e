"""Pretraining while the text is still being prepared: the run is the one of a finished store."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data.test_growing import begun, copy_shard, place
from faults.kit import (
    assert_same_weights,
    call,
    child_of,
    done,
    finish,
    launch,
    pretrain,
    read_audit,
    read_metrics,
    wait_for_lines,
    words,
)

from ptft_lightning.data.growing import GrowingStore
from ptft_lightning.data.manifest import read_manifest
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.tokenizer_training import train_tokenizer
from ptft_lightning.modules.preempt import EXIT_CODE

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
        "checkpoint.every_n_steps": 10,
    }


@pytest.fixture(scope="module")
def reference(finished: Path, bpe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on the store prepared beforehand."""
    run_dir = tmp_path_factory.mktemp("reference")
    done(words("fit", following(run_dir, finished, bpe_path)))
    return run_dir


def grow(source: Path, store: Path, goes_on: Callable[[], bool], first: int) -> None:
    """Copy shard after shard while a run is at work, faster than it reads."""
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


def test_the_last_window_is_enough_for_the_last_step(finished, bpe_path, tmp_path, monkeypatch):
    """What loaders ask ahead of the end is not waited for."""
    monkeypatch.setattr("ptft_lightning.data.growing.PATIENCE_S", 0.5)
    store = begun(finished, tmp_path / "store", 3)
    rows = GrowingStore(str(store), Tokenizer.load(bpe_path), 2).rows("blocks", 32, 0)
    last = rows.order.rows // 6
    for workers in (0, 2):
        options = following(tmp_path / f"run{workers}", store, bpe_path)
        done(words("fit", options | {"trainer.max_steps": last, "data.workers": workers}))
        assert len(read_audit(tmp_path / f"run{workers}")) == last


def test_objectives_that_change_the_length_of_a_text(corpus_file, tmp_path):
    """Span corruption makes rows of shorter texts."""
    tokenizer = tmp_path / "tokenizer"
    given = {"files": [str(corpus_file)], "output": str(tokenizer), "vocab_size": 600}
    done(words("tokenizer", given | {"sentinels": 10}))
    store = tmp_path / "store"
    given = {"files": [str(corpus_file)], "tokenizer": str(tokenizer), "output": str(store)}
    done(words("prepare", given | {"unit_bytes": 2048, "validation_share": 0.1}))
    for name, growing in (("follows", True), ("plain", False)):
        options = following(tmp_path / name, store, tokenizer) | {"trainer.max_steps": 8}
        options |= {"model.objective": "SpanCorruption", "data.growing": growing}
        done(words("fit", options))
    assert read_audit(tmp_path / "follows") == read_audit(tmp_path / "plain")


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


# Steps whose samples are read, all or some, when the loader waits for those of the next.
@pytest.mark.parametrize(("case", "untrained"), [("alone", 1), ("workers", 3), ("two-ranks", 1)])
def test_a_waiting_run_that_is_told_to_end_saves_and_resumes(
    case, untrained, finished, reference, bpe_path, tmp_path
):
    """No shard comes any more, and no checkpoint was due; of two ranks, one hears it."""
    store = begun(finished, tmp_path / "store", 3)
    run_dir = tmp_path / "run"
    more = {"alone": {}, "workers": {"data.workers": 2}, "two-ranks": DDP}
    options = following(run_dir, store, bpe_path) | more[case]
    process = launch(words("fit", options))
    rows = GrowingStore(str(store), Tokenizer.load(bpe_path), 2).rows("blocks", 32, 0)
    made = rows.order.rows // 6 - untrained
    wait_for_lines(process, run_dir / "audit", made)
    time.sleep(0.5)  # to the wait
    assert len(read_audit(run_dir)) == made
    os.kill(child_of(process) if case == "two-ranks" else process.pid, signal.SIGTERM)
    run = finish(process, timeout=30)
    assert run.code == EXIT_CODE, run.err
    assert "Traceback" not in run.err
    saved = len(read_audit(run_dir))
    assert made < saved <= made + untrained
    assert f"told to end: saved step {saved}, resume" in run.err
    assert (run_dir / "checkpoints" / f"step={saved:08d}.ckpt").is_file()
    for number in range(3, len(read_manifest(finished).train)):
        copy_shard(finished, store, number)
    place(finished / "manifest.json", store)
    resumed = finish(launch(words("fit", options | {"ckpt_path": "last"})))
    assert resumed.code == 0, resumed.err
    assert read_audit(run_dir) == read_audit(reference)
    if case != "two-ranks":  # they round otherwise
        assert read_metrics(run_dir) == read_metrics(reference)
        assert_same_weights(run_dir, reference)


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


def test_check_looks_at_what_is_there(finished, bpe_path, tmp_path):
    """And waits for nothing."""
    store = begun(finished, tmp_path / "store", 5)
    before = sorted(store.iterdir())
    options = following(tmp_path / "run", store, bpe_path, model__optimizer__lr=0.02)
    run = done(words("check", options))
    assert f"ok: the first 4 shards of '{store}' were looked at: it is still being" in run.out
    assert re.search(r"ok: overfitting 4 samples for \d+ steps", run.out)
    assert "made: nothing" in run.out
    assert sorted(store.iterdir()) == before
    place(finished / "manifest.json", store)
    for number in range(5, len(read_manifest(finished).train)):
        copy_shard(finished, store, number)
    run = done(words("check", options))
    assert "were looked at" not in run.out


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


def test_what_was_begun_otherwise_is_refused(finished, bpe_path, tmp_path):
    """Before anybody waits, and before anything is written."""
    store = begun(finished, tmp_path / "store", 5)
    plan = json.loads((store / "plan.json").read_text())
    cases = {
        "made from something else": {"data.validation_share": 0.5},
        "was begun by a `prepare` with settings of its own (unit_bytes": {},
        "no token store at": {"data.store": str(tmp_path / "nowhere"), "data.files": None},
    }
    for said, more in cases.items():
        options = following(tmp_path / "run", store, bpe_path)
        options |= {"data.files": plan["files"], "data.validation_share": 0.1} | more
        run = call(words("fit", options))
        assert run.code == 2
        assert said in run.errors[0]
    other = tmp_path / "other"
    train_tokenizer(iter(["another text altogether"] * 9), "bpe", 300, False).save(other)
    run = call(words("fit", following(tmp_path / "run", store, other)))
    assert "made with another tokenizer" in run.errors[0]
    assert not (store / "tokenizer.json").exists()


def test_word_starts_are_those_of_the_plan(corpus_file, wordpiece_path, tmp_path):
    marked, tokenizer = tmp_path / "marked", Tokenizer.load(wordpiece_path)
    given = {"validation_share": 0.1, "unit_bytes": 2048, "word_starts": True}
    prepare_store([str(corpus_file)], tokenizer, marked, **given)
    store = begun(marked, tmp_path / "store", 4)
    options = following(tmp_path / "run", store, wordpiece_path, causal=False)
    options["model.objective"] = {"class_path": "MaskedLM", "init_args": {"whole_words": True}}
    done(words("fit", options | {"trainer.max_steps": 1}))


def test_a_preparation_that_died_ends_the_run_and_leaves_its_checkpoints(
    finished, bpe_path, tmp_path, monkeypatch
):
    monkeypatch.setattr("ptft_lightning.data.growing.PATIENCE_S", 0.5)
    store = begun(finished, tmp_path / "store", 3)
    run_dir = tmp_path / "run"
    run = call(words("fit", following(run_dir, store, bpe_path) | {"checkpoint.every_n_steps": 2}))
    assert run.code == 2
    assert "nobody is preparing" in run.errors[0]
    saved = sorted(path.stem for path in (run_dir / "checkpoints").glob("step=*.ckpt"))
    done_steps = len(read_audit(run_dir))
    assert int(saved[-1].removeprefix("step=")) == done_steps - done_steps % 2 > 0
