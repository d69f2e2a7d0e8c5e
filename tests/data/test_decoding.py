"""Encodings: told apart from a sample, decoded per document, byte order marks dropped."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptft_lightning.data.bad_documents import BadDocuments
from ptft_lightning.data.decoding import Encoding, check_encoding, fit_text
from ptft_lightning.data.documents import Reading, read_unit, split_units, text_size
from ptft_lightning.errors import UserError

CHINESE = "语言模型先在大量文本上预训练，再在少量标注数据上微调。河流、山脉与灯光。\n" * 3
FRENCH = "Où êtes-vous allé, après l'été ? Déjà très loin, à la forêt.\n" * 3
ENGLISH = "plain words, line after line\n" * 40


@pytest.mark.parametrize(
    ("written", "given_as", "hint"),
    [
        ("gb18030", "utf-8", "is not UTF-8, looks like GB18030"),
        ("gb18030", "utf-8-sig", "is not UTF-8, looks like GB18030"),
        ("utf-8", "gb18030", "is not GB18030, looks like UTF-8"),
        ("utf-8-sig", "gb18030", "is not GB18030, looks like UTF-8"),
        ("utf-16", "utf-8", "is not UTF-8, looks like UTF-16"),
        ("utf-16", "gb18030", "is not GB18030, looks like UTF-16"),
        ("big5", "utf-8", "is not UTF-8, it may be no text"),
    ],
)
def test_another_encoding_is_named(
    tmp_path: Path, written: str, given_as: Encoding, hint: str
) -> None:
    text = CHINESE if written != "big5" else "語言模型與電腦，這裡沒有簡體字。龍龜\n" * 3
    (tmp_path / "t.txt").write_bytes(text.encode(written))
    with pytest.raises(UserError, match=hint) as error:
        check_encoding(str(tmp_path / "t.txt"), given_as)
    for part in (f"'{tmp_path}/t.txt'", "--data.encoding", "utf-8, utf-8-sig, gb18030"):
        assert part in str(error.value)


def test_latin_1_does_not_look_like_chinese(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(FRENCH.encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8, it may be no text"):
        check_encoding(str(tmp_path / "t.txt"), "utf-8")


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (CHINESE.encode(), "utf-8"),
        (CHINESE.encode("utf-8-sig"), "utf-8"),
        (CHINESE.encode("gb18030"), "gb18030"),
        (CHINESE.encode() * 20_000, "utf-8"),  # the sample cuts through a character
        (CHINESE.encode("gb18030") * 20_000, "gb18030"),
        (ENGLISH.encode() + FRENCH.encode("latin-1"), "utf-8"),  # a few bad lines are counted
        (ENGLISH.encode(), "gb18030"),
        ("联通".encode("gb18030"), "gb18030"),  # by chance valid UTF-8
        (FRENCH.encode() + CHINESE.encode("gb18030"), "utf-8"),
        (b"", "utf-8"),
    ],
)
def test_what_is_let_through(tmp_path: Path, content: bytes, encoding: Encoding) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    check_encoding(str(tmp_path / "t.txt"), encoding)


blocks = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=9)


@settings(max_examples=50)
@given(texts=st.lists(blocks, max_size=9), unit_bytes=st.integers(1, 40), mark=st.booleans())
def test_gb18030_units_give_every_document_once(
    tmp_path: Path, texts: list[str], unit_bytes: int, mark: bool
) -> None:
    """Any character of Unicode, though newlines are looked for byte by byte."""
    texts = [f"x{text}\r\n第二行" for text in texts]
    path = tmp_path / "t.txt"
    path.write_bytes((("\ufeff" if mark else "") + "\r\n\r\n".join(texts)).encode("gb18030"))
    units = split_units(str(path), text_size(str(path)), unit_bytes)
    bad = BadDocuments()
    read = [t for unit in units for t in read_unit(unit, Reading(encoding="gb18030"), bad)]
    assert read == texts
    assert bad.kinds == ({} if path.stat().st_size else {"empty file": 1})


def test_gb18030_json_with_backslash_as_a_second_byte(tmp_path: Path) -> None:
    text = "乗俓誠" + "".join(map(chr, range(0x4E00, 0x9FA5, 7)))
    assert b"\\" in text.encode("gb18030")
    (tmp_path / "t.jsonl").write_bytes(f'{{"text": "{text}"}}\n'.encode("gb18030"))
    (unit,) = split_units(str(tmp_path / "t.jsonl"), text_size(str(tmp_path / "t.jsonl")), 1 << 20)
    bad = BadDocuments()
    assert list(read_unit(unit, Reading(encoding="gb18030"), bad)) == [text]
    assert bad.count == 0


def test_bad_bytes_are_placed(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("好\n\n".encode("gb18030") + b"\x81\x20\n\nend")
    (unit,) = split_units(str(tmp_path / "t.txt"), text_size(str(tmp_path / "t.txt")), 1 << 20)
    bad = BadDocuments()
    assert list(read_unit(unit, Reading(encoding="gb18030"), bad)) == ["好", "end"]
    assert bad.kinds == {"bad bytes": 1}
    assert bad.places[0].startswith(f"{tmp_path}/t.txt at byte 4: not GB18030")


def test_what_is_no_document() -> None:
    bad = BadDocuments()
    texts = ["text", "\u3000", "", " \n", "a\0b", "\ud800"]
    kept = [t for t in texts if fit_text(t, "here", bad) is not None]
    assert kept == ["text"]
    assert bad.kinds == {"NUL bytes": 1, "bad bytes": 1}
