"""Token stores: plain files with numpy, changes noticed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptft_lightning.data.manifest import read_manifest
from ptft_lightning.data.token_store import TokenStore, write_shard
from ptft_lightning.errors import UserError
from ptft_lightning.files import write_atomically


@pytest.fixture
def copied(store: Path, tmp_path: Path) -> Path:
    """A store that a test may harm."""
    return Path(shutil.copytree(store, tmp_path / "store"))


def test_anyone_can_open_it_with_numpy_alone(store: Path) -> None:
    listed = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    for split in ("train", "validation"):
        for shard in listed[split]:
            tokens = np.load(store / f"{shard['name']}.tokens.npy", allow_pickle=False)
            ends = np.load(store / f"{shard['name']}.ends.npy", allow_pickle=False)
            assert (tokens.dtype, ends.dtype) == (np.dtype(listed["dtype"]), np.int64)
            assert (len(tokens), len(ends)) == (shard["tokens"], shard["documents"])
            assert ends.size == 0 or ends[-1] == len(tokens)
            assert (np.diff(ends, prepend=0) > 0).all()


def test_reads_what_was_written(tmp_path: Path, store: Path) -> None:
    rng = np.random.default_rng(0)
    for shard, dtype in enumerate((np.uint16, np.uint32)):
        tokens = rng.integers(0, 2**16, 100).astype(dtype)
        ends = np.array([10, 60, 100], np.int64)
        entry = write_shard(tmp_path, f"s{shard}", tokens, ends, 5)
        assert (entry.name, entry.tokens, entry.documents, entry.text_bytes) == (
            f"s{shard}",
            100,
            3,
            5,
        )
        files = [tmp_path / f"s{shard}.{kind}.npy" for kind in ("tokens", "ends")]
        assert (np.load(files[0]) == tokens).all()
        assert (np.load(files[1]) == ends).all()
        digest = hashlib.sha256(files[0].read_bytes() + files[1].read_bytes())
        assert entry.checksum == digest.hexdigest()[:16]
    assert {p.suffix for p in tmp_path.iterdir()} == {".npy"}  # nothing temporary is left


def test_files_are_synced_before_and_after_they_get_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only so does a name that exists mean a whole file, after a power cut too."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append("sync directory" if path == tmp_path else f"sync {path.stat().st_size} bytes")
        fsync(descriptor)

    def renamed(source: Any, target: Any) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_atomically(tmp_path / "file", b"12345")
    assert calls == ["sync 5 bytes", "rename", "sync directory"]
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"12345"}


def test_is_memory_mapped(store: Path) -> None:
    opened = TokenStore(store, "train")
    for array in (opened.tokens(0), opened.ends(0)):
        assert isinstance(array.base, np.memmap)
    assert opened.total_tokens == sum(len(opened.tokens(s)) for s in range(len(opened.shards)))


def test_travels_to_spawned_workers_by_name(store: Path) -> None:
    opened = TokenStore(store, "train")
    first = opened.tokens(0)
    sent = pickle.dumps(opened)
    assert len(sent) < 1000
    assert (pickle.loads(sent).tokens(0) == first).all()


def test_shards_without_documents_of_the_split_are_left_out(store: Path) -> None:
    opened = TokenStore(store, "validation")
    assert all(shard.tokens for shard in opened.shards)
    listed = read_manifest(store).validation
    assert [s for s in listed if s.tokens] == opened.shards


@pytest.mark.parametrize("kind", ["tokens", "ends"])
def test_changed_length_is_noticed(copied: Path, kind: str) -> None:
    opened = TokenStore(copied, "train")
    file = copied / f"{opened.shards[1].name}.{kind}.npy"
    np.save(file, np.load(file)[:-1])
    with pytest.raises(UserError) as error:
        opened.tokens(1)
    assert str(file) in str(error.value)
    assert "prepare the store again" in str(error.value)


@pytest.mark.parametrize("harm", ["missing", "cut", "empty", "text"])
def test_unreadable_shard_is_named(copied: Path, harm: str) -> None:
    opened = TokenStore(copied, "train")
    file = copied / f"{opened.shards[2].name}.tokens.npy"
    content = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes({"cut": content[:-3], "empty": b"", "text": b"text"}[harm])
    with pytest.raises(UserError, match=rf"shard '{file}' cannot be read"):
        opened.ends(2)


@pytest.mark.parametrize("kind", ["tokens", "ends"])
def test_verify_notices_one_flipped_bit(copied: Path, kind: str) -> None:
    opened = TokenStore(copied, "train")
    opened.verify()
    file = copied / f"{opened.shards[1].name}.{kind}.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    TokenStore(copied, "train").tokens(1)  # the length is right
    with pytest.raises(UserError, match=f"'{opened.shards[1].name}' .* does not match its check"):
        opened.verify()


def test_fingerprint_is_of_the_content(copied: Path, store: Path) -> None:
    manifest = read_manifest(store)
    assert read_manifest(copied).fingerprint == manifest.fingerprint
    content = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
    content["plan"]["files"] = ["elsewhere.jsonl"]
    (copied / "manifest.json").write_text(json.dumps(content))
    assert read_manifest(copied).fingerprint == manifest.fingerprint
    for change in ({"checksum": "0" * 16}, {"tokenizer": "another"}):
        changed = json.loads(json.dumps(content))
        (changed if "tokenizer" in change else changed["validation"][0]).update(change)
        (copied / "manifest.json").write_text(json.dumps(changed))
        assert read_manifest(copied).fingerprint != manifest.fingerprint


def test_no_store_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no token store at .*: make it with .*prepare"):
        TokenStore(tmp_path, "train")


def test_other_format_is_refused(copied: Path) -> None:
    content = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
    content["format"] = 99
    (copied / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has format 99, this version reads 1"):
        TokenStore(copied, "train")


@pytest.mark.parametrize("content", ["", "{", "[1]", "\\xff"])
def test_other_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"is not the manifest of a token store"):
        read_manifest(tmp_path)
