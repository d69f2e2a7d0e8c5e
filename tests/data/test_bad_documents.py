"""What cannot be read is placed, counted by kind, limited; and stops who wants to be stopped."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ptft_lightning.data import documents, separated, streams
from ptft_lightning.data.bad_documents import BadDocuments
from ptft_lightning.data.documents import (
    DocumentReader,
    Reading,
    read_unit,
    split_units,
    text_size,
)
from ptft_lightning.errors import UserError

RANDOM = random.Random(0)
TEXTS = [f"document {i}: {RANDOM.randbytes(300).hex()}" for i in range(1500)]
JSONL = "".join(json.dumps({"text": t}) + "\n" for t in TEXTS).encode()
TXT = "\n\n".join(TEXTS).encode()
CSV = ("text,n\n" + "".join(f'"{t}\nsecond line",1\n' for t in TEXTS)).encode()
FULL = {".jsonl": JSONL, ".txt": TXT, ".csv": CSV}


def read_all(path: Path, unit_bytes: int) -> tuple[list[str], BadDocuments]:
    bad = BadDocuments()
    units = split_units(str(path), text_size(str(path)), unit_bytes)
    with DocumentReader(Reading()) as reader:
        return [text for unit in units for text in reader.read(unit, bad)], bad


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("suffix", FULL)
def test_documents_before_the_damage_are_kept(tmp_path: Path, suffix: str, packed: str) -> None:
    """A download cut off: whatever the units, the same documents, and one place."""
    content = FULL[suffix]
    path = tmp_path / f"t{suffix}{packed}"
    whole = gzip.compress(content) if packed == ".gz" else zstandard.compress(content, 3)
    path.write_bytes(whole[: len(whole) * 2 // 3])
    readable = text_size(str(path))
    assert len(content) // 3 < readable < len(content)
    ended = content[:readable].count({".jsonl": b"\n", ".txt": b"\n\n", ".csv": b'",1\n'}[suffix])
    for unit_bytes in (1 << 30, 20_000, 777):
        kept, bad = read_all(path, unit_bytes)
        assert [text.removesuffix("\nsecond line") for text in kept] == TEXTS[:ended]
        cut = bad.kinds.pop("broken row", 0)  # lines of a record that is cut off
        assert cut <= 2 * (suffix == ".csv")
        assert bad.kinds == {"damaged file": 1}
        reason = f"{readable} of its text: damaged, the rest is lost (it ends too early)"
        assert bad.places[-1] == f"{path} at byte {reason}"


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".txt.zst", ".csv.gz"])
@pytest.mark.parametrize("content", [b"not packed at all", b""])
def test_nothing_can_be_read(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"t{suffix}").write_bytes(content)
    kept, bad = read_all(tmp_path / f"t{suffix}", 99)
    assert kept == []
    assert bad.kinds == {"damaged file" if content else "empty file": 1}


@pytest.mark.parametrize("unit_bytes", [7, 40, 1 << 20])
@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".csv", ".tsv"])
def test_long_lines_are_left_out(
    tmp_path: Path, suffix: str, unit_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (streams, documents, separated):
        monkeypatch.setattr(module, "MAX_LINE", 50)
    long = "x" * 2000
    content = {
        ".jsonl": f'{{"text": "one"}}\n{{"text": "{long}"}}\n{{"text": "two"}}\n',
        ".txt": f"one\n\nshort line of it\n{long}\nand another\n\ntwo",
        ".csv": f"n,text\n1,one\n2,{long}\n3,two\n",
        ".tsv": f"n\ttext\n1\tone\n2\t{long}\n3\ttwo\n",
    }[suffix]
    (tmp_path / f"t{suffix}").write_text(content)
    kept, bad = read_all(tmp_path / f"t{suffix}", unit_bytes)
    assert kept == ["one", "two"]
    assert bad.kinds == {"too long": 1}
    at = {".jsonl": 16, ".txt": 5, ".csv": 13, ".tsv": 13}[suffix]
    assert bad.places[0].startswith(f"{tmp_path}/t{suffix} at byte {at}: ")


def test_a_document_of_many_lines_can_be_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_LINE", 50)
    (tmp_path / "t.txt").write_text("one\n\n" + "a line\n" * 99 + "\ntwo\n")
    kept, bad = read_all(tmp_path / "t.txt", 64)
    assert (kept, bad.kinds) == (["one", "two"], {"too long": 1})


BAD: dict[str, tuple[str, bytes, str]] = {
    "bad bytes": ("t.txt", b"good\n\nb\xe9d\n", "t.txt at byte 6: not UTF-8"),
    "NUL bytes": ("t.txt", b"good\n\nb\0d\n", "t.txt at byte 6: NUL bytes"),
    "broken JSON": ("t.jsonl", b'{"text": "good"}\n{"te\n', "t.jsonl at byte 17: not a JSON line"),
    "no text column": ("t.jsonl", b'{"text": "good"}\n{"a": 1}\n', "t.jsonl at byte 17: no text"),
    "broken row": ("t.csv", b"text,n\ngood,1\nbad\n", "t.csv at byte 14: 1 columns, expected 2"),
    "damaged file": ("t.txt.gz", gzip.compress(b"good\n\nlost")[:-1], "of its text: damaged"),
    "empty file": ("t.txt", b"", "t.txt: an empty file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_each_kind(tmp_path: Path, kind: str) -> None:
    name, content, place = BAD[kind]
    (tmp_path / name).write_bytes(content)
    kept, bad = read_all(tmp_path / name, 1 << 20)
    assert kept == ([] if kind == "empty file" else ["good"])
    assert bad.kinds == {kind: 1}
    assert place in bad.places[0]
    (unit,) = split_units(str(tmp_path / name), text_size(str(tmp_path / name)), 1 << 20)
    with pytest.raises(UserError) as error:
        list(read_unit(unit, Reading(), BadDocuments(on_bad="stop")))
    assert bad.places[0] in str(error.value)
    assert "--on_bad_document skip" in str(error.value)


@pytest.mark.parametrize(
    ("kinds", "good", "limit", "fits"),
    [
        ({}, 0, 0.0, True),
        ({"bad bytes": 1}, 9, 0.1, True),
        ({"bad bytes": 1}, 8, 0.1, False),
        ({"bad bytes": 1, "too long": 1}, 18, 0.1, True),
        ({"empty file": 9}, 1, 0.0, True),  # lost nothing
        ({"broken row": 1}, 10**6, 0.0, False),
        ({"broken row": 5}, 0, 1.0, True),
    ],
)
def test_limit(kinds: dict[str, int], good: int, limit: float, fits: bool) -> None:
    bad = BadDocuments(dict(kinds), ["t.txt at byte 6: not UTF-8"])
    if fits:
        bad.check_share(good, limit)
        return
    with pytest.raises(UserError) as error:
        bad.check_share(good, limit)
    for part in (*kinds, str(sum(kinds.values())), "t.txt at byte 6", "--max_bad_share"):
        assert part in str(error.value)


def test_merged_counts_add_up() -> None:
    parts: list[dict[str, Any]] = [
        {"kinds": {"a": 1, "b": 2}, "places": ["1", "2"]},
        {"kinds": {"b": 1}, "places": [str(i) for i in range(3, 20)]},
    ]
    bad = BadDocuments()
    for part in parts:
        bad.merge(**part)
    assert bad.kinds == {"a": 1, "b": 3}
    assert bad.places == [str(i) for i in range(1, 11)]
    assert bad.summary() == "4 documents could not be read (3 b, 1 a); the first: 1"
