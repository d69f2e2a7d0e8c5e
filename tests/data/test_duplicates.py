"""Duplicates against a plain dictionary of texts, and stores without them."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from faults.kit import call, done, words
from hypothesis import given, settings
from hypothesis import strategies as st

from ptft_lightning.data import duplicates
from ptft_lightning.data.documents import Reading
from ptft_lightning.data.drop_list import read_drop_list
from ptft_lightning.data.duplicates import find_duplicates
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

TEXTS = ["the river", "the stone", "河流", "石头和水", "a", "The river"]
SPACES = ["", " ", "\n", "\u3000", " \t"]  # an ideographic space, too


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts).encode()


def repeats(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """What a dictionary of all texts finds in .jsonl files."""
    seen: dict[str, dict[str, Any]] = {}
    found = []
    for file, content in files.items():
        at = 0
        for line in content.splitlines(keepends=True):
            text = json.loads(line)["text"].strip()
            place = {"file": file, "at": at}
            at += len(line)
            if text and text in seen:
                found.append(place | {"repeats": seen[text]})
            elif text:
                seen[text] = place
    return found


@settings(max_examples=40)
@given(
    parts=st.lists(
        st.lists(st.tuples(*map(st.sampled_from, (SPACES, TEXTS, SPACES))), max_size=12),
        min_size=1,
        max_size=4,
    ),
    unit_bytes=st.sampled_from([20, 100, 10**6]),
    at_once=st.sampled_from([1, 3, 2**22]),
)
def test_the_list_is_what_a_dictionary_finds(
    parts: Any, unit_bytes: int, at_once: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("duplicates")
    texts = [["".join(pieces) for pieces in part] for part in parts]
    texts[-1].append("the last")
    files = {str(folder / f"{9 - i}.jsonl"): lines(part) for i, part in enumerate(texts)}
    for name, content in files.items():
        Path(name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "RANGE", at_once)
        output = folder / "drop.jsonl"
        found = find_duplicates([*files], output, Reading(), unit_bytes=unit_bytes)
    first, *entries = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert entries == repeats(files)
    total = sum(bool(text.strip()) for part in texts for text in part)
    assert found.documents == first["documents"] == total
    assert first["dropped"] == len(entries) == found.repeated.shape[1]
    assert first["files"] == {name: len(content) for name, content in files.items()}
    assert sorted(p.name for p in folder.iterdir() if p.suffix != ".jsonl") == []


@pytest.fixture(scope="module")
def corpus(
    corpus_documents: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], list[str]]:
    """Files of several formats that repeat each other, and the texts without repeats."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("repeating")
    rng = random.Random(1)
    texts = [text.replace("\n", " ") for text in corpus_documents[:120]]
    (folder / "a.jsonl").write_bytes(lines([*texts[:60], *rng.sample(texts[:60], 9), " "]))
    again = [f" {text}\u3000" for text in rng.sample(texts[:80], 30)] + texts[60:90]
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines(again)))
    pq.write_table(pa.table({"text": texts[80:110]}), folder / "c.parquet", row_group_size=7)
    (folder / "d.txt").write_text("\n\n".join(texts[100:]) + "\n", encoding="utf-8")
    return [str(path) for path in sorted(folder.iterdir())], list(dict.fromkeys(texts))


