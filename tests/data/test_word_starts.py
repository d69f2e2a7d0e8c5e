"""Where words start: by hand, in stores, on the disk."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rjieba
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.commands.prepare import prepare as prepare_command
from ptft_lightning.data.manifest import read_manifest
from ptft_lightning.data.marks import encode_marked
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.tokenizer_training import train_tokenizer
from ptft_lightning.errors import UserError

SENTENCES = [
    "我们训练语言模型。",
    "Language models learn from text, slowly; 语言模型 learn too.",
    "unbelievable",
]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    """Tokenizers that cut words into tokens; the BPE has bytes alone, no token reaches across."""
    kinds: tuple[Any, ...] = ("bpe", "wordpiece", "unigram")
    sizes = {"bpe": 260, "wordpiece": 60, "unigram": 400}
    return {kind: train_tokenizer(iter(SENTENCES * 9), kind, sizes[kind], False) for kind in kinds}


def encode_words(tokenizer: Tokenizer, texts: list[str]) -> list[tuple[list[int], np.ndarray]]:
    """The ids of each text and which of the framed ones begin a word."""
    return [(ids, marks["words"]) for ids, marks in encode_marked(tokenizer, texts, ("words",))]


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text of each word, without spaces around it, from the tokens' own spans."""
    ((ids, starts),) = encode_words(tokenizer, [text])
    assert starts[0]
    assert starts[-1]  # begin and end
    starts = starts[1:-1]
    assert ids == tokenizer.encode([text])[0]
    assert len(starts) == len(ids)
    spans = tokenizer.encode_spans([text])[0][1]
    firsts = np.flatnonzero(starts)
    lasts = np.append(firsts[1:], len(ids)) - 1
    found = [text[spans[a, 0] : spans[b, 1]].strip(" ") for a, b in zip(firsts, lasts, strict=True)]
    return [word for word in found if word]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_words_by_hand(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    assert words_of(tokenizer, "我们训练语言模型。") == ["我们", "训练", "语言", "模型", "。"]
    mixed = words_of(tokenizer, "Language 语言模型 learn too.")
    assert mixed == ["Language", "语言", "模型", "learn", "too", "."]
    assert words_of(tokenizer, "unbelievable text") == ["unbelievable", "text"]


def test_words_are_of_several_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    """Else the test above says nothing."""
    for tokenizer in tokenizers.values():
        assert len(tokenizer.encode(["semantic 训练语言"])[0]) > 3


def test_wordpiece_words_are_those_of_the_hashes(tokenizers: dict[str, Tokenizer]) -> None:
    """Without Chinese a word starts where no ## stands."""
    tokenizer = tokenizers["wordpiece"]
    text = "Language models, unbelievably slow; semantics and 123 Zebras!"
    ((ids, starts),) = encode_words(tokenizer, [text])
    tokens = [tokenizer.raw.id_to_token(i) for i in ids]
    assert any(token.startswith("##") for token in tokens)
    assert starts[1:-1].tolist() == [not token.startswith("##") for token in tokens]


@given(text=st.text(st.sampled_from("语言模型训练，。 ab\n🙂한ねé"), max_size=40))
def test_chinese_tokens_never_cross_into_the_last_word(
    tokenizers: dict[str, Tokenizer], text: str
) -> None:
    """One flag for each token; where rjieba begins a word at a character that begins a token and
    follows another Chinese one, a word starts."""
    for tokenizer in tokenizers.values():
        ((ids, starts),) = encode_words(tokenizer, [text])
        assert ids == tokenizer.encode([text])[0]
        assert len(starts) == len(ids) + 2
        begins = np.cumsum([0, *map(len, rjieba.cut(text))]).tolist()
        spans = tokenizer.encode_spans([text])[0][1]
        for at in range(1, len(ids)):
            here, before = int(spans[at, 0]), int(spans[at - 1, 0])
            both = text[here : here + 1] in "语言模型训练" and text[before] in "语言模型训练"
            if both and here != before:
                between = any(before < b <= here for b in begins)
                assert starts[1 + at] == between


def test_nothing_to_encode(tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        assert [s.tolist() for _, s in encode_words(tokenizer, ["", ""])] == [[True, True]] * 2


# Stores.


@pytest.fixture(scope="module")
def with_words(corpus_file: Path, bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("words")
    prepare_store(
        [str(corpus_file)],
        bpe,
        directory,
        validation_share=0.1,
        unit_bytes=8192,
        word_starts=True,
    )
    return directory


def test_store_has_a_bit_for_each_token(
    with_words: Path, store: Path, bpe: Tokenizer, corpus_documents: list[str]
) -> None:
    """Read with numpy alone; tokens and ends are those of a store without."""
    expected = {
        tuple(bpe.frame(ids)): starts.tolist()
        for ids, starts in encode_words(bpe, corpus_documents)
    }
    seen = 0
    for split in ("train", "validation"):
        for shard in json.loads((with_words / "manifest.json").read_text())[split]:
            files = [f"{shard['name']}.{kind}.npy" for kind in ("tokens", "ends")]
            assert all((with_words / f).read_bytes() == (store / f).read_bytes() for f in files)
            tokens, ends = (np.load(with_words / f) for f in files)
            packed = np.load(with_words / f"{shard['name']}.words.npy")
            bits = np.unpackbits(packed, count=len(tokens)).astype(bool).tolist()
            for a, b in zip([0, *ends.tolist()], ends.tolist(), strict=False):
                assert bits[a:b] == expected[tuple(tokens[a:b].tolist())]
                seen += 1
    assert seen == len(corpus_documents)


def test_without_the_option_there_is_no_trace_of_it(store: Path, with_words: Path) -> None:
    assert not [p for p in store.iterdir() if ".words." in p.name]
    assert read_manifest(store).segmenter is None
    assert read_manifest(with_words).segmenter.startswith("rjieba ")
    assert read_manifest(store).fingerprint != read_manifest(with_words).fingerprint


@pytest.mark.parametrize("layout", ["blocks", "documents"])
def test_rows_give_the_words_of_their_tokens(with_words: Path, bpe: Tokenizer, layout: Any) -> None:
    opened = TokenStore(with_words, "train")
    rows = Rows(opened, layout, 48, bpe.pad, seed=0, window=3, shuffle=True)
    tokens, documents = rows.read(np.arange(len(rows)))
    words = rows.read_words(np.arange(len(rows)))
    assert words.shape == tokens.shape
    assert (words[documents == 0] == 1).all()
    assert (words[np.isin(tokens, [bpe.begin, bpe.end])] == 1).all()
    assert 0.3 < words[documents > 0].mean() < 0.9
    if layout == "documents":
        bits = [
            np.unpackbits(np.load(with_words / f"{s.name}.words.npy"), count=s.tokens)
            for s in opened.shards
        ]
        assert words[documents > 0].sum() == sum(int(b.sum()) for b in bits)


def test_changed_words_are_found(with_words: Path, tmp_path: Path) -> None:
    target = tmp_path / "s"
    shutil.copytree(with_words, target)
    store = TokenStore(target, "train")
    store.verify()
    file = target / f"{store.shards[0].name}.words.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    with pytest.raises(UserError, match="does not match its checksum"):
        TokenStore(target, "train").verify()
    np.save(file, np.zeros(3, np.uint8))
    with pytest.raises(UserError, match=r"words\.npy' has 3 entries"):
        TokenStore(target, "train").words(0)


def test_killed_prepare_goes_on(
    corpus_file: Path, bpe: Tokenizer, with_words: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def prepare() -> None:
        prepare_store(
            [str(corpus_file)],
            bpe,
            tmp_path / "s",
            validation_share=0.1,
            unit_bytes=8192,
            word_starts=True,
        )

    replace, writes = os.replace, 0

    def counted(source: Any, target: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == 11:  # in the middle of the second shard
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "replace", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare()
    prepare()
    names = {p.name for p in with_words.iterdir()}
    assert {p.name for p in (tmp_path / "s").iterdir() if p.suffix != ".tmp"} == names
    assert all((tmp_path / "s" / n).read_bytes() == (with_words / n).read_bytes() for n in names)


@pytest.mark.parametrize("begun", [True, False])
def test_one_directory_is_with_or_without(
    corpus_file: Path, bpe: Tokenizer, tmp_path: Path, begun: bool
) -> None:
    prepare_store([str(corpus_file)], bpe, tmp_path, word_starts=begun)
    with pytest.raises(UserError, match=r"other settings \(segmenter .* -> "):
        prepare_store([str(corpus_file)], bpe, tmp_path, word_starts=not begun)


def test_missing_rjieba_names_the_extra(
    corpus_file: Path, bpe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(UserError, match=r"ptft-lightning\[zh\]"):
        prepare_command([str(corpus_file)], str(bpe_path), str(tmp_path / "s"), word_starts=True)
    assert not (tmp_path / "s").exists()
