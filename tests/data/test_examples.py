"""Labelled files: named columns, located mistakes, cuts that keep both parts."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers

from ptft_lightning.data.examples import Columns, Encoded, Example, read_examples
from ptft_lightning.data.framing import frame_example
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

PAIRS = Columns(text="s1", pair="s2", label="gold")


def write(path: Path, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


FILES = {
    "t.csv": 'id,gold,s1,s2\n1,yes,one,"two, three"\n2,no,模型,"a ""q"""\n',
    "t.tsv": 'id\tgold\ts1\ts2\n1\tyes\tone\ttwo, three\n2\tno\t模型\ta "q"\n',
    "t.jsonl": '{"s1": "one", "s2": "two, three", "gold": "yes", "id": 1}\n\n'
    '{"gold": "no", "s1": "\\u6a21型", "s2": "a \\"q\\"", "id": 2}\n',
}
FILES["list.json"] = "[" + FILES["t.jsonl"].replace("}\n\n{", "},\n{") + "]"
FILES["bom.csv"] = '\ufeffs1,gold,s2\none,yes,"two, three"\n模型,no,"a ""q"""\n'
FILES["bom.jsonl"] = "\ufeff" + FILES["t.jsonl"]
FILES["crlf.csv"] = FILES["t.csv"].replace("\n", "\r\n")
FILES["crlf.tsv"] = FILES["t.tsv"].replace("\n", "\r\n")
FILES["no_end.csv"] = FILES["t.csv"].rstrip("\n")
FILES["blank_lines.csv"] = FILES["t.csv"].replace("\n", "\n\n")


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("name", FILES)
def test_named_columns(tmp_path: Path, name: str, gz: str) -> None:
    path = write(tmp_path / (name + gz), FILES[name])
    examples = read_examples(path, PAIRS, labelled=True)
    assert [(e.text, e.pair, e.label) for e in examples] == [
        ("one", "two, three", "yes"),
        ("模型", 'a "q"', "no"),
    ]
    unit = "record" if name.endswith(".json") else "line"
    assert all(e.place.startswith(f"{path} {unit} ") for e in examples)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_file_without_a_header(tmp_path: Path, name: str) -> None:
    body = FILES[name].split("\n", 1)[1]
    columns = Columns("s1", "s2", "gold", names=["id", "gold", "s1", "s2"])
    path = write(tmp_path / name, body)
    examples = read_examples(path, columns, labelled=True)
    assert [e.label for e in examples] == ["yes", "no"]
    assert examples[0].place == f"{path} line 1"


def test_unlabelled_files_need_no_label(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "text\nhello\n")
    (example,) = read_examples(path, Columns(), labelled=False)
    assert (example.text, example.pair, example.label) == ("hello", None, None)


def test_labels_that_are_not_text(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    assert [e.label for e in read_examples(path, Columns(), labelled=True)] == ["0", "1"]


def test_what_stands_for_no_label_is_none(tmp_path: Path) -> None:
    """null, and NaN as pandas writes it; in lists they are left out."""
    lines = ["null", "NaN", '" "', '["y", null, NaN, ""]', "[null]"]
    text = "".join(f'{{"text": "a", "label": {label}}}\n' for label in lines)
    examples = read_examples(write(tmp_path / "t.jsonl", text), Columns(), labelled=True)
    assert [e.label for e in examples] == ["", "", " ", None, None]
    assert [e.labels for e in examples] == [None, None, None, ["y"], []]


fields_ = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=9)


