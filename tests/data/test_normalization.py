"""Normalisation: opt-in, carried by the tokenizer's text, spans that point into the original."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opencc import OpenCC
from tokenizers import normalizers

from ptft_lightning.data import normalization
from ptft_lightning.data.normalization import normalize, origins
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.tokenizer_training import train_tokenizer
from ptft_lightning.errors import UserError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
mixed = st.lists(
    st.sampled_from(
        ["漢", "字", "模型", "ﬁ", "é", "e\u0301", "Ａ", "㍿", " ", "a", "\n", "🙂", "½"]
    )
).map("".join)
STEPS: tuple[list[Any], ...] = ([], ["nfkc"], ["t2s"], ["nfkc", "t2s"], ["t2s", "nfkc"])


@pytest.fixture(scope="module")
def learned(corpus_documents: list[str]) -> dict[str, Tokenizer]:
    """A byte-level tokenizer for each list of steps."""
    more = [*corpus_documents, "漢字 汉字 ﬁ fi Ａ A " * 50]
    return {",".join(s): train_tokenizer(iter(more), "bpe", 500, False, s) for s in STEPS}


def test_without_steps_nothing_is_changed(learned: dict[str, Tokenizer], bpe: Tokenizer) -> None:
    assert "ptft_lightning" not in learned[""].text
    assert learned[""].decode(learned[""].encode(["漢字 ﬁ"])[0]) == "漢字 ﬁ"
    assert len({t.fingerprint for t in learned.values()}) == len(STEPS)
    assert [t.round_trips for t in learned.values()] == [True, False, False, False, False]


@pytest.mark.parametrize("steps", STEPS[1:], ids=",".join)
@given(text=mixed)
def test_the_same_as_normalising_first(
    learned: dict[str, Tokenizer], steps: list[str], text: str
) -> None:
    """Against OpenCC and the `tokenizers` library applied by hand, without any step."""
    by_hand = text
    for step in steps:
        convert = OpenCC("t2s").convert if step == "t2s" else normalizers.NFKC().normalize_str
        by_hand = convert(by_hand)
    tokenizer = learned[",".join(steps)]
    assert tokenizer.decode(tokenizer.encode([text])[0]) == by_hand


def test_order_decides() -> None:
    """A wide form of what t2s knows only narrow: U+2F00 and its like become ideographs first."""
    assert normalize("⾞", ["nfkc", "t2s"]) == "车"
    assert normalize("⾞", ["t2s", "nfkc"]) == "車"


@pytest.mark.parametrize("again", ["pickle", "save and load"])
def test_copies_normalise_too(learned: dict[str, Tokenizer], tmp_path: Path, again: str) -> None:
    tokenizer = learned["nfkc,t2s"]
    tokenizer.save(tmp_path)
    copied = (
        pickle.loads(pickle.dumps(tokenizer)) if again == "pickle" else Tokenizer.load(tmp_path)
    )
    assert copied.fingerprint == tokenizer.fingerprint
    assert copied.encode(["漢字Ａ"]) == tokenizer.encode(["汉字A"]) == tokenizer.encode(["漢字Ａ"])


# Spans.


@given(text=texts)
@example(text="")
@example(text="a  b\n模型 🙂👩‍👩‍👧 [MASK]")
def test_spans_without_normalisation(bpe: Tokenizer, text: str) -> None:
    """The same ids; spans ascend, cover the text, and whole-character tokens encode again."""
    (ids, spans) = bpe.encode_spans([text])[0]
    assert ids == bpe.encode([text])[0]
    assert spans.shape == (len(ids), 2)
    assert (np.diff(spans[:, 0]) >= 0).all()
    covered = {at for start, end in spans.tolist() for at in range(start, end)}
    assert covered == set(range(len(text)))
    for i, (start, end) in zip(ids, spans.tolist(), strict=True):
        piece = bpe.decode([i])
        if "\ufffd" not in piece and "\ufffd" not in text:
            assert text[start:end].startswith(piece)  # combining marks may be added


@pytest.mark.parametrize("steps", STEPS, ids=",".join)
@given(text=mixed)
def test_spans_point_to_what_was_written(
    learned: dict[str, Tokenizer], steps: list[str], text: str
) -> None:
    """Every token, normalised by itself, is in what its span of the original becomes."""
    tokenizer = learned[",".join(steps)]
    ids, spans = tokenizer.encode_spans([text])[0]
    assert ids == tokenizer.encode([text])[0]
    for i, (start, end) in zip(ids, spans.tolist(), strict=True):
        piece = tokenizer.decode([i])
        assert 0 <= start < end <= len(text)
        if "\ufffd" not in piece:
            assert piece in normalize(text[start:end], steps)


@pytest.mark.parametrize(
    ("steps", "text", "spans"),
    [
        (["nfkc"], "ﬁＡ", [(0, 1), (0, 1), (1, 2)]),
        (["nfkc"], "e\u0301x", [(0, 1), (2, 3)]),
        (["t2s"], "漢字", [(0, 1), (1, 2)]),
        (["nfkc", "t2s"], "ﬁ漢㍿", [(0, 1), (0, 1), (1, 2), *[(2, 3)] * 4]),
        ([], "ab", [(0, 1), (1, 2)]),
        (["nfkc", "t2s"], "", []),
    ],
)
def test_origins_by_hand(steps: list[str], text: str, spans: list[tuple[int, int]]) -> None:
    assert [*map(tuple, origins(text, steps).tolist())] == spans


def test_phrases_that_change_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCC's own dictionary has none; with one that has, the changed stretch shares its span."""
    monkeypatch.setattr(
        normalization, "_convert", lambda step: lambda text: text.replace("XYZ", "uv")
    )
    assert origins("aXYZb", ["t2s"]).tolist() == [[0, 1], [1, 4], [1, 4], [4, 5]]


def test_composed_letters_keep_their_marks(learned: dict[str, Tokenizer]) -> None:
    ids, spans = learned["nfkc"].encode_spans(["e\u0301"])[0]
    assert {tuple(span) for span in spans.tolist()} == {(0, 2)}
    assert learned["nfkc"].decode(ids) == "é"


# Mistakes.


@pytest.mark.parametrize(("steps", "named"), [(["nfcx"], "'nfcx'"), (["t2s", "t2s"], "once")])
def test_wrong_steps_are_refused(steps: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        train_tokenizer(iter(["a"]), "bpe", 300, False, steps)


def test_a_file_with_unknown_steps_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    text = bpe.text.replace("{", '{"ptft_lightning": {"first": ["rot13"]},', 1)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json.*unknown normalisation 'rot13'"):
        Tokenizer.load(tmp_path)


def test_missing_opencc_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opencc", None)
    normalization._convert.cache_clear()
    with pytest.raises(UserError, match=r"ptft-lightning\[zh\]"):
        normalize("漢", ["t2s"])
