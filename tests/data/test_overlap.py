"""The contamination guard: planted copies are found, lightly edited ones too, clean sets raise no
alarm."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from ptft_lightning.data import overlap
from ptft_lightning.data.overlap import Needles, look_in, plain, scan
from ptft_lightning.data.plan import held_out
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer_training import train_tokenizer

LETTERS = "bcdfghklmnprstvz"
CHARACTERS = [chr(0x4E00 + i) for i in range(2000)]


def english(rng: random.Random) -> str:
    words = ["".join(rng.choices(LETTERS, k=3)) for _ in range(rng.randint(16, 30))]
    return " ".join(words).capitalize() + "."


def chinese(rng: random.Random) -> str:
    return "".join(rng.choices(CHARACTERS, k=rng.randint(18, 30))) + "。"


def one_changed(text: str, rng: random.Random, other: str) -> str:
    units = text.split() if " " in text else list(text)
    units[len(units) // 2] = other
    return (" " if " " in text else "").join(units)


def found(corpus: list[str], examples: list[list[str]]) -> list[overlap.Hit]:
    needles = Needles(examples)
    look_in(corpus, 0, 0, needles)
    return needles.hits(["train-0"])


@pytest.mark.parametrize("make", [english, chinese])
@pytest.mark.parametrize("edit", ["exact", "word", "case", "third"])
def test_planted_copies_are_found_and_nothing_else(make, edit):
    rng = random.Random(0)
    texts = [make(rng) for _ in range(100)]
    if edit == "third":
        texts = [text + make(rng) + make(rng) for text in texts]
    planted = rng.sample(range(100), 40)

    def edited(text: str) -> str:
        if edit == "word":
            return one_changed(text, rng, "xxx" if make is english else "龘")
        if edit == "case":
            return text.upper().replace(".", " !").replace("。", "！")
        return text.replace("。", ".").split(".")[0] if edit == "third" else text

    corpus = [f"{make(rng)}\n{edited(texts[i])}\n{make(rng)}" for i in planted]
    corpus += [make(rng) for _ in range(100)]
    hits = found(corpus, [[text] for text in texts])
    flagged = {hit.example for hit in hits}
    assert not flagged - set(planted)
    least = {"exact": 40, "case": 40, "word": 36, "third": 32}[edit]
    assert len(flagged) >= least
    for hit in hits:
        assert planted[hit.document] == hit.example


def test_a_short_text_must_be_a_sentence():
    corpus = ["He said so. The cat sat down here! Then it slept.", "all of the cat sat down there"]
    short = ["the cat, sat down here", "the cat sat down", "Then it", "it then slept well"]
    hits = found(corpus, [[text] for text in short])
    assert [(hit.example, hit.document, hit.shared) for hit in hits] == [
        (0, 0, "the cat sat down here")
    ]
    assert Needles([["one two three"], [""], ["a b", "c d"]]).unjudged == 2


def test_one_stock_phrase_is_no_copy():
    phrase = "one of the best films of the year"
    text = f"{phrase} and i will not hear a word against it from you"
    assert found([f"It was {phrase} they said"], [[text]]) == []
    assert len(found([f"It was {phrase} and i they said"], [[text]])) == 1


def test_ngrams_do_not_reach_over_documents():
    words = ["a1", "b2", "c3", "d4", "e5", "f6", "g7", "h8", "i9", "j10", "k11", "l12"]
    text = " ".join(words)
    assert found([" ".join(words[:6]), " ".join(words[6:])], [[text]]) == []
    assert len(found(["", text], [[text]])) == 1


def test_both_texts_of_a_pair_count():
    rng = random.Random(1)
    first, second = english(rng), english(rng)
    (hit,) = found([second], [[first, second]])
    assert hit.covered == pytest.approx(len(second.split()) / len((first + second).split()), 0.2)


def test_case_accents_width_and_punctuation_do_not_matter():
    assert plain("Été ＡＢＣ，İ") == "ete abc,i"
    assert overlap.UNITS.findall(plain("L'Été à 3,5 模型。")) == (
        ["l", "ete", "a", "3", "5", "模", "型", "。"]
    )


def test_hashes_are_those_of_a_plain_polynomial():
    rng = np.random.default_rng(0)
    units = rng.integers(2, 2**63, 40).astype(np.uint64)
    got = overlap.grams(units, np.arange(33), 8)
    for start in range(33):
        value = 0
        for unit in units[start : start + 8].tolist():
            value = (value * int(overlap.BASE) + unit) % 2**64
        assert int(got[start]) == value ^ (value >> 29)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_store_is_read_back_and_places_are_right(kind, tmp_path: Path, monkeypatch):
    """Whatever the tokenizer does to case and spaces, and however the store is cut."""
    monkeypatch.setattr(overlap, "BLOCK", 500)
    rng = random.Random(2)
    documents = [f"{english(rng)} {chinese(rng)}" for _ in range(200)]
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n".join(documents))
    tokenizer = train_tokenizer(iter(documents), kind, 5000, lowercase=kind == "wordpiece")
    prepare_store([str(file)], tokenizer, tmp_path / "s", validation_share=0.2, unit_bytes=4096)
    store = TokenStore(tmp_path / "s", "train")
    examples = [[documents[i]] for i in range(0, 200, 3)] + [[english(rng)] for _ in range(50)]
    needles = Needles(examples)
    scan(store, tokenizer, needles)
    hits = needles.hits([shard.name for shard in store.shards])
    names = [shard.name for shard in store.shards]
    copied = [i for i in range(0, 200, 3) if not held_out(documents[i], 0.2)]
    assert [3 * hit.example for hit in hits] == copied  # those trained on, and no others
    for hit in hits:
        shard = names.index(hit.shard)
        ends = [0, *store.ends(shard).tolist()]
        ids = store.tokens(shard)[ends[hit.document] : ends[hit.document + 1]].tolist()
        wanted = overlap.UNITS.findall(plain(documents[3 * hit.example]))
        assert overlap.UNITS.findall(plain(tokenizer.decode(ids))) == wanted
        assert hit.covered == 1
