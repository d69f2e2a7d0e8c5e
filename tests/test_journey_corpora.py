"""From files of every kind to a token store and a run, through the command line."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from faults.kit import call, done, pretrain, words

from ptft_lightning.data.manifest import read_manifest
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(corpus_documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in six files of as many formats, and a file to pass over."""
    at = tmp_path_factory.mktemp("folder")
    (at / "deep").mkdir()
    parts = [corpus_documents[i::6] for i in range(6)]
    lines = [[json.dumps({"text": text}) + "\n" for text in part] for part in parts]
    (at / "a.jsonl.gz").write_bytes(gzip.compress("".join(lines[0]).encode()))
    (at / "b.jsonl.zst").write_bytes(zstandard.compress("".join(lines[1]).encode()))
    (at / "deep" / "c.txt").write_text("\n\n".join(parts[2]))
    for number, name, delimiter in ((3, "d.csv", ","), (4, "deep/e.tsv", "\t")):
        with open(at / name, "w", newline="") as stream:
            writer = csv.writer(stream, delimiter=delimiter)
            writer.writerows([("n", "text"), *enumerate(parts[number])])
    pq.write_table(pa.table({"text": parts[5]}), at / "f.parquet", row_group_size=7)
    (at / "README.md").write_text("not this one")
    return at


def options(files: Any, tokenizer: Path, output: Path, **more: Any) -> list[str]:
    given = {"files": files, "tokenizer": str(tokenizer), "output": str(output), **more}
    return words("prepare", given)


