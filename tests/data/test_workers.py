"""Several processes: the same bytes as one, and none that is lost without a word."""

from __future__ import annotations

import gzip
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from faults.kit import finish, launch, words
from faults.work import act

from ptft_lightning.data.documents import Unit
from ptft_lightning.data.lots import lots_of
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.workers import available_cores, share_out
from ptft_lightning.errors import UserError


def content(directory: Path) -> dict[str, bytes]:
    """All files of a store, but what a killed process left under temporary names."""
    files = [p for p in sorted(directory.iterdir()) if not p.name.endswith(".tmp")]
    return {p.name: p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def corpus(
    corpus_file: Path, corpus_txt: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Plain and compressed files, a table, documents that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("mixed")
    lines = corpus_file.read_text(encoding="utf-8").splitlines()
    (folder / "a.jsonl").write_text("\n".join([*lines[:100], "broken", *lines[100:150]]))
    (folder / "b.txt.gz").write_bytes(gzip.compress(corpus_txt.read_bytes()))
    texts = [json.loads(line)["text"] for line in lines[150:250]]
    (folder / "c.csv").write_text("text\n" + "".join(f"{json.dumps(t)[:40]}\n" for t in texts))
    pq.write_table(pa.table({"text": texts}), folder / "d.parquet", row_group_size=20)
    (folder / "e.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[250:]).encode()))
    return [str(path) for path in sorted(folder.iterdir())]


def test_processes_write_the_bytes_of_one(
    corpus: list[str], bpe: Tokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"unit_bytes": 4000, "validation_share": 0.1, "max_bad_share": 0.9}
    one = prepare_store(corpus, bpe, tmp_path / "one", **options)
    assert one.bad_documents > 1
    assert len(one.train) > 15
    capfd.readouterr()
    assert prepare_store(corpus, bpe, tmp_path / "two", **options, workers=2) == one
    assert content(tmp_path / "one") == content(tmp_path / "two")
    said = capfd.readouterr().err.splitlines()[-1]
    total = f"{sum(one.plan['sizes']) / 1e6:.1f}"
    assert said.startswith(f"prepare: {total} of {total} MB")  # every byte was told of
    (tmp_path / "two" / "manifest.json").unlink()
    for number in (1, 4, 5, 8):
        (tmp_path / "two" / f"shard-{number:05d}.json").unlink()
    assert prepare_store(corpus, bpe, tmp_path / "two", **options, workers=3) == one
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_compressed_file_is_one_lot_in_its_order() -> None:
    units = [Unit("b.gz", 7, 9), Unit("a", 5, 9), Unit("b.gz", 0, 7), Unit("a", 0, 5)]
    assert lots_of(units) == [
        [(2, units[2]), (0, units[0])],
        [(1, units[1])],
        [(3, units[3])],
    ]


# Work that goes wrong.


def shared(tasks: list[str], workers: int = 2) -> list[tuple[str, int]]:
    done: list[int] = []
    results = share_out(act, tasks, done.append, "the task '{}'".format, workers)
    assert done == [2] * len(tasks)
    return results


def test_results_come_in_the_order_of_the_tasks() -> None:
    tasks = [f"task {i}" for i in range(11)]
    results = shared(tasks)
    assert [text for text, _ in results] == [task.upper() for task in tasks]
    assert os.getpid() not in {process for _, process in results}
    assert len({process for _, process in results}) == 2
    assert {process for _, process in shared(tasks, 1)} == {os.getpid()}
    assert {process for _, process in shared(["alone"])} == {os.getpid()}
    assert available_cores() >= 1


@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        ("die", UserError, "worked on the task 'die' was killed by SIGKILL, perhaps for want of"),
        ("leave", UserError, "worked on the task 'leave' ended with code 3: what is finished is"),
        ("mistake", UserError, "^the user's own$"),
        ("bad", UserError, "x at byte 5: not a JSON line"),
        ("full", OSError, "No space left on device: '/full/disk'"),
        ("fault", RuntimeError, "(?s)Traceback.*a fault of ours"),
    ],
)
def test_what_goes_wrong_in_a_process_is_said_here(
    task: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as error:
        shared(["fine", task, "fine", "fine"])
    assert type(error.value) is kind


# Ended from outside.


def workers_of(process: Any, count: int) -> list[int]:
    """The tokenizing children of a process, when there are so many."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found = [
            int(child)
            for child in children
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        if len(found) == count:
            return found
        assert process.poll() is None, finish(process).err
        time.sleep(0.01)
    raise AssertionError("no children")


def gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


@pytest.mark.parametrize("how", ["a worker", "SIGTERM", "SIGINT", "SIGKILL"])
def test_ended_with_its_processes_it_goes_on_to_the_same_bytes(
    how: str, corpus_file: Path, bpe: Tokenizer, bpe_path: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    long = tmp_path / "long.jsonl"
    long.write_text(corpus_file.read_text(encoding="utf-8") * 5, encoding="utf-8")
    options = {"files": [str(long)], "tokenizer": str(bpe_path), "output": str(store)}
    options |= {"unit_bytes": 3000, "workers": 2}
    process = launch(words("prepare", options))
    workers = workers_of(process, 2)
    while len(list(store.glob("shard-*.json"))) < 6:
        assert process.poll() is None, finish(process).err
        time.sleep(0.002)
    if how == "a worker":
        os.kill(workers[0], signal.SIGKILL)
    elif how == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.send_signal(getattr(signal, how))
    run = finish(process)
    assert run.code != 0
    if how == "a worker":
        assert run.code == 2
        assert "worked on shard " in run.errors[0]
        assert "was killed by SIGKILL" in run.errors[0]
        assert "Traceback" not in run.err
    deadline = time.monotonic() + 30
    while not all(map(gone, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(gone, workers))
    assert not (store / "manifest.json").exists()
    kept = content(store)
    assert sum(name.startswith("shard-") for name in kept) >= 6
    prepare_store([str(long)], bpe, tmp_path / "undisturbed", unit_bytes=3000)
    expected = content(tmp_path / "undisturbed")
    assert kept.items() <= expected.items()
    prepare_store([str(long)], bpe, store, unit_bytes=3000, workers=2)
    assert content(store) == expected
