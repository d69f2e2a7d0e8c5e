"""A Ray cluster of two local nodes writes the bytes of one process."""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.work import act

from ptft_lightning.data.documents import Reading
from ptft_lightning.data.drop_list import read_drop_list
from ptft_lightning.data.duplicates import find_duplicates
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.workers import share_out
from ptft_lightning.errors import UserError


def content(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def test_without_ray_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, corpus_file: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    imported = builtins.__import__

    def without_ray(name: str, *rest: Any, **more: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(UserError, match=r"--cluster auto needs Ray: .*ptft-lightning\[cluster\]"):
        prepare_store([str(corpus_file)], bpe, tmp_path / "store", cluster="auto")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes of a core each; their address."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        found.add_node(num_cpus=1)
        yield found.address
        found.shutdown()


@pytest.mark.slow
def test_two_nodes_write_the_bytes_of_one_process(
    cluster: str,
    corpus_file: Path,
    corpus_txt: Path,
    bpe: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(corpus_file.parent)  # relative paths mean the same on all nodes
    files = [corpus_file.name, str(corpus_txt)]
    for name, where in (("one", None), ("two", cluster)):
        drop = tmp_path / name / "drop.jsonl"
        found = find_duplicates(files, drop, Reading(), unit_bytes=4000, cluster=where)
        assert found.repeated.shape[1] >= 300  # the files hold the same documents
        options: dict[str, Any] = {
            "unit_bytes": 4000,
            "dropped": read_drop_list(str(drop)),
            "cluster": where,
        }
        assert prepare_store(files, bpe, tmp_path / name / "store", **options).dropped >= 300
    assert drop.read_bytes() == (tmp_path / "one" / "drop.jsonl").read_bytes()
    assert content(tmp_path / "one" / "store") == content(tmp_path / "two" / "store")


@pytest.mark.slow
def test_what_goes_wrong_on_a_node_is_said_here(cluster: str) -> None:
    def run(*tasks: str) -> list[Any]:
        return share_out(act, tasks, lambda _: None, "the task '{}'".format, cluster=cluster)

    assert [text for text, _ in run("a", "b", "c")] == ["A", "B", "C"]
    with pytest.raises(UserError, match=r"^the user's own$"):
        run("fine", "mistake")
    with pytest.raises(UserError, match=r"could not do the task 'die': .*run the command again"):
        run("die")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port"])
def test_no_cluster_there(address: str) -> None:
    with pytest.raises(UserError, match=f"--cluster {address}: no Ray cluster answers there: "):
        share_out(act, ["a"], lambda _: None, str, cluster=address)
