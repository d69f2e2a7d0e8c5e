"""Stores behind URLs: a real object store on loopback, with faults between it and the reader."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import fsspec
import numpy as np
import pytest
from faults.object_store import Handler, Proxy, object_store, proxied

from ptft_lightning.commands.inspect import inspect
from ptft_lightning.data.cache_config import CacheConfig
from ptft_lightning.data.manifest import read_manifest
from ptft_lightning.data.packing import document_rows
from ptft_lightning.data.prefetch import Prefetch
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.shard_cache import open_cache, shard_bytes
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

Fault = Callable[[BaseHTTPRequestHandler], bool]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, bpe: Tokenizer) -> Path:
    """A local store of a dozen shards."""
    place = tmp_path_factory.mktemp("shards")
    texts = [f"The river {i} runs through valley {i * 7 % 31} to the sea." for i in range(600)]
    lines = (json.dumps({"text": text}) for text in texts)
    (place / "text.jsonl").write_text("\n".join(lines))
    prepare_store([str(place / "text.jsonl")], bpe, place / "store", unit_bytes=2500, lengths=[32])
    return place / "store"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with object_store() as endpoint:
        yield endpoint


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxied(server, monkeypatch) as proxy:
        yield proxy


@pytest.fixture
def bucket(proxy: Proxy, server: str, shards: Path) -> str:
    """The store, copied into a bucket."""
    system = fsspec.filesystem("s3", endpoint_url=server)
    system.mkdirs("bucket", exist_ok=True)
    system.put(f"{shards}/", "bucket/store/", recursive=True)
    return "s3://bucket/store"


def cached(url: str, folder: Path, gigabytes: float = 1.0) -> TokenStore:
    return TokenStore(url, "train", CacheConfig(str(folder), gigabytes))


def npy(request: BaseHTTPRequestHandler) -> bool:
    return ".npy" in request.path and request.command == "GET"


def same(one: TokenStore, other: TokenStore) -> bool:
    return all(
        np.array_equal(one.tokens(s), other.tokens(s))
        and np.array_equal(one.ends(s), other.ends(s))
        for s in range(len(one.shards))
    )


def test_a_store_in_a_bucket_reads_like_the_local_one(
    bucket: str, proxy: Proxy, shards: Path, tmp_path: Path
) -> None:
    store, local = cached(bucket, tmp_path), TokenStore(shards, "train")
    assert len(local.shards) > 8
    assert same(store, local)
    fetched = [path for path in proxy.asked if ".npy" in path]
    assert len(fetched) == len(set(fetched)) == 2 * len(local.shards)
    assert same(cached(bucket, tmp_path), local)
    assert len([path for path in proxy.asked if ".npy" in path]) == len(fetched)  # from the cache


@pytest.mark.parametrize("kind", ["500", "reset", "truncated", "slow"])
def test_a_read_that_fails_is_done_again(
    bucket: str, proxy: Proxy, shards: Path, tmp_path: Path, kind: str
) -> None:
    failures = iter(range(2))

    def fault(request: Handler) -> bool:
        if not npy(request) or next(failures, None) is None:
            return False
        if kind == "500":
            request.answer(500, {}, b"")
        elif kind == "reset":
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            request.close_connection = True
            request.connection.close()
        elif kind == "truncated":
            status, headers, body = request.fetch()
            request.send_response(status)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            request.close_connection = True
        else:
            status, headers, body = request.fetch()
            threading.Event().wait(0.3)
            request.answer(status, headers, body)
        return True

    proxy.fault = fault  # type: ignore[assignment]
    assert same(cached(bucket, tmp_path), TokenStore(shards, "train"))
    assert next(failures, None) is None  # both were met


def test_what_stays_unreadable_is_told_with_its_url_and_attempts(
    bucket: str, proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(request: Handler) -> bool:
        if npy(request):
            request.answer(500, {}, b"")
        return npy(request)

    store = cached(bucket, tmp_path)
    proxy.fault = fault  # type: ignore[assignment]
    name = store.shards[0].name
    with pytest.raises(UserError, match=rf"shard '{name}' of '{bucket}' could not .* 6 attempts"):
        store.tokens(0)
    assert "attempt 5 of 6" in capsys.readouterr().err
    proxy.fault = lambda request: False
    assert len(store.tokens(0)) == store.shards[0].tokens  # nothing is left that is in the way


def test_a_missing_shard_and_a_missing_store_are_not_tried_again(
    bucket: str, proxy: Proxy, server: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"'s3://bucket/nothing/manifest.json' cannot be read"):
        cached("s3://bucket/nothing", tmp_path)
    store = cached(bucket, tmp_path)
    system = fsspec.filesystem("s3", endpoint_url=server)
    system.rm(f"bucket/store/{store.shards[1].name}.ends.npy")
    before = len(proxy.asked)
    with pytest.raises(UserError, match=f"shard '{store.shards[1].name}'.*cannot be read"):
        store.ends(1)
    assert len(proxy.asked) - before <= 2


def test_a_shard_damaged_on_the_way_is_fetched_once_more_and_then_named(
    bucket: str, proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter(range(1))

    def damage(request: Handler) -> bool:
        if not (npy(request) and ".tokens." in request.path) or next(times, None) is None:
            return False
        status, headers, body = request.fetch()
        # S3 itself sends checksums; not everything that speaks its protocol does.
        bare = {k: v for k, v in headers.items() if not k.lower().startswith("x-amz-checksum")}
        request.answer(status, bare, body[:-1] + bytes([body[-1] ^ 1]))
        return True

    proxy.fault = damage  # type: ignore[assignment]
    store = cached(bucket, tmp_path)
    assert len(store.tokens(0)) == store.shards[0].tokens
    assert "does not match its checksum: fetching it once more" in capsys.readouterr().err
    times = iter(range(10))
    with pytest.raises(UserError, match=f"shard '{store.shards[2].name}' .* checksum, twice"):
        store.tokens(2)


def test_the_cache_keeps_to_its_limit_and_drops_what_was_not_used_for_longest(
    bucket: str, proxy: Proxy, shards: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(bucket)
    most = max(shard_bytes(manifest, s) for s in manifest.train) + 256  # with headers
    store = cached(bucket, tmp_path, gigabytes=4 * most / 1e9)
    for shard in range(len(store.shards)):
        store.tokens(shard)
        files = list(tmp_path.rglob("[!.]*.npy"))
        assert sum(file.stat().st_size for file in files) <= 4 * most
    assert store.cache is not None
    here = [i for i, shard in enumerate(store.shards) if store.cache.has(shard)]
    assert here == list(range(len(store.shards)))[-len(here) :]
    assert len(here) >= 3
    assert same(store, TokenStore(shards, "train"))  # maps of what was removed stay valid


def test_a_limit_below_two_windows_is_refused(bucket: str, tmp_path: Path) -> None:
    store = cached(bucket, tmp_path, gigabytes=1e-6)
    assert store.cache is not None
    with pytest.raises(UserError, match=r"two windows of 16 shards of .* take"):
        store.cache.check_room(16)


def test_processes_share_the_cache_without_fetching_twice(
    bucket: str, proxy: Proxy, tmp_path: Path
) -> None:
    manifest = read_manifest(bucket)
    caches = [open_cache(bucket, manifest, CacheConfig(str(tmp_path))) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:  # flock keeps open files apart, in one process too
        jobs = [pool.submit(c.fetch, shard) for shard in manifest.train[:3] for c in caches]
        for job in jobs:
            job.result()
    fetched = [path for path in proxy.asked if ".npy" in path]
    assert len(fetched) == len(set(fetched)) == 6


def test_a_cache_that_cannot_be_written_is_named(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data.cache.directory .* cannot be written"):
        cached(bucket, tmp_path / "file")


def test_two_windows_are_fetched_before_anyone_asks(bucket: str, tmp_path: Path) -> None:
    store = cached(bucket, tmp_path)
    rows = Rows(store, "documents", 32, 0, seed=0, window=2, shuffle=True)
    at = [0]
    prefetch = Prefetch(rows, lambda: at[0])
    prefetch._once()
    assert store.cache is not None
    here = [i for i, shard in enumerate(store.shards) if store.cache.has(shard)]
    assert here == [0, 1, 2, 3]
    at[0] = len(rows) - 1  # the last window, and the first of the next epoch
    prefetch._once()
    later = [i for i, shard in enumerate(store.shards) if store.cache.has(shard)]
    assert set(rows.order.shards_from(at[0])) <= set(later)


def test_documents_need_their_rows_counted(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prepare it with --lengths \[64\]"):
        Rows(cached(bucket, tmp_path), "documents", 64, 0, seed=0, window=2, shuffle=True)


def test_counted_rows_are_those_that_are_made(shards: Path) -> None:
    store = TokenStore(shards, "train")
    counted = Rows(store, "documents", 32, 0, seed=0, window=4, shuffle=True)
    store.shards = [
        type(s)(s.name, s.tokens, s.documents, s.text_bytes, s.checksum) for s in store.shards
    ]
    made = Rows(store, "documents", 32, 0, seed=0, window=4, shuffle=True)
    assert counted.order.rows_per_shard == made.order.rows_per_shard


def test_a_local_store_without_one_of_its_shards_is_refused_at_once(
    shards: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "store"))
    name = f"{TokenStore(copy, 'train').shards[3].name}.ends.npy"
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"/{name}' cannot be read, it is missing"):
        TokenStore(copy, "train")


def test_rows_can_be_counted_later(shards: Path, bpe: Tokenizer, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "store"))
    before = read_manifest(copy)
    text = [str(shards.parent / "text.jsonl")]
    prepare_store(text, bpe, copy, unit_bytes=2500, lengths=[32, 48])
    after = read_manifest(copy)
    assert after.fingerprint == before.fingerprint
    store = TokenStore(copy, "train")
    for number, shard in enumerate(store.shards):
        assert shard.rows is not None
        for length in (32, 48):
            made = document_rows(np.asarray(store.ends(number)), length)
            assert shard.rows[str(length)] == made


def test_a_cached_shard_that_became_unreadable_is_fetched_again(
    bucket: str, shards: Path, tmp_path: Path
) -> None:
    store = cached(bucket, tmp_path)
    store.tokens(0)
    (empty,) = tmp_path.rglob(f"{store.shards[0].name}.tokens.npy")
    empty.write_bytes(b"")
    assert same(cached(bucket, tmp_path), TokenStore(shards, "train"))


def test_inspect_reads_a_bucket(
    bucket: str,
    shards: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    inspect(bucket, verify=True)
    assert json.loads(capsys.readouterr().out)["fingerprint"] == read_manifest(shards).fingerprint


def test_what_no_library_knows_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'s4://bucket/store/manifest.json' cannot be read"):
        cached("s4://bucket/store", tmp_path)


def test_a_store_is_not_prepared_behind_a_url(shards: Path, bpe: Tokenizer) -> None:
    with pytest.raises(UserError, match="'s3://bucket/new' is a URL: prepare it here"):
        prepare_store([str(shards.parent / "text.jsonl")], bpe, "s3://bucket/new")
