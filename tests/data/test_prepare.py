"""Preparing: every document is where it belongs, and a killed call leaves no trace."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers

from ptft_lightning.commands.inspect import inspect
from ptft_lightning.commands.prepare import prepare as prepare_command
from ptft_lightning.data.manifest import Manifest, read_manifest
from ptft_lightning.data.plan import Plan, held_out, list_units
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

UNIT = 4096


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing takes most of the time here; test_token_store.py looks at it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def content(directory: Path) -> dict[str, bytes]:
    """All files of a store, but what a killed call left under temporary names."""
    files = [p for p in sorted(directory.iterdir()) if not p.name.endswith(".tmp")]
    return {p.name: p.read_bytes() for p in files}


def stored(directory: Path, split: str) -> list[list[int]]:
    """The documents of a split, read with numpy alone."""
    documents = []
    for shard in json.loads((directory / "manifest.json").read_text(encoding="utf-8"))[split]:
        tokens = np.load(directory / f"{shard['name']}.tokens.npy")
        ends = np.load(directory / f"{shard['name']}.ends.npy").tolist()
        documents += [tokens[a:b].tolist() for a, b in zip([0, *ends], ends, strict=False)]
    return documents


def framed(tokenizer: Tokenizer, text: str) -> list[int]:
    ids = tokenizer.raw.encode(text, add_special_tokens=False).ids
    return [tokenizer.begin, *ids, tokenizer.end]


def test_stream_is_every_document_in_the_order_of_units(
    corpus_file: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    manifest = prepare_store([str(corpus_file)], bpe, tmp_path, "text", 0.1, 3, UNIT)
    whole = corpus_file.read_bytes()
    plan = Plan(
        **{k: v for k, v in manifest.plan.items() if k != "files"}, files=[str(corpus_file)]
    )
    expected: dict[str, list[list[int]]] = {"train": [], "validation": []}
    text_bytes = {"train": 0, "validation": 0}
    at = 0
    starts = []  # byte where each line begins, and its text
    for line in whole.splitlines(keepends=True):
        starts.append((at, json.loads(line)["text"]))
        at += len(line)
    units = list_units(plan)
    assert sorted(u.start for u in units) == list(range(0, len(whole), UNIT))
    assert [u.start for u in units] != sorted(u.start for u in units)  # mixed
    for unit in units:
        for start, text in starts:
            if unit.start <= start < unit.end:
                split = "validation" if held_out(text, 0.1) else "train"
                expected[split].append(framed(bpe, text))
                text_bytes[split] += len(text.encode())
    for split in ("train", "validation"):
        assert stored(tmp_path, split) == expected[split]
        shards = getattr(manifest, split)
        assert len(shards) == len(units)
        assert sum(s.documents for s in shards) == len(expected[split])
        assert sum(s.tokens for s in shards) == sum(map(len, expected[split]))
        assert sum(s.text_bytes for s in shards) == text_bytes[split]
    assert manifest.tokenizer == bpe.fingerprint
    assert manifest.round_trips
    assert TokenStore(tmp_path, "train").predicted_per_byte == pytest.approx(
        sum(len(ids) - 1 for ids in expected["train"]) / text_bytes["train"]
    )


def test_jsonl_and_txt_gzipped_or_not_hold_the_same_documents(
    corpus_documents: list[str], corpus_file: Path, corpus_txt: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    expected = sorted(framed(bpe, text) for text in corpus_documents)
    for number, path in enumerate([corpus_file, corpus_txt]):
        packed = tmp_path / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        for source in (path, packed):
            target = tmp_path / f"{number}{source.suffix}"
            prepare_store([str(source)], bpe, target, unit_bytes=3000, validation_share=0.2)
            both = stored(target, "train") + stored(target, "validation")
            assert sorted(both) == expected


def big_tokenizer(size: int) -> Tokenizer:
    raw = RawTokenizer(models.WordLevel({"[UNK]": 0, "word": size - 1}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(raw.to_str())


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_dtype_holds_the_vocabulary(tmp_path: Path, size: int, dtype: str) -> None:
    (tmp_path / "t.txt").write_text("word other\n\nword")
    manifest = prepare_store([str(tmp_path / "t.txt")], big_tokenizer(size), tmp_path / "s")
    assert manifest.dtype == dtype
    assert TokenStore(tmp_path / "s", "train").tokens(0).dtype == dtype
    assert stored(tmp_path / "s", "train") == [[size - 1, 0], [size - 1]]
    assert not manifest.round_trips


# Held-out documents.


def held_out_texts(directory: Path, tokenizer: Tokenizer) -> set[str]:
    return {tokenizer.decode(ids) for ids in stored(directory, "validation")}


def test_held_out_documents_are_chosen_by_their_text_alone(
    corpus_documents: list[str], corpus_file: Path, corpus_txt: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    more = tmp_path / "more.txt"
    more.write_text(corpus_documents[0] + "\n\none more document", encoding="utf-8")
    expected = {text for text in corpus_documents if held_out(text, 0.1)}
    assert 10 < len(expected) < 60
    calls: list[tuple[list[Path], dict[str, Any]]] = [
        ([corpus_file], {}),
        ([corpus_txt], {"unit_bytes": 1000}),
        ([more, corpus_txt], {"unit_bytes": 5000, "seed": 7}),
        ([corpus_txt, more], {"unit_bytes": 5000, "seed": 8}),
    ]
    for number, (files, settings) in enumerate(calls):
        target = tmp_path / str(number)
        prepare_store([str(f) for f in files], bpe, target, validation_share=0.1, **settings)
        assert held_out_texts(target, bpe) - {"one more document"} == expected
        trained = {bpe.decode(ids) for ids in stored(target, "train")}
        assert trained.isdisjoint(expected)  # a copy of a held-out document is held out too


def test_held_out_share() -> None:
    texts = [f"document {i}" for i in range(4000)]
    for share in (0.01, 0.1, 0.5):
        count = sum(held_out(t, share) for t in texts)
        assert abs(count - 4000 * share) < 4.5 * (4000 * share * (1 - share)) ** 0.5
        assert all(held_out(t, 0.5) for t in texts if held_out(t, share))  # a larger share adds
    assert not any(held_out(t, 0.0) for t in texts)
    assert all(held_out(t, 1.0) for t in texts)


# Killed calls.


class Killed(BaseException):
    """Stands for the end of the process."""


def test_stopped_at_any_write_ends_byte_identical(
    corpus_file: Path, bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rename once, killed just before it and just after it."""

    def prepare(directory: Path) -> Manifest:
        return prepare_store([str(corpus_file)], bpe, directory, unit_bytes=40_000)

    replace, writes, stop_at, after = os.replace, 0, 0, False

    def counted(source: Any, target: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == stop_at and not after:
            raise Killed
        replace(source, target)
        if writes == stop_at:
            raise Killed

    monkeypatch.setattr(os, "replace", counted)
    manifest = prepare(tmp_path / "undisturbed")
    expected, total = content(tmp_path / "undisturbed"), writes
    assert total == len(expected) >= 2 + 5 * 3
    for after in (False, True):
        for stop_at in range(1, total + 1):
            target, writes = tmp_path / f"{stop_at}{after}", 0
            with pytest.raises(Killed):
                prepare(target)
            assert ("manifest.json" in content(target)) == (after and stop_at == total)
            written, writes = stop_at - (not after), -(10**9)
            assert prepare(target) == manifest
            again = writes + 10**9
            assert content(target) == expected
            assert again <= total - written + 4  # complete shards are not made again


def prepare_process(corpus: Path, tokenizer: Path, directory: Path) -> subprocess.Popen[bytes]:
    words = ["prepare", "--files", f'["{corpus}"]', "--tokenizer", str(tokenizer)]
    words += ["--output", str(directory), "--unit_bytes", "2000"]
    return subprocess.Popen(
        [sys.executable, "-m", "ptft_lightning", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_killed_process_ends_byte_identical(
    corpus_file: Path, bpe: Tokenizer, bpe_path: Path, tmp_path: Path
) -> None:
    """kill -9 at random moments, one directory after another kill."""
    undisturbed, target = tmp_path / "undisturbed", tmp_path / "killed"
    manifest = prepare_store([str(corpus_file)], bpe, undisturbed, unit_bytes=2000)
    expected = content(undisturbed)
    rng = random.Random(0)
    for share in (0.15, 0.5, 0.8):
        process = prepare_process(corpus_file, bpe_path, target)
        goal = share * len(expected) + rng.randint(0, 5)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if target.exists() and len(list(target.iterdir())) >= goal:
                break
            time.sleep(0.002)
        time.sleep(rng.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was done before it was killed"
        assert "manifest.json" not in content(target)
        done = content(target)
        assert goal - 5 <= len(done) < len(expected)
        assert done.items() <= expected.items()
    process = prepare_process(corpus_file, bpe_path, target)
    assert process.wait(60) == 0
    assert content(target) == expected
    assert read_manifest(target) == manifest
    TokenStore(target, "train").verify()


def test_finished_store_is_left_alone(
    corpus_file: Path, bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_store([str(corpus_file)], bpe, tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("a file was written"))
    assert prepare_store([str(corpus_file)], bpe, tmp_path) == first


def test_seed_decides_the_order_and_nothing_else(
    corpus_file: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare_store([str(corpus_file)], bpe, tmp_path / name, seed=seed, unit_bytes=UNIT)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert stored(tmp_path / "a", "train") != stored(tmp_path / "c", "train")
    assert sorted(stored(tmp_path / "a", "train")) == sorted(stored(tmp_path / "c", "train"))


# Mistakes.


CHANGES: dict[str, dict[str, Any]] = {
    "column": {"column": "id"},
    "held_out": {"validation_share": 0.5},
    "seed": {"seed": 9},
    "unit_bytes": {"unit_bytes": 999},
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", [*CHANGES, "tokenizer", "files", "sizes"])
def test_changed_settings_are_refused(
    bpe: Tokenizer, wordpiece: Tokenizer, tmp_path: Path, finished: bool, name: str
) -> None:
    corpus = tmp_path / "t.jsonl"
    corpus.write_text('{"text": "one", "id": "1"}\n{"text": "two", "id": "2"}\n')
    settings: dict[str, Any] = {"unit_bytes": 1000, "validation_share": 0.0, "seed": 0}
    prepare_store([str(corpus)], bpe, tmp_path / "store", **settings)
    if not finished:
        (tmp_path / "store" / "manifest.json").unlink()
    before = content(tmp_path / "store")
    if name == "sizes":
        corpus.write_text(corpus.read_text() + '{"text": "three", "id": "3"}\n')
    files = [str(corpus)] * (2 if name == "files" else 1)
    tokenizer = wordpiece if name == "tokenizer" else bpe
    settings |= CHANGES.get(name, {})
    with pytest.raises(UserError, match=rf"other settings \(.*{name} .* -> .*another directory"):
        prepare_store(files, tokenizer, tmp_path / "store", **settings)
    assert content(tmp_path / "store") == before


@pytest.mark.parametrize("text", ["", "\n\n  \n", "\n\ufeff\n"])
def test_empty_corpus_is_refused(bpe: Tokenizer, tmp_path: Path, text: str) -> None:
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"empty corpus: no document in .*t\.txt"):
        prepare_store([str(tmp_path / "t.txt")], bpe, tmp_path / "store")
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_wrong_column_does_not_spoil_the_directory(
    corpus_file: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    """It is said at once, and the next call with the right one works."""
    with pytest.raises(UserError, match="no text column 'body'"):
        prepare_store([str(corpus_file)], bpe, tmp_path / "store", column="body", unit_bytes=700)
    assert prepare_store([str(corpus_file)], bpe, tmp_path / "store", unit_bytes=700).train


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"files": []}, "no files to prepare"),
        ({"unit_bytes": 0}, "--unit_bytes is 0"),
        ({"unit_bytes": -5}, "--unit_bytes is -5"),
        ({"validation_share": 1.5}, "validation_share is 1.5"),
        ({"validation_share": -0.1}, "validation_share is -0.1"),
        ({"files": ["nowhere.txt"]}, "file not found: 'nowhere.txt'"),
        ({"files": ["t.docx"]}, "cannot read 't.docx'"),
    ],
)
def test_wrong_settings_are_refused(
    corpus_file: Path, bpe: Tokenizer, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"files": [str(corpus_file)], **settings}
    with pytest.raises(UserError, match=message):
        prepare_store(given.pop("files"), bpe, tmp_path / "store", **given)
    assert not (tmp_path / "store").exists()


def test_bad_documents_are_counted_over_all_shards(bpe: Tokenizer, tmp_path: Path) -> None:
    lines = ['{"text": "good"}', "broken"] * 30
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    manifest = prepare_store(
        [str(tmp_path / "t.jsonl")],
        bpe,
        tmp_path / "s",
        unit_bytes=50,
        validation_share=0.0,
        max_bad_share=0.5,
    )
    assert manifest.bad_documents == 30
    assert manifest.bad_kinds == {"broken JSON": 30}
    assert len(manifest.bad_places) == 10
    assert len(stored(tmp_path / "s", "train")) == 30


def test_commands_report(
    bpe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "good"}\nbroken\n')
    store = str(tmp_path / "store")
    prepare_command(
        [str(tmp_path / "t.jsonl")], str(bpe_path), store, validation_share=0.0, max_bad_share=0.5
    )
    said = capsys.readouterr()
    tokens = len(stored(tmp_path / "store", "train")[0])
    assert f"train: 1 documents, {tokens} tokens in 1 shards" in said.out
    assert "1 documents could not be read: 1 broken JSON" in said.err
    assert "t.jsonl at byte 17: not a JSON line" in said.err
    inspect(store)
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "token store"
    assert facts["fingerprint"] == read_manifest(store).fingerprint
    assert facts["train"] == {"shards": 1, "documents": 1, "tokens": tokens, "text_bytes": 4}
    inspect(str(bpe_path / "tokenizer.json"))
    assert json.loads(capsys.readouterr().out)["fingerprint"] == facts["tokenizer"]
