"""A store that is read while it is made: places as in the finished one, and who waits for whom."""

from __future__ import annotations

import errno
import fcntl
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptft_lightning.commands.overlap import _usable
from ptft_lightning.data import growing
from ptft_lightning.data.growing import GrowingStore
from ptft_lightning.data.manifest import read_manifest
from ptft_lightning.data.plan import PLAN
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.shards import receipt_of
from ptft_lightning.data.store_lock import is_being_prepared, preparing
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

WINDOW, LENGTH = 3, 32


@pytest.fixture(scope="module")
def finished(corpus_file: Path, bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many small shards, some of them without training text."""
    directory = tmp_path_factory.mktemp("finished")
    prepare_store([str(corpus_file)], bpe, directory, validation_share=0.3, unit_bytes=512)
    shards = read_manifest(directory).train
    assert len(shards) > 4 * WINDOW
    assert not all(shard.tokens for shard in shards)
    return directory


def place(file: Path, target: Path) -> None:
    """A copy under its name at once, as `prepare` writes."""
    temporary = target / f".{file.name}.tmp"
    shutil.copy(file, temporary)
    temporary.rename(target / file.name)


def copy_shard(source: Path, target: Path, number: int) -> None:
    for file in source.glob(f"*-{number:05d}.*.npy"):
        place(file, target)
    place(receipt_of(source, number), target)  # the last


def begun(source: Path, target: Path, shards: int) -> Path:
    target.mkdir(exist_ok=True)
    place(source / PLAN, target)
    for number in range(shards):
        copy_shard(source, target, number)
    return target


def whole(store: Path, layout: str, tokenizer: Tokenizer) -> Rows:
    opened = TokenStore(store, "train")
    return Rows(opened, layout, LENGTH, tokenizer.pad, 7, WINDOW, shuffle=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "PATIENCE_S", 0.2)
    monkeypatch.setattr(growing, "POLL_S", 0.01)


@pytest.mark.parametrize("layout", ["blocks", "documents"])
def test_places_are_those_of_the_finished_store(layout, finished, bpe, tmp_path):
    reference = whole(finished, layout, bpe)
    count = len(read_manifest(finished).train)
    filled = [n for n, shard in enumerate(read_manifest(finished).train, 1) if shard.tokens]
    store = begun(finished, tmp_path / "store", filled[WINDOW - 1])
    rows = GrowingStore(str(store), bpe, WINDOW).rows(layout, LENGTH, 7)
    seen = []
    stages = [*range(filled[WINDOW - 1], count, 7), count]
    for known, after in zip(stages, [*stages[1:], count], strict=True):
        if known == count:
            place(finished / "manifest.json", store)
        rows._take(*rows.growing.read())
        seen.append(rows.order.rows)
        numbers = np.arange(rows.order.rows)
        assert rows.shards_of(numbers).tolist() == reference.shards_of(numbers).tolist()
        for mine, theirs in zip(rows.read(numbers), reference.read(numbers), strict=True):
            assert np.array_equal(mine, theirs)
        for number in range(known, after):
            copy_shard(finished, store, number)
    assert len(set(seen)) > 4  # it grew by windows
    assert len(rows) == len(reference)
    beyond = np.arange(len(reference), 2 * len(reference))  # the next epoch, in another order
    assert rows.shards_of(beyond).tolist() == reference.shards_of(beyond).tolist()


def test_a_shard_behind_a_missing_one_is_not_there_yet(finished, bpe, tmp_path):
    store = begun(finished, tmp_path / "store", 4)
    copy_shard(finished, store, 6)
    manifest, complete = GrowingStore(str(store), bpe, WINDOW).read()
    assert manifest is not None
    assert (len(manifest.train), complete) == (4, False)


def test_the_first_window_is_the_same_at_any_time(finished, bpe, tmp_path):
    late = GrowingStore(str(finished), bpe, WINDOW).first
    early = GrowingStore(str(begun(finished, tmp_path / "store", 8)), bpe, WINDOW).first
    assert early.fingerprint == late.fingerprint
    assert early.validation == late.validation
    assert len([shard for shard in early.train if shard.tokens]) == WINDOW
    assert late.fingerprint != read_manifest(finished).fingerprint


def test_the_contamination_check_knows_the_finished_store(finished, bpe):
    first = GrowingStore(str(finished), bpe, WINDOW).first.fingerprint
    assert _usable(str(finished), (first, WINDOW), bpe)
    assert _usable(str(finished), (read_manifest(finished).fingerprint, WINDOW), bpe)
    assert not _usable(str(finished), (first, WINDOW + 1), bpe)


def test_how_long_an_epoch_is_is_not_known(finished, bpe, tmp_path):
    store = begun(finished, tmp_path / "store", 8)
    with pytest.raises(UserError, match=r"not known while .* give trainer\.max_steps"):
        len(GrowingStore(str(store), bpe, WINDOW).rows("blocks", LENGTH, 0))


def test_it_waits_for_the_shard_it_needs(finished, bpe, tmp_path, impatient):
    store = begun(finished, tmp_path / "store", 8)
    rows = GrowingStore(str(store), bpe, WINDOW).rows("blocks", LENGTH, 7)
    count = len(read_manifest(finished).train)

    def make_the_rest() -> None:
        for number in range(8, count):
            time.sleep(0.02)
            copy_shard(finished, store, number)
        place(finished / "manifest.json", store)

    maker = threading.Thread(target=make_the_rest)
    maker.start()
    reference = whole(finished, "blocks", bpe)
    numbers = np.arange(len(reference))[::-1]  # the last first
    assert np.array_equal(rows.read(numbers)[0], reference.read(numbers)[0])
    maker.join()


def test_a_preparation_that_died_is_told_from_a_slow_one(
    finished, bpe, tmp_path, impatient, capsys, monkeypatch
):
    monkeypatch.setattr(growing, "TELL_S", 0.1)
    store = begun(finished, tmp_path / "store", 8)
    rows = GrowingStore(str(store), bpe, WINDOW).rows("blocks", LENGTH, 7)
    beyond = np.array([rows.order.rows * 4])
    assert not is_being_prepared(store)
    with pytest.raises(UserError, match=r"nobody is preparing .* run the same `prepare` again"):
        rows.read(beyond)
    failed: list[BaseException] = []

    def read() -> None:
        try:
            rows.read(beyond)
        except UserError as error:
            failed.append(error)

    with preparing(store):
        assert is_being_prepared(store)
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(1.0)  # five times its patience
        assert reader.is_alive()
        assert not failed
        assert "prepare is at work" in capsys.readouterr().err
    reader.join(10)
    assert "nobody is preparing" in str(failed[0])


def test_where_nothing_can_be_locked_it_is_said_once(finished, bpe, tmp_path, monkeypatch, capsys):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    store = begun(finished, tmp_path / "store", 1)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    for _ in range(3):
        assert is_being_prepared(store) is None
        with preparing(store):
            pass
    (line,) = capsys.readouterr().err.splitlines()
    assert f"'{store}' cannot be locked" in line
    assert "start no second `prepare`" in line


def test_a_plan_that_is_replaced_again_and_again_is_another_process(
    finished, tmp_path, monkeypatch
):
    """Nobody goes on with the lock of a file that is not there any more."""
    store, taken = begun(finished, tmp_path / "store", 1), fcntl.flock

    def replace_after(stream: Any, how: int) -> None:
        taken(stream, how)
        place(finished / PLAN, store)

    monkeypatch.setattr(fcntl, "flock", replace_after)
    with pytest.raises(UserError, match="prepared by another process"), preparing(store):
        pass


def test_two_preparations_of_one_store_are_refused(finished, corpus_file, bpe, monkeypatch):
    monkeypatch.setattr("ptft_lightning.data.store_lock.PAUSE_S", 0.001)
    with preparing(finished), pytest.raises(UserError, match="prepared by another process"):
        prepare_store([str(corpus_file)], bpe, finished, validation_share=0.3, unit_bytes=512)
    prepare_store([str(corpus_file)], bpe, finished, validation_share=0.3, unit_bytes=512)