def texts(store: Path, tokenizer: Tokenizer) -> list[str]:
    """All documents of a store, decoded."""
    found = []
    for split in ("train", "validation"):
        opened = TokenStore(store, split)
        for shard in range(len(opened.shards)):
            tokens, ends = opened.tokens(shard).tolist(), opened.ends(shard).tolist()
            found += [tokenizer.decode(tokens[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    return sorted(found)


def test_a_folder_of_all_formats(folder, corpus_documents, bpe, bpe_path, tmp_path):
    run = done(options([str(folder)], bpe_path, tmp_path / "store", unit_bytes=2000))
    assert "1 files are not read (1 .md)" in run.err
    assert texts(tmp_path / "store", bpe) == sorted(corpus_documents)
    manifest = read_manifest(tmp_path / "store")
    names = ["a.jsonl.gz", "b.jsonl.zst", "d.csv", "deep/c.txt", "deep/e.tsv", "f.parquet"]
    assert manifest.plan["files"] == [f"{folder}/{name}" for name in names]
    assert (manifest.bad_documents, manifest.bad_kinds) == (0, {})
    assert len(manifest.train) > 20
    # Globs and names of the same files are the same plan: the finished store is left alone.
    listed = [*(f"{folder}/{n}" for n in names[:3]), f"{folder}/deep/*", f"{folder}/*.parquet"]
    again = done(options(listed, bpe_path, tmp_path / "store", unit_bytes=2000))
    assert manifest.fingerprint in again.out


class Killed(BaseException):
    """Stands for the end of the process."""


def test_killed_in_any_format_ends_byte_identical(
    folder: Path, bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"unit_bytes": 4000, "encoding": "utf-8-sig"}
    monkeypatch.setattr(os, "fsync", lambda _: None)
    prepare_store([str(folder)], bpe, tmp_path / "undisturbed", **settings)
    expected = {p.name: p.read_bytes() for p in (tmp_path / "undisturbed").iterdir()}
    replace, left = os.replace, 0

    def counted(source: Any, target: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", counted)
    for _ in range(len(expected) // 9 + 1):
        left = 14  # goes on nine files or more each time
        try:
            prepare_store([str(folder)], bpe, tmp_path / "killed", **settings)
            break
        except Killed:
            continue
    done_files = {p.name: p.read_bytes() for p in (tmp_path / "killed").iterdir()}
    assert {n: c for n, c in done_files.items() if not n.endswith(".tmp")} == expected


def test_fit_from_a_url_with_bad_documents(corpus_documents, bpe_path, tmp_path):
    """What is left out is counted by kind: by fit, in the manifest, by inspect."""
    lines = [json.dumps({"text": text}) for text in corpus_documents]
    lines[5:5] = ['{"text": ', '{"text": "a\\u0000b"}', '{"body": 1}', '{"body": 2}']
    with fsspec.open("memory://journey/c.jsonl.zst", "wb") as file:
        file.write(zstandard.compress("\n".join(lines).encode()))
    run_options = pretrain(tmp_path / "run", tmp_path / "store", bpe_path, trainer__max_steps=2)
    run_options |= {"data.files": ["memory://journey/*.jsonl.zst"]}
    kinds = {"broken JSON": 1, "NUL bytes": 1, "no text column": 2}
    said = "4 documents could not be read (2 no text column, 1 NUL bytes, 1 broken JSON)"
    for run_dir in ("run", "run2"):  # the second finds the store
        run_options["run_dir"] = str(tmp_path / run_dir)
        assert said in done(words("fit", run_options)).err
    manifest = read_manifest(tmp_path / "store")
    assert manifest.plan["files"] == ["memory:///journey/c.jsonl.zst"]
    assert (manifest.bad_documents, manifest.bad_kinds) == (4, kinds)
    facts = json.loads(done(["inspect", str(tmp_path / "store")]).out)
    assert (facts["bad_documents"], facts["bad_kinds"]) == (4, kinds)
    assert "c.jsonl.zst at byte " in facts["bad_places"][0]


def test_inspect_tells_vocabularies_and_unfinished_stores(corpus_file, bpe_path, tmp_path):
    (tmp_path / "words").mkdir()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river"]
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(names))
    facts = json.loads(done(["inspect", str(tmp_path / "words")]).out)
    assert (facts["kind"], facts["ids"]) == ("tokenizer", 6)
    given_ = {"files": [str(corpus_file)], "tokenizer": str(bpe_path)}
    done(words("prepare", given_ | {"output": str(tmp_path / "store")}))
    (tmp_path / "store" / "manifest.json").unlink()
    run = call(["inspect", str(tmp_path / "store")])
    assert "is a token store that is not finished: go on with prepare" in run.errors[-1]


def test_what_nobody_reads_any_more_is_no_traceback(store):
    """As behind `| head`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "ptft_lightning", "inspect", str(store)]
    run = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (run.returncode, run.stderr) == (1, b"")


def test_gb18030_is_the_same_store(corpus_documents, bpe, bpe_path, tmp_path):
    chinese = [text for text in corpus_documents if any(ord(c) > 127 for c in text)]
    for name, encoding in (("one", "utf-8"), ("two", "gb18030")):
        (tmp_path / f"{name}.txt").write_bytes("\n\n".join(chinese).encode(encoding))
        file = str(tmp_path / f"{name}.txt")
        done(options([file], bpe_path, tmp_path / name, encoding=encoding))
        learn = {"files": [file], "output": str(tmp_path / f"{name}-bpe"), "encoding": encoding}
        done(words("tokenizer", {**learn, "vocab_size": 400}))
    assert texts(tmp_path / "one", bpe) == texts(tmp_path / "two", bpe) == sorted(chinese)
    learned = [Tokenizer.load(tmp_path / f"{name}-bpe").fingerprint for name in ("one", "two")]
    assert learned[0] == learned[1]


@pytest.fixture
def some_bad(tmp_path: Path) -> Path:
    """A file with one bad document among five."""
    (tmp_path / "t.jsonl").write_text('{"text": "good words"}\n' * 4 + "broken\n")
    return tmp_path / "t.jsonl"


@pytest.mark.parametrize("command", ["prepare", "tokenizer"])
def test_too_many_bad_documents(command, some_bad, bpe_path, tmp_path):
    """Refused with a summary; accepted by name; what was done is kept."""
    given: dict[str, Any] = {"files": [str(some_bad)], "output": str(tmp_path / "out")}
    given |= {"tokenizer": str(bpe_path)} if command == "prepare" else {"vocab_size": 300}
    run = call(words(command, given))
    assert run.code == 2
    assert "1 documents could not be read (1 broken JSON)" in run.errors[0]
    assert "t.jsonl at byte 92: not a JSON line" in run.errors[0]
    assert "--max_bad_share" in run.errors[0]
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    run = done(words(command, {**given, "max_bad_share": 0.2}))
    assert "1 documents could not be read" in run.err
    assert "t.jsonl at byte 92: not a JSON line" in run.err
    if command == "prepare":  # a finished store is held to the limits, too
        for stricter in ({}, {"max_bad_share": 0.2, "on_bad_document": "stop"}):
            assert call(words(command, given | stricter)).code == 2


@pytest.mark.parametrize("command", ["prepare", "tokenizer"])
def test_stop_at_the_first_bad_document(command, some_bad, bpe_path, tmp_path):
    given: dict[str, Any] = {"files": [str(some_bad)], "output": str(tmp_path / "out")}
    given |= {"tokenizer": str(bpe_path)} if command == "prepare" else {"vocab_size": 300}
    run = call(words(command, given | {"on_bad_document": "stop"}))
    assert run.code == 2
    assert "t.jsonl at byte 92: not a JSON line" in run.errors[0]
    assert "--on_bad_document skip" in run.errors[0]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_another_encoding_is_another_store(corpus_file, bpe_path, tmp_path):
    done(options([str(corpus_file)], bpe_path, tmp_path / "s"))
    run = call(options([str(corpus_file)], bpe_path, tmp_path / "s", encoding="utf-8-sig"))
    assert run.code == 2
    assert "encoding 'utf-8' -> 'utf-8-sig'" in run.errors[0]


def test_a_changed_folder_is_named_in_short(bpe_path, tmp_path):
    (tmp_path / "many").mkdir()
    for i in range(40):
        (tmp_path / "many" / f"{i}.txt").write_text(f"document {i}")
    done(options([str(tmp_path / "many")], bpe_path, tmp_path / "s"))
    (tmp_path / "many" / "new.txt").write_text("one more")
    run = call(options([str(tmp_path / "many")], bpe_path, tmp_path / "s"))
    assert run.code == 2
    assert "files 40 entries -> 41 entries, such as " in run.errors[0]
    assert "new.txt" in run.errors[0]
    assert len(run.errors[0]) < 500
