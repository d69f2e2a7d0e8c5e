"""Documents against plain readers of the whole file, whatever the units cut through."""

from __future__ import annotations

import gzip
import json
from itertools import groupby
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from ptft_lightning.data.bad_documents import MAX_REPORTED, BadDocuments
from ptft_lightning.data.documents import (
    Reading,
    Unit,
    read_unit,
    split_units,
    text_size,
)
from ptft_lightning.errors import UserError


def write(path: Path, content: bytes) -> str:
    packed = {
        ".gz": lambda: gzip.compress(content, 1),
        ".zst": lambda: zstandard.ZstdCompressor(level=1).compress(content),
    }
    path.write_bytes(packed.get(path.suffix, lambda: content)())
    return str(path)


def read(path: str, unit_bytes: int, bad: BadDocuments, column: str = "text") -> list[str]:
    """All documents, unit by unit, the last unit first."""
    reading = Reading(column)
    units = split_units(path, text_size(path, column), unit_bytes, column)
    parts = [list(read_unit(unit, reading, bad)) for unit in reversed(units)]
    return [text for part in reversed(parts) for text in part]


def plain_txt(content: bytes) -> tuple[list[str], int]:
    """Documents of a .txt file read at once, and the number of bad ones."""
    documents, bad = [], int(not content)  # an empty file is said
    for filled, lines in groupby(content.split(b"\n"), key=lambda line: bool(line.strip())):
        if not filled:
            continue
        try:
            text = b"\n".join(lines).decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
        except UnicodeDecodeError:
            bad += 1
            continue
        documents += [text] if text.strip() else []
    return documents, bad


PIECES = [
    *"aé模🙂 \t\r\n",
    "\r\n",
    "\n\n",
    "\r\n\r\n",
    " \n",
    "\r\r\n",
    "\x0c\n",
    "\u3000\n",
    "\ufeff",
    "\u2028",
    "two words\n",
]
contents = st.lists(st.sampled_from(PIECES), max_size=30).map(lambda p: "".join(p).encode())


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".txt.zst"])
@given(content=contents, unit_bytes=st.integers(1, 40))
@example(content=b"one\r\r\ntwo\r\r\n\r\r\nthree", unit_bytes=6)
@example(content=b"", unit_bytes=5)
@example(content=b"no end of line", unit_bytes=3)
def test_txt_units_give_every_document_once(
    tmp_path: Path, suffix: str, content: bytes, unit_bytes: int
) -> None:
    bad = BadDocuments()
    documents = read(write(tmp_path / f"t{suffix}", content), unit_bytes, bad)
    assert (documents, bad.count) == plain_txt(content)


@given(
    parts=st.lists(
        st.sampled_from([b"a", b"\n", b"\n\n", b"\xff", b"\xe6\xa8", b" "]), max_size=20
    ),
    unit_bytes=st.integers(1, 12),
)
def test_txt_bad_bytes_are_counted_once(
    tmp_path: Path, parts: list[bytes], unit_bytes: int
) -> None:
    content = b"".join(parts)
    bad = BadDocuments()
    documents = read(write(tmp_path / "t.txt", content), unit_bytes, bad)
    assert (documents, bad.count) == plain_txt(content)


def test_txt_unit_after_a_long_run_of_spaces_begins_inside_the_document(tmp_path: Path) -> None:
    """A line that ends in more white space than one look back is not a blank line."""
    for spaces in (4000, 4096, 5000, 20000):
        line = b"word" + b" " * spaces + b"\n"
        content = line + b"same document\n" + b" " * spaces + b"\nnext\n"
        path = write(tmp_path / "t.txt", content)
        for unit_bytes in (len(line), len(line) - 1, len(line) + 15 + spaces):
            assert read(path, unit_bytes, BadDocuments()) == plain_txt(content)[0]


@st.composite
def json_lines(draw: st.DrawFn) -> tuple[bytes, list[str], int]:
    """A .jsonl file, its documents and the number of bad lines."""
    good = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
    texts = ["the first record has the column", *draw(st.lists(good, max_size=8))]
    lines: list[bytes] = []
    bad = 0
    for text in texts:
        escaped = draw(st.booleans())
        line = json.dumps({"n": 1, "text": text}, ensure_ascii=escaped).encode()
        lines.append(line + draw(st.sampled_from([b"\n", b"\r\n", b" \n"])))
        lines.append(draw(st.sampled_from([b"", b"", b"\n", b"\r\n", b"  \n"])))
        broken = draw(st.sampled_from([b"", b"", b"", b"{broken\n", b'{"other": 1}\n', b"[1]\n"]))
        lines.append(broken)
        bad += bool(broken)
    content = b"".join(lines).rstrip(b"\n") if draw(st.booleans()) else b"".join(lines)
    return content, [text for text in texts if text.strip()], bad


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
@given(case=json_lines(), unit_bytes=st.integers(1, 90))
def test_jsonl_units_give_every_document_once(
    tmp_path: Path, suffix: str, case: tuple[bytes, list[str], int], unit_bytes: int
) -> None:
    content, documents, count = case
    bad = BadDocuments()
    path = write(tmp_path / f"t{suffix}", content)
    assert read(path, unit_bytes, bad) == documents
    assert bad.count == count


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".txt.zst", ".jsonl", ".csv.zst"])
def test_text_size_counts_uncompressed_bytes(tmp_path: Path, suffix: str) -> None:
    assert text_size(write(tmp_path / f"t{suffix}", "é\n".encode() * 1000)) == 3000


