"""Tables against independent readers of the whole file, whatever the units cut through."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_documents import read, write

from ptft_lightning.data import bad_documents as kinds
from ptft_lightning.data import streams
from ptft_lightning.data.bad_documents import BadDocuments
from ptft_lightning.data.documents import Reading, read_unit, split_units, text_size
from ptft_lightning.errors import UserError

CELLS = [
    "plain",
    "",
    " ",
    "a,b",
    "a\tb",
    'say ""',
    "two\nlines",
    "模型\r\n训练",
    '"',
    "\n\n",
    "é\u3000",
]
cells = st.lists(st.sampled_from(CELLS), max_size=3).map("".join)
tables = st.lists(st.tuples(cells, cells, cells), max_size=12)


def as_csv(rows: list[tuple[str, ...]], delimiter: str, quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, quoting=quoting)
    writer.writerows([("id", "text", "note"), *rows])
    return stream.getvalue().encode()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".tsv.zst"])
@given(rows=tables, unit_bytes=st.integers(1, 60), all_quoted=st.booleans())
@example(rows=[("", "", "")], unit_bytes=1, all_quoted=False)
def test_quoted_fields(
    tmp_path: Path,
    suffix: str,
    rows: list[tuple[str, ...]],
    unit_bytes: int,
    all_quoted: bool,
) -> None:
    """What Python's csv wrote, with separators, quotes and line ends in the fields.

    Not tabs within a .tsv: where lines have all columns by themselves, bare quotes are likelier.
    """
    delimiter = "\t" if ".tsv" in suffix else ","
    if delimiter == "\t":
        rows = [tuple(cell.replace("\t", " ") for cell in row) for row in rows]
    content = as_csv(rows, delimiter, csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL)
    bad = BadDocuments()
    documents = read(write(tmp_path / f"t{suffix}", content), unit_bytes, bad)
    assert documents == [row[1] for row in rows if row[1].strip()]
    assert bad.count == 0


LINES = ['1,a,b\n', '2,"q",c\n', '3,"two\nlines",d\n', '4,5" disk,e\n', '5,"open,f\n', 'x\n', '"\n',
         '6,a"b"c,g\n', '7,"a"b,h\n', '\n', '8,"a""b",i\r\n', '9,"",\n', '""\n']  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@given(lines=st.lists(st.sampled_from(LINES), max_size=12), unit_bytes=st.integers(1, 50))
def test_units_agree_on_broken_quotes(
    tmp_path: Path, suffix: str, lines: list[str], unit_bytes: int
) -> None:
    """Whatever is wrong in a file, its units together give what one unit gives."""
    text = "".join(["id,text,note\n", *lines])
    text = text.replace(",", "\t") if suffix == ".tsv" else text
    path = write(tmp_path / f"t{suffix}", text.encode())
    whole, cut = BadDocuments(), BadDocuments()
    assert read(path, unit_bytes, cut) == read(path, 1 << 30, whole)
    assert cut.kinds == whole.kinds


def test_a_broken_quote_costs_one_line(tmp_path: Path) -> None:
    good = "".join(f'{i},"row ""{i}""\nsecond line",x\n' for i in range(100))
    content = f'id,text,note\n1,"never closed,x\n{good}2,5" disk,x\n3,"a"b,x\n4,a\n{good}'
    path = write(tmp_path / "t.csv", content.encode())
    bad = BadDocuments()
    documents = read(path, 333, bad)
    expected = [f'row "{i}"\nsecond line' for i in range(100)]
    assert documents == [*expected, '5" disk', *expected]
    assert bad.kinds == {kinds.BROKEN_ROW: 3}
    lines = content.encode()
    for part, reason in ((b"1,", "quotes"), (b'3,"a"b', "quotes"), (b"4,a\n", "2 columns")):
        at = lines.index(b"\n" + part) + 1
        place = f"{path} at byte {at}: "
        assert any(p.startswith(place) and reason in p for p in bad.places), bad.places


def test_bare_quotes_of_a_tsv_are_text(tmp_path: Path) -> None:
    rows = ['"hello there\t1', 'ok bye"\t0', '5" disk\t1', '"quoted" word\t0', '"a\nb"\t1']
    path = write(tmp_path / "t.tsv", "\n".join(["text\tlabel", *rows]).encode())
    bad = BadDocuments()
    assert read(path, 9, bad) == ['"hello there', 'ok bye"', '5" disk', '"quoted" word', "a\nb"]
    assert bad.count == 0


def test_header(tmp_path: Path) -> None:
    body = b'"the text",n\n"\xef\xbb\xbfone",1\n'
    for mark in (b"", b"\xef\xbb\xbf"):
        path = write(tmp_path / "t.csv", mark + body)
        assert read(path, 99, BadDocuments(), "the text") == ["one"]
    assert read(write(tmp_path / "t.csv", b"\n" + body), 1, BadDocuments(), "the text") == ["one"]
    assert read(write(tmp_path / "u.csv", b"\n\n"), 1, BadDocuments()) == []
    with pytest.raises(UserError, match=r"u\.csv: its first line must name the columns"):
        read(write(tmp_path / "u.csv", b'"a"b,c\n1,2\n'), 1, BadDocuments())
    with pytest.raises(UserError, match=r"t\.csv: no text column 'text'.*\['the text', 'n'\]"):
        read(path, 99, BadDocuments())


def test_gb18030_table(tmp_path: Path) -> None:
    """Second bytes of GB18030 reach from 0x30: never a quote, comma, tab or line end."""
    texts = ["".join(map(chr, range(a, a + 200))) for a in range(0x4E00, 0x9000, 200)]
    texts += ["𠀀𠀁" * 9, 'quote " and\nline']
    content = as_csv([("1", text, "x") for text in texts], ",").decode().encode("gb18030")
    path = write(tmp_path / "t.csv", content)
    reading, bad = Reading("text", "gb18030"), BadDocuments()
    units = split_units(path, text_size(path), 700)
    assert [text for unit in units for text in read_unit(unit, reading, bad)] == texts
    assert len(units) > 20
    assert bad.count == 0


def test_planning_a_csv_is_linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotes that never close are looked at a bounded number of times."""
    lines = ['1,"open,x\n', *["2,plain,x\n"] * 500] * 6
    path = write(tmp_path / "t.csv", "".join(["id,text,note\n", *lines]).encode())
    calls = 0
    bounded = streams.bounded_lines

    def counted(stream: io.BytesIO):
        nonlocal calls
        for line in bounded(stream):
            calls += 1
            yield line

    monkeypatch.setattr("ptft_lightning.data.formats.separated.bounded_lines", counted)
    bad = BadDocuments()
    assert len(split_units(path, text_size(path), 1000)) > 10
    assert calls <= len(lines) + 3  # each line is read once
    assert len(read(path, 1 << 30, bad)) == 3000
    assert bad.kinds == {kinds.BROKEN_ROW: 6}


