"""Where sentences start: by hand, in English and Chinese, in stores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencex
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.commands.prepare import prepare as prepare_command
from ptft_lightning.data.manifest import read_manifest
from ptft_lightning.data.marks import encode_marked
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.tokenizer_training import train_tokenizer
from ptft_lightning.errors import UserError

TEXTS = [
    'Dr. Smith paid $3.50 to J. K. Rowling. "Is that all?" she asked. Yes!\nA new line.',
    "他说：“我走了。”然后离开了。你好吗？很好！\n第二段（见注1。）结束。全文1.5倍。",
    "Language models learn. 语言模型也学习。  They learn slowly.\n\n\nThe end.",
]
SENTENCES = [
    ["Dr. Smith paid $3.50 to J. K. Rowling.", '"Is that all?" she asked.', "Yes!", "A new line."],
    [
        *("他说：“我走了。”", "然后离开了。", "你好吗？", "很好！"),
        *("第二段（见注1。）结束。", "全文1.5倍。"),
    ],
    ["Language models learn.", "语言模型也学习。", "They learn slowly.", "The end."],
]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    kinds: tuple[Any, ...] = ("bpe", "wordpiece", "unigram")
    sizes = {"bpe": 260, "wordpiece": 200, "unigram": 400}
    return {kind: train_tokenizer(iter(TEXTS * 9), kind, sizes[kind], False) for kind in kinds}


def sentences_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text of each sentence from the tokens' own spans."""
    ((ids, marks),) = encode_marked(tokenizer, [text], ("sentences",))
    starts = marks["sentences"]
    assert len(starts) == len(tokenizer.frame(ids))
    assert not starts[0]
    assert not starts[-1]  # begin and end
    assert ids == tokenizer.encode([text])[0]
    spans = tokenizer.encode_spans([text])[0][1]
    firsts = np.flatnonzero(starts[1:-1])
    lasts = np.append(firsts[1:], len(ids))[: len(firsts)] - 1
    return [text[spans[a, 0] : spans[b, 1]].strip() for a, b in zip(firsts, lasts, strict=True)]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
@pytest.mark.parametrize(("text", "wanted"), [*zip(TEXTS, SENTENCES, strict=True)])
def test_sentences_by_hand(tokenizers, kind, text, wanted):
    assert sentences_of(tokenizers[kind], text) == wanted


@given(st.text(alphabet='ab.!?。！？ \n\u3000\u00a0A."”)🙂é', max_size=60))
def test_any_text_is_cut_into_all_of_its_characters(tokenizers, text):
    """Also where white space beyond ASCII stands after an initial, at which sentencex panics."""
    found = sentences_of(tokenizers["bpe"], text)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_where_the_splitter_fails_lines_are_sentences(tokenizers, monkeypatch):
    split = sentencex.get_sentence_boundaries

    def panic(rules: str, text: str) -> Any:
        return split(rules, "J\u3000.")  # 1.0.32 panics here

    monkeypatch.setattr(sentencex, "get_sentence_boundaries", panic)
    assert sentences_of(tokenizers["bpe"], "One. Two.\n\n three\nFour") == [
        "One. Two.",
        "three",
        "Four",
    ]


def test_words_and_sentences_in_one_store(
    corpus_file: Path, corpus_documents: list[str], bpe: Tokenizer, tmp_path: Path
) -> None:
    prepare_store(
        [str(corpus_file)],
        bpe,
        tmp_path,
        validation_share=0.0,
        unit_bytes=8192,
        word_starts=True,
        sentences=True,
    )
    store = TokenStore(tmp_path, "train")
    store.verify()
    assert store.manifest.arrays == ("tokens", "ends", "words", "sentences")
    assert store.manifest.plan["splitter"].startswith("sentencex ")
    found: dict[tuple[int, ...], tuple[list[int], list[int]]] = {}
    for number, shard in enumerate(store.shards):
        words, sentences = store.words(number), store.marks(number, "sentences")
        ends = np.asarray(store.ends(number)).tolist()
        for start, end in zip([0, *ends], ends, strict=False):
            ids = tuple(store.tokens(number)[start:end].tolist())
            found[ids] = (words[start:end].tolist(), sentences[start:end].tolist())
        assert ends[-1] == shard.tokens
    for ids, marks in encode_marked(bpe, corpus_documents, ("words", "sentences")):
        wanted = marks["words"].tolist(), marks["sentences"].tolist()
        assert found[tuple(bpe.frame(ids))] == wanted


def test_one_directory_is_with_or_without(corpus_file, bpe, tmp_path):
    prepare_store([str(corpus_file)], bpe, tmp_path, sentences=True)
    with pytest.raises(UserError, match=r"other settings \(splitter .* -> "):
        prepare_store([str(corpus_file)], bpe, tmp_path)
    assert read_manifest(tmp_path).segmenter is None


def test_missing_sentencex_names_the_extra(corpus_file, bpe_path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with pytest.raises(UserError, match=r"ptft-lightning\[sentences\]"):
        prepare_command([str(corpus_file)], str(bpe_path), str(tmp_path / "s"), sentences=True)
    assert not (tmp_path / "s").exists()


def test_a_tokenizer_that_cannot_frame_pairs(corpus_file, bpe, tmp_path):
    without = Tokenizer(bpe.text.replace("[CLS]", "[XYZ]"))
    assert without.begin is None
    with pytest.raises(UserError, match="between a begin and an end token"):
        prepare_store([str(corpus_file)], without, tmp_path / "s", sentences=True)
