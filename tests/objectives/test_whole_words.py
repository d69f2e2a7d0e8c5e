"""Whole-word masking: a word is hidden whole or not at all, in stores and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.kit import call, done, pretrain, read_audit, words
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.tokenizer_training import train_tokenizer
from ptft_lightning.objectives.masked import LAST, MaskedLM, whole_word_order
from ptft_lightning.terms import IGNORE

LENGTH = 64
LINE = "我们训练语言模型，学生学习人工智能。"
WORDS = ["我们", "训练", "语言", "模型", "学生", "学习", "人工智能"]


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    """Documents of one sentence each way round, one token a character; a store with word starts."""
    at = tmp_path_factory.mktemp("chinese")
    tokenizer = train_tokenizer(iter([LINE] * 5), "wordpiece", 300, False)
    (at / "text.txt").write_text("\n\n".join(LINE * (1 + i % 3) for i in range(200)))
    prepare_store(
        [str(at / "text.txt")], tokenizer, at / "s", validation_share=0.0, word_starts=True
    )
    return tokenizer, at / "s"


def make(
    tokenizer: Tokenizer, store: Path, layout: Any, rate: float = 0.15, epochs: int = 1
) -> dict[str, np.ndarray]:
    """All rows of a store, `epochs` times over, and what whole-word masking makes of them."""
    rows = Rows(TokenStore(store, "train"), layout, LENGTH, tokenizer.pad, 0, 4, True)
    numbers = np.arange(len(rows) * epochs)
    tokens, documents = rows.read(numbers)
    starts = rows.read_words(numbers)
    objective = MaskedLM(rate, whole_words=True)
    shown, targets = objective.make(tokens, documents, numbers, 0, tokenizer, starts)
    hidden = np.zeros(shown.shape, np.int64)
    used = targets["labels"] != IGNORE
    np.add.at(hidden, (np.nonzero(used)[0], targets["slots"][used]), 1)
    assert hidden.max() == 1
    found = {"tokens": tokens[:, :-1], "documents": documents[:, :-1], "starts": starts[:, :-1]}
    return found | {"shown": shown, "hidden": hidden == 1} | targets


@pytest.mark.parametrize("layout", ["blocks", "documents"])
def test_chinese_words_are_hidden_whole(chinese: tuple[Tokenizer, Path], layout: Any) -> None:
    """Over many samples: both characters of 模型 or neither; by the text, not by the bits."""
    tokenizer, store = chinese
    made = make(tokenizer, store, layout, epochs=4)
    hidden = whole = 0
    for row, document, chosen in zip(
        made["tokens"], made["documents"], made["hidden"], strict=True
    ):
        signs = [tokenizer.raw.id_to_token(i) for i in row.tolist()]
        text = "".join(sign if len(sign) == 1 else "|" for sign in signs)
        for word in WORDS:
            at = text.find(word)
            while at >= 0:
                mine = chosen[at : at + len(word)]
                assert mine.all() or not mine.any()
                assert len(set(document[at : at + len(word)].tolist())) == 1
                hidden += int(mine.all())
                whole += 1
                at = text.find(word, at + 1)
    assert whole > 3000
    assert hidden > 300
    share = made["hidden"].sum() / ((made["documents"] > 0) & ~special(made, tokenizer)).sum()
    assert share == pytest.approx(0.15, rel=0.07)


def special(made: dict[str, np.ndarray], tokenizer: Tokenizer) -> np.ndarray:
    return np.isin(made["tokens"], tokenizer.specials)


@pytest.mark.parametrize("layout", ["blocks", "documents"])
@pytest.mark.parametrize("rate", [0.05, 0.15, 0.4])
def test_special_tokens_and_labels(
    chinese: tuple[Tokenizer, Path], layout: Any, rate: float
) -> None:
    tokenizer, store = chinese
    made = make(tokenizer, store, layout, rate)
    assert made["slots"].shape == (len(made["tokens"]), max(1, round(rate * LENGTH)))
    assert not made["hidden"][special(made, tokenizer) | (made["documents"] == 0)].any()
    used = made["labels"] != IGNORE
    picked = np.take_along_axis(made["tokens"], made["slots"], 1)
    assert (made["labels"][used] == picked[used]).all()
    same = made["shown"] == made["tokens"]
    assert same[~made["hidden"]].all()
    fate = made["shown"][made["hidden"]] == tokenizer.mask
    assert fate.mean() == pytest.approx(0.8, abs=4.5 * (0.16 / fate.size) ** 0.5)


def test_depends_on_the_sample_alone(chinese: tuple[Tokenizer, Path]) -> None:
    tokenizer, store = chinese
    rows = Rows(TokenStore(store, "train"), "blocks", LENGTH, tokenizer.pad, 0, 4, True)
    objective = MaskedLM(whole_words=True)

    def of(numbers: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        tokens, documents = rows.read(numbers)
        return objective.make(tokens, documents, numbers, 3, tokenizer, rows.read_words(numbers))

    numbers = np.arange(12) + 10 * len(rows)
    shown, targets = of(numbers)
    for at in ([7], [11, 2], [0, 5, 4]):
        mine, its = of(numbers[at])
        assert (mine == shown[at]).all()
        assert all((its[name] == targets[name][at]).all() for name in targets)


# The choice, against one word after another in Python.


def greedy(order: np.ndarray, starts: np.ndarray, documents: np.ndarray, wanted: int) -> set[int]:
    """The positions taken in one row."""
    found: list[list[int]] = []
    for at in range(len(order)):
        if order[at] == LAST:
            continue
        new = at == 0 or order[at - 1] == LAST or documents[at] != documents[at - 1]
        if new or starts[at]:
            found.append([])
        found[-1].append(at)
    taken: set[int] = set()
    for word in sorted(found, key=lambda word: order[word[0]]):
        if len(taken) + len(word) <= wanted:
            taken |= set(word)
    return taken


@given(seed=st.integers(0, 10**6), wanted=st.integers(0, 12), share=st.floats(0, 1))
def test_words_are_taken_one_after_another(seed: int, wanted: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    order = rng.integers(0, 2**62, (5, 24)).astype(np.uint64)
    order[rng.random(order.shape) < rng.random() / 2] = LAST
    starts = (rng.random(order.shape) < share).astype(np.uint8)
    documents = np.sort(rng.integers(1, 4, order.shape), 1)
    found = whole_word_order(order, starts, documents, np.full(5, wanted))
    for row in range(5):
        taken = greedy(order[row], starts[row], documents[row], wanted)
        assert set(np.flatnonzero(found[row] != LAST).tolist()) == taken


def test_a_word_longer_than_the_places_is_never_split() -> None:
    order = np.arange(10, dtype=np.uint64)[None]
    starts = np.array([[1, 0, 0, 0, 0, 1, 1, 0, 1, 0]], np.uint8)
    found = whole_word_order(order, starts, np.ones((1, 10), int), np.array([4]))
    assert np.flatnonzero(found[0] != LAST).tolist() == [5, 6, 7]
    assert (whole_word_order(order, starts, np.ones((1, 10), int), np.array([0])) == LAST).all()


# Through the command line.


def test_fit_prepares_and_hides_whole_words(
    corpus_file: Path, wordpiece_path: Path, tmp_path: Path
) -> None:
    """A store made by fit; the run with whole words takes other targets than the run without."""
    runs = {}
    for whole in (True, False):
        options = pretrain(
            tmp_path / str(whole),
            tmp_path / "store",
            wordpiece_path,
            causal=False,
            data__files=[str(corpus_file)],
            data__word_starts=True,
            model__objective__whole_words=whole,
            trainer__max_steps=3,
        )
        done(words("fit", options))
        runs[whole] = read_audit(tmp_path / str(whole))
    assert TokenStore(tmp_path / "store", "train").manifest.segmenter
    assert runs[True] != runs[False]
    options["data.word_starts"] = False  # and the store says it by itself
    options["run_dir"] = str(tmp_path / "again")
    options["data.audit"] = str(tmp_path / "again" / "audit")
    options["model.objective.whole_words"] = True
    done(words("fit", options))
    assert read_audit(tmp_path / "again") == runs[True]


def test_word_starts_asked_of_a_store_without(store: Path, bpe_path: Path, tmp_path: Path) -> None:
    run = call(words("fit", pretrain(tmp_path, store, bpe_path, data__word_starts=True)))
    assert run.code == 2
    assert "was made without word starts" in run.errors[0]