@given(size=st.integers(0, 1000), unit_bytes=st.integers(1, 100))
def test_units_tile_the_file(size: int, unit_bytes: int) -> None:
    units = split_units("t.txt", size, unit_bytes)
    assert [u.start for u in units[1:]] == [u.end for u in units[:-1]]
    assert (units[0].start, units[-1].end) == (0, size)
    assert all(u.end - u.start <= unit_bytes for u in units)


BROKEN_LINES = {
    b'{"text": "cut off': "not a JSON line",
    b'{"text": "\xff\xfe"}': "not UTF-8",
    b'{"text": "a\\u0000b"}': "NUL bytes",
    b'{"text": ' + b"[" * 100_000: "not a JSON line",
    b'{"text": ' + b"9" * 5000 + b"}": "not a JSON line",
    b'["a", "list"]': "not a JSON object",
    b'{"body": "another column"}': "no text in column 'text'",
    b'{"text": null}': "no text in column 'text'",
    b'{"text": 3}': "no text in column 'text'",
    b'{"text": "\\ud800"}': "surrogate",
}


@pytest.mark.parametrize("line", BROKEN_LINES, ids=lambda line: str(line[:24]))
def test_broken_line_is_counted_with_its_place(tmp_path: Path, line: bytes) -> None:
    first, last = b'{"text": "first"}\n', b'\n{"text": "last"}\n'
    path = write(tmp_path / "t.jsonl", first + line + last)
    bad = BadDocuments()
    assert read(path, 1 << 20, bad) == ["first", "last"]
    assert bad.count == 1
    place, _, reason = bad.places[0].partition(": ")
    assert place == f"{path} at byte {len(first)}"
    assert BROKEN_LINES[line] in reason


@pytest.mark.parametrize("value", [b"null", b'["a"]'])
def test_a_first_line_without_text_is_counted_like_any(tmp_path: Path, value: bytes) -> None:
    path = write(tmp_path / "t.jsonl", b'{"text": ' + value + b'}\n{"text": "b"}\n')
    bad = BadDocuments()
    assert read(path, 1 << 20, bad) == ["b"]
    assert bad.count == 1


def test_surrogate_pair_is_ordinary_text(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", b'{"text": "\\ud83d\\ude42"}\n')
    assert read(path, 100, BadDocuments()) == ["🙂"]


def test_bad_text_is_counted_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "t.txt", b"good\n\nbad \xe9t\xe9\nsame\n\ngood again")
    bad = BadDocuments()
    assert read(path, 4, bad) == ["good", "good again"]
    assert bad.count == 1
    assert bad.places[0].startswith(f"{path} at byte 6: not UTF-8")


def test_all_bad_documents_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", b'{"text": "x"}\n' + b"no\n" * 25)
    bad = BadDocuments()
    read(path, 7, bad)
    assert bad.count == 25
    assert len(bad.places) == MAX_REPORTED


def test_column_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", b'{"body": "here"}\n')
    assert read(path, 100, BadDocuments(), column="body") == ["here"]


def test_missing_column_in_the_first_record_names_value_and_fix(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", b'{"body": "x", "id": 1}\n')
    with pytest.raises(UserError) as error:
        read(path, 100, BadDocuments())
    for part in (path, "'text'", "['body', 'id']", "--column"):
        assert part in str(error.value)


def test_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file not found: '.*nowhere\.txt'"):
        text_size(str(tmp_path / "nowhere.txt"))
    with pytest.raises(UserError, match=r"file not found: '.*nowhere\.txt'"):
        list(read_unit(Unit(str(tmp_path / "nowhere.txt"), 0, 1), Reading(), BadDocuments()))


@pytest.mark.parametrize("name", ["t.docx", "t", "t.txt.zip", "t.gz"])
def test_unknown_suffix_names_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot read '.*': expected .*\.txt, \.jsonl"):
        text_size(write(tmp_path / name, b"x"))


def test_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        text_size(str(tmp_path / "folder.txt"))