# Parquet.


def parquet(path: Path, texts: list[str | None], rows: int, kind: pa.DataType) -> str:
    column = pa.array(texts, pa.string()).cast(kind)
    table = pa.table({"n": range(len(texts)), "body": column})
    pq.write_table(table, path, row_group_size=rows)
    return str(path)


KINDS = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=30)
@given(
    texts=st.lists(st.sampled_from(["one", "模型\n", "", " ", "a\0b", None]), max_size=20),
    rows=st.integers(1, 6),
    unit_bytes=st.integers(1, 200),
)
def test_parquet_units_give_every_document_once(
    tmp_path: Path, kind: pa.DataType, texts: list[str | None], rows: int, unit_bytes: int
) -> None:
    path = parquet(tmp_path / "t.parquet", texts, rows, kind)
    bad = BadDocuments()
    expected = [t for t in texts if t and t.strip() and "\0" not in t]
    assert read(path, unit_bytes, bad, "body") == expected
    counted = {kinds.NO_TEXT: texts.count(None), kinds.NUL_BYTES: texts.count("a\0b")}
    counted[kinds.EMPTY_FILE] = int(not texts)
    assert bad.kinds == {kind: count for kind, count in counted.items() if count}


def test_parquet_reads_row_groups_and_one_column_alone(tmp_path: Path) -> None:
    """Another column, and row groups of other units, may be damaged: they are not read."""
    texts = [f"document {i} " * 50 for i in range(40)]
    path = tmp_path / "t.parquet"
    table = pa.table({"noise": [bytes([i]) * 999 for i in range(40)], "text": texts})
    pq.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False)
    units = split_units(str(path), text_size(str(path)), 1)
    assert len(units) == 4
    metadata = pq.ParquetFile(path).metadata
    content = bytearray(path.read_bytes())
    harmed = [metadata.row_group(i).column(0) for i in range(4)] + [metadata.row_group(2).column(1)]
    for chunk in harmed:
        at = chunk.data_page_offset
        content[at : at + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    bad = BadDocuments()
    parts = [list(read_unit(unit, Reading(), bad)) for unit in units]
    assert parts == [texts[:10], texts[10:20], [], texts[30:]]
    assert bad.kinds == {kinds.DAMAGED_FILE: 1}
    assert bad.places[0].startswith(f"{path} row 20: row group 2 is damaged")


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe", b"good too"])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "t.parquet")
    bad = BadDocuments()
    assert read(str(tmp_path / "t.parquet"), 9, bad) == ["good", "good too"]
    assert bad.places == [f"{tmp_path}/t.parquet row 1: not UTF-8"]


@pytest.mark.parametrize("harm", ["cut", "text", "empty"])
def test_damaged_parquet_is_counted(tmp_path: Path, harm: str) -> None:
    path = Path(parquet(tmp_path / "t.parquet", ["text"] * 99, 9, pa.string()))
    path.write_bytes({"cut": path.read_bytes()[:-9], "text": b"no table", "empty": b""}[harm])
    bad = BadDocuments()
    assert read(str(path), 99, bad, "body") == []
    assert bad.kinds == {kinds.EMPTY_FILE if harm == "empty" else kinds.DAMAGED_FILE: 1}


def test_parquet_columns_are_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", ["x"], 9, pa.string())
    with pytest.raises(UserError, match=r"no text column 'text'; its columns are \['n', 'body'\]"):
        text_size(path)
    with pytest.raises(UserError, match=r"'n' holds int64, not text"):
        text_size(path, "n")


# Hub data sets, by a local folder: the same way through `datasets` without the network.


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("hub")
    patch = pytest.MonkeyPatch()
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    for split, count in (("train", 50), ("test", 3)):
        lines = [json.dumps({"n": i, "body": f"{split} {i}"}) for i in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join([*lines, '{"n": 1, "body": null}']))
    yield folder
    patch.undo()


@pytest.mark.parametrize("unit_bytes", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize("split", [None, "test"])
def test_hub_units_give_every_document_once(
    hub_folder: Path, split: str | None, unit_bytes: int
) -> None:
    path = f"hub:{hub_folder}" + (f"?split={split}" if split else "")
    bad = BadDocuments()
    count = 3 if split else 50
    assert read(path, unit_bytes, bad, "body") == [f"{split or 'train'} {i}" for i in range(count)]
    assert bad.places == [f"{path} row {count}: no text in the column"]
    assert len(split_units(path, text_size(path, "body"), 1, "body")) == count + 1


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "no text column 'text'; its columns are"),
        ("?split=nope", r"cannot load 'hub:.*nope.*train"),
        ("?config=nope", "cannot load 'hub:.*nope"),
        ("?splt=train", r"expected hub:owner/name\?config=NAME&split=NAME"),
    ],
)
def test_hub_mistakes(hub_folder: Path, query: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        text_size(f"hub:{hub_folder}{query}")


def test_hub_name_that_is_not_there(hub_folder: Path) -> None:
    with pytest.raises(UserError, match="cannot load 'hub:no/such-data-set'"):
        text_size("hub:no/such-data-set")


def test_a_parquet_file_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    for name in [n for n in sys.modules if n.partition(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"ptft-lightning\[parquet\]"):
        text_size(str(tmp_path / "t.parquet"))