def test_a_store_without_duplicates_holds_each_text_once(
    corpus: tuple[list[str], list[str]], bpe: Tokenizer, bpe_path: Path, tmp_path: Path
) -> None:
    """Whole journey; several processes write the list and the store of one."""
    files, texts = corpus
    for name, workers in (("one", 1), ("two", 2)):
        folder = tmp_path / name
        given = {"files": files, "unit_bytes": 2000, "workers": workers}
        said = done(words("duplicates", given | {"output": str(folder / "drop.jsonl")})).out
        given |= {"tokenizer": str(bpe_path), "output": str(folder / "store")}
        given |= {"drop": str(folder / "drop.jsonl"), "validation_share": 0.1}
        told = done(words("prepare", given)).out
        facts = json.loads(done(["inspect", str(folder / "store")]).out)
        assert facts["dropped"] > 30
        documents = facts["train"]["documents"] + facts["validation"]["documents"]
        assert documents == len(texts)
        assert f"{documents + facts['dropped']} documents, {facts['dropped']} repeat" in said
        assert f"{facts['dropped']} documents were left out" in told
        assert facts["plan"]["drop"] == read_drop_list(str(folder / "drop.jsonl")).fingerprint
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / name / "store").iterdir()}
        for name in ("one", "two")
    )
    assert one == two


def test_the_list_must_fit(
    corpus: tuple[list[str], list[str]], bpe: Tokenizer, bpe_path: Path, tmp_path: Path
) -> None:
    files, _ = corpus
    drop = str(tmp_path / "drop.jsonl")
    find_duplicates(files, drop, Reading())
    other = tmp_path / "other.jsonl"
    other.write_bytes(lines(["one"]))

    def refused(message: str, files: list[str] = files, drop: str = drop, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            prepare_store(files, bpe, tmp_path / "store", dropped=read_drop_list(drop), **options)
        assert not (tmp_path / "store").exists()

    refused("does not know '.*other.jsonl': make it again", [*files, str(other)])
    refused("was made with --encoding utf-8, not with gb18030", encoding="gb18030")
    refused("file not found: 'nowhere'", drop="nowhere")
    refused("is not a list that `ptft_lightning duplicates` wrote", drop=str(other))
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(Path(drop).read_text().splitlines(keepends=True)[:-1]))
    refused(r"it has \d+ lines, its first one says", drop=str(cut))
    # A part of the files is enough.
    assert (
        prepare_store(files[:1], bpe, tmp_path / "part", dropped=read_drop_list(drop)).dropped == 9
    )
    # Another list is another store.
    prepare_store(files, bpe, tmp_path / "begun")
    with pytest.raises(UserError, match=r"other settings \(drop None -> '"):
        prepare_store(files, bpe, tmp_path / "begun", dropped=read_drop_list(drop))
    # A file that changed, of the same length or another.
    find_duplicates([str(other)] * 2, drop, Reading())
    other.write_bytes(lines(["one", "two"]))
    refused("knows 16 bytes, not 32, of '.*other.jsonl'", [str(other)])
    other.write_bytes(lines(["on", "on"]))
    find_duplicates([str(other)], drop, Reading())
    other.write_bytes(lines(["o", "ooo"]))
    with pytest.raises(UserError, match="names 1 documents, 0 of them start where it says"):
        prepare_store([str(other)], bpe, tmp_path / "changed", dropped=read_drop_list(drop))
    assert not (tmp_path / "changed" / "manifest.json").exists()


def test_mistakes_are_one_line(tmp_path: Path, bpe_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_bytes(lines(["one"]) + b"broken\n" * 3)
    given: dict[str, Any] = {"files": [str(file)], "output": str(tmp_path / "drop.jsonl")}
    store = given | {"tokenizer": str(bpe_path)}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("duplicates", given, "3 documents could not be read"),
        ("duplicates", given | {"workers": 0}, "--workers is 0: give 1 or more"),
        ("duplicates", given | {"files": []}, "no files to look at"),
        ("duplicates", given | {"column": "body"}, "no text column 'body'"),
        ("duplicates", given | {"unit_bytes": 0}, "--unit_bytes is 0"),
        ("prepare", store | {"workers": -1}, "--workers is -1: give 1 or more"),
        ("prepare", store | {"workers": 2, "cluster": "auto"}, "--workers and --cluster: name one"),
        ("prepare", store | {"drop": str(file)}, "is not a list that"),
    ]
    for command, options, message in cases:
        run = call(words(command, options))
        assert run.code == 2
        assert message in run.errors[0]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["t.jsonl"]
