"""Training from a store in a bucket is the training from the same store here."""

from __future__ import annotations

import csv
from pathlib import Path

import fsspec
import pytest
from faults.kit import assert_same_weights, call, done, pretrain, read_audit, words
from faults.object_store import object_store, proxied


@pytest.mark.parametrize("workers", [0, 1])
def test_the_same_run_from_a_bucket(corpus_file, bpe_path, tmp_path, monkeypatch, workers):
    local = tmp_path / "store"
    given = {"files": [str(corpus_file)], "tokenizer": str(bpe_path), "output": str(local)}
    done(words("prepare", given | {"unit_bytes": 2000}))
    with object_store() as server, proxied(server, monkeypatch) as proxy:
        system = fsspec.filesystem("s3", endpoint_url=server)
        system.mkdirs("bucket", exist_ok=True)
        system.put(f"{local}/", f"bucket/{tmp_path.name}/", recursive=True)
        more = {"data__workers": workers, "data__window": 2}
        cache = {"data__cache__directory": str(tmp_path / "cache")}
        runs = []
        for name, store in (("here", str(local)), ("there", f"s3://bucket/{tmp_path.name}")):
            options = pretrain(tmp_path / name, Path("x"), bpe_path, **more, **cache)
            done(words("fit", options | {"data.store": store}))
            runs.append(tmp_path / name)
        assert read_audit(runs[0]) == read_audit(runs[1])
        assert_same_weights(*runs)
        fetched = [path for path in proxy.asked if ".tokens.npy" in path]
        assert len(fetched) == len(set(fetched)) > 4
    with open(runs[1] / "metrics.csv", newline="") as stream:
        stalls = [float(row["data_stall"]) for row in csv.DictReader(stream) if row["data_stall"]]
    assert stalls
    assert all(0 <= stall <= 1 for stall in stalls)


def test_a_cache_that_is_too_small_is_told_before_training(
    corpus_file, bpe_path, tmp_path, monkeypatch
):
    local = tmp_path / "store"
    given = {"files": [str(corpus_file)], "tokenizer": str(bpe_path), "output": str(local)}
    done(words("prepare", given | {"unit_bytes": 2000}))
    with object_store() as server, proxied(server, monkeypatch):
        system = fsspec.filesystem("s3", endpoint_url=server)
        system.mkdirs("bucket", exist_ok=True)
        system.put(f"{local}/", f"bucket/{tmp_path.name}/", recursive=True)
        options = pretrain(tmp_path / "run", Path("x"), bpe_path)
        cache = {"data.cache.directory": str(tmp_path / "cache"), "data.cache.gigabytes": 1e-6}
        run = call(words("fit", options | cache | {"data.store": f"s3://bucket/{tmp_path.name}"}))
    assert run.code == 2
    assert "data.cache.gigabytes is 1e-06, two windows of 16 shards of" in run.err