@given(rows=st.lists(st.tuples(fields_, fields_), min_size=1, max_size=6))
def test_quoted_fields_come_back(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    """Newlines, quotes, commas, anything, as written by Python's csv module."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    path = write(tmp_path / "t.csv", stream.getvalue())
    examples = read_examples(path, Columns(), labelled=True)
    assert [(e.text, e.label) for e in examples] == rows


def test_quoted_newlines_and_the_line_numbers_after_them(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", 'text,label\n"two\nlines",a\nplain,b\nwrong\n')
    with pytest.raises(UserError, match=r"t\.csv line 5: 1 columns, expected 2"):
        read_examples(path, Columns(), labelled=True)


def test_bare_quotes_in_tsv_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", 'text\tlabel\n"open\ta\n5" nail\tb\n')
    examples = read_examples(path, Columns(), labelled=True)
    assert [e.text for e in examples] == ['"open', '5" nail']


MISTAKES = {
    "missing column": ("t.csv", "sentence,label\nx,a\n", r"line 2: no column 'text'; .*'sentence'"),
    "missing label": ("t.csv", "text,gold\nx,a\n", r"line 2: no column 'label'.*data\.columns"),
    "a list for a text": (
        "t.jsonl",
        '{"text": ["a", "b"], "label": "a"}\n',
        r"line 1: 'text' is \['a",
    ),
    "null": ("t.jsonl", '{"text": null, "label": "a"}\n', r"line 1: no column 'text'"),
    "later record": (
        "t.jsonl",
        '{"text": "x", "label": "a"}\n{"label": "a"}\n',
        r"line 2: no column 'text'",
    ),
    "too many": ("t.csv", "text,label\nx,a\nx,a,b\n", r"line 3: 3 columns, expected 2 \(\['text'"),
    "too few": ("t.tsv", "text\tlabel\nx\n", r"line 2: 1 columns, expected 2"),
    "open quote": ("t.csv", 'text,label\nx,"a\ny,b\nz,c\n', r"line 4: quotes do not match"),
    "broken quote": ("t.csv", 'text,label\n"x" y,a\n', r"line 2: quotes do not match"),
    "broken line": ("t.jsonl", '{"text": "x", "label": "a"}\n{"text\n', r"line 2: not a JSON line"),
    "deep line": ("t.jsonl", "[" * 100_000, r"line 1: not a JSON line"),
    "long number": ("t.jsonl", "9" * 5000, r"line 1: not a JSON line"),
    "not a list": ("t.json", '{"text": "x"}', r"t\.json' is not a list of JSON objects"),
    "broken list": ("t.json", '[{"text": "x"}', r"t\.json' is not JSON"),
    "empty list": ("t.json", "[]", r"t\.json' holds no examples"),
    "list": ("t.jsonl", '["x", "a"]\n', r"line 1: not a JSON object"),
    "surrogate": ("t.jsonl", '{"text": "\\ud800", "label": "a"}\n', r"line 1: half of a surrogate"),
    "not UTF-8": ("t.csv", b"text,label\n\xff,a\n", r"'.*t\.csv' is not UTF-8"),
    "empty": ("t.csv", "", r"'.*t\.csv' holds no examples"),
    "header alone": ("t.csv", "text,label\n", r"'.*t\.csv' holds no examples"),
    "suffix": ("t.txt", "text,label\n", r"cannot read '.*t\.txt': expected \.jsonl, \.json, \.csv"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_with_their_place(tmp_path: Path, mistake: str) -> None:
    name, content, message = MISTAKES[mistake]
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as error:
        read_examples(path, Columns(), labelled=True)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file not found: '.*nowhere\.csv'"):
        read_examples(str(tmp_path / "nowhere.csv"), Columns(), labelled=True)


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b"text,label\n" + b"x,a\n" * 1000)
    (tmp_path / "t.csv.gz").write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"'.*t\.csv\.gz' is damaged"):
        read_examples(str(tmp_path / "t.csv.gz"), Columns(), labelled=True)


# Framing.


def words(count: int) -> str:
    return " ".join(["river"] * count)


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    """One id a word, no special tokens."""
    raw = RawTokenizer(models.WordLevel({"[UNK]": 0, "river": 1, "stone": 2}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(raw.to_str())


def frame(tokenizer: Tokenizer, text: str, pair: str | None, length: int) -> Encoded:
    (encoded,) = frame_example([Example(text, pair, None, "here")], tokenizer, length)
    assert len(encoded.segments) == len(encoded.tokens)
    return encoded


def test_frame_of_one_text(bpe: Tokenizer) -> None:
    ids = bpe.encode(["green river"])[0]
    encoded = frame(bpe, "green river", None, 64)
    assert encoded.tokens == [bpe.begin, *ids, bpe.end]
    assert not any(encoded.segments)
    assert encoded.cut == 0


def test_frame_of_a_pair(bpe: Tokenizer) -> None:
    first, second = bpe.encode(["green river", "stone"])
    encoded = frame(bpe, "green river", "stone", 64)
    assert encoded.tokens == [bpe.begin, *first, bpe.end, *second, bpe.end]
    assert encoded.segments == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    empty = frame(bpe, "green river", "", 64)  # an empty second sentence is still one
    assert empty.tokens == [bpe.begin, *first, bpe.end, bpe.end]


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Take one token at a time from the longer part; of equal ones, from the first."""
    while first + second > room:
        if first >= second:
            first -= 1
        else:
            second -= 1
    return first, second


@given(first=st.integers(0, 30), second=st.integers(0, 30), length=st.integers(5, 40))
def test_longer_part_is_cut_first(
    plain: Tokenizer, bpe: Tokenizer, first: int, second: int, length: int
) -> None:
    text, pair = words(first), " ".join(["stone"] * second)
    kept = longest_first(first, second, length)
    encoded = frame(plain, text, pair, length)
    assert (encoded.tokens.count(1), encoded.tokens.count(2)) == kept
    assert encoded.cut == max(0, first + second - length)
    framed = frame(bpe, text, pair, length)
    assert len(framed.tokens) <= length
    assert framed.tokens[0] == bpe.begin
    assert framed.tokens[-1] == bpe.end
    assert framed.tokens.count(bpe.end) == 2
    for part, its_text in ((0, text), (1, pair)):  # what is kept is the beginning of each
        kept_ids = [
            t
            for t, s in zip(framed.tokens, framed.segments, strict=True)
            if s == part and t not in (bpe.begin, bpe.end)
        ]
        ids = bpe.encode([its_text])[0]
        assert kept_ids == ids[: len(kept_ids)]
        assert bool(kept_ids) == bool(ids)


@given(count=st.integers(0, 40), length=st.integers(4, 20))
def test_single_text_is_cut_at_its_end(plain: Tokenizer, count: int, length: int) -> None:
    encoded = frame(plain, words(count), None, length)
    assert len(encoded.tokens) == max(1, min(count, length))
    assert encoded.cut == max(0, count - length)


@pytest.mark.parametrize("pair", [None, ""])
def test_nothing_at_all_still_has_a_token(plain: Tokenizer, pair: str | None) -> None:
    """Without begin and end tokens, an empty example would have no place to be read from."""
    encoded = frame(plain, "", pair, 8)
    assert encoded.tokens == [plain.pad]
    assert encoded.segments == [0]
