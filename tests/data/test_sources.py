"""What a user names becomes files: in order, each once, and what is left out is said."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from ptft_lightning.data.sources import expand_sources, suffix_of
from ptft_lightning.errors import UserError

NAMES = ("b.txt", "a.jsonl.gz", "deep/er/c.csv.zst", "deep/d.parquet", "notes.md", "deep/x.md")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*NAMES, ".hidden/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    return tmp_path


def names(files: list[str], root: object) -> list[str]:
    return [file.removeprefix(f"{root}/") for file in files]


def test_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = expand_sources([str(folder)])
    assert names(found, folder) == ["a.jsonl.gz", "b.txt", "deep/d.parquet", "deep/er/c.csv.zst"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "2 files are not read (2 .md), such as" in said
    assert expand_sources(found) == found
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["a.jsonl.gz", "b.txt"]),
        ("*.txt", ["b.txt"]),
        ("**/*.csv.*", ["deep/er/c.csv.zst"]),
        ("[ab].*", ["a.jsonl.gz", "b.txt"]),
    ],
)
def test_glob(folder: Path, pattern: str, expected: list[str]) -> None:
    assert names(expand_sources([f"{folder}/{pattern}"]), folder) == expected


def test_names_come_back_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "odd[1].txt").write_text("text")
    given = ["nowhere.txt", "b.txt", "b.txt", "odd[1].txt", "hub:owner/name?split=test"]
    given.append("simplecache::memory://sources/b.txt")
    assert expand_sources(given) == given
    assert expand_sources(["b.txt", "*.txt"]) == ["b.txt", "odd[1].txt"]
    assert expand_sources(["deep"]) == ["deep/d.parquet", "deep/er/c.csv.zst"]


def test_urls() -> None:
    for name in NAMES:
        with fsspec.open(f"memory://sources/{name}", "w") as file:
            file.write("text")
    root = "memory:///sources"
    expected = ["a.jsonl.gz", "b.txt", "deep/d.parquet", "deep/er/c.csv.zst"]
    assert names(expand_sources(["memory://sources"]), root) == expected
    assert names(expand_sources(["memory://sources/**/*.csv.zst"]), root) == expected[-1:]
    assert expand_sources(["memory://sources/b.txt"]) == ["memory://sources/b.txt"]


@pytest.mark.parametrize("entry", ["{}/*.docx", "{}/empty", "memory://nothing-here/*"])
def test_nothing_to_read(folder: Path, entry: str) -> None:
    (folder / "empty").mkdir()
    entry = entry.format(folder)
    with pytest.raises(UserError) as error:
        expand_sources([entry])
    for part in (f"'{entry}'", ".txt", ".parquet", ".zst"):
        assert part in str(error.value)


def test_suffixes() -> None:
    known = {"a/b.txt.gz": ".txt", "b.tsv.zst": ".tsv", "x.parquet": ".parquet", "u.csv": ".csv"}
    assert {path: suffix_of(path) for path in known} == known
    for path in ("x.parquet.gz", "x.gz", "txt", "x.csvx"):
        with pytest.raises(UserError, match=f"cannot read '{path}'"):
            suffix_of(path)


def test_other_ways_to_write_a_path_add_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("a")
    for again in ("./corpus/*.txt", str(tmp_path / "corpus"), "corpus/../corpus"):
        assert expand_sources(["corpus", again]) == ["corpus/a.txt"]
