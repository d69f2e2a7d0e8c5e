"""Pairs of sentences: how they are packed, and what stands in each row."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.commands.prepare import prepare as prepare_command
from ptft_lightning.data.pair_packing import FRAME, find_sentences, pack_pairs
from ptft_lightning.data.pair_rows import PairRows
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer

LENGTH = 64


def framed(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Flags and ends of documents given as the sizes of their sentences."""
    flags: list[bool] = []
    ends = []
    for sizes in documents:
        flags.append(False)
        for size in sizes:
            flags += [True] + [False] * (size - 1)
        flags.append(False)
        ends.append(len(flags))
    return np.array(flags, np.bool_), np.array(ends, np.int64)


SIZES = st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=12), min_size=1, max_size=12)


@given(SIZES, st.integers(5, 80))
def test_rows_of_any_documents(documents, length):
    flags, ends = framed(documents)
    runs = pack_pairs(flags, ends, length)
    begins, stops, document = runs.sentences
    half = (length - FRAME) // 2
    assert (stops - begins <= half).all()
    # The parts of a sentence are the sentence, and differ by a token at most.
    cuts = [-(-size // half) for sizes in documents for size in sizes]
    whole = [size for sizes in documents for size in sizes]
    parts = np.split(stops - begins, np.cumsum(cuts)[:-1])
    assert [int(part.sum()) for part in parts] == whole
    assert all(part.max() - part.min() <= 1 for part in parts)
    # Runs are of one document, of two sentences or more, and fit.
    assert (runs.stop - runs.first >= 2).all()
    assert (document[runs.first] == document[runs.stop - 1]).all()
    sizes = stops[runs.stop - 1] - begins[runs.first] + FRAME
    for first, last in zip(runs.rows, runs.rows[1:], strict=False):
        assert 0 < sizes[first:last].sum() <= length
    # Every sentence of a document of several is in a run; few are in two.
    count = Counter(s for a, b in zip(runs.first, runs.stop, strict=True) for s in range(a, b))
    single = [s for s, d in enumerate(document.tolist()) if (document == d).sum() == 1]
    assert runs.alone == len(single)
    assert sorted(count) == sorted(set(range(len(document))) - set(single))
    assert max(count.values(), default=1) <= 2
    twice = sum(c == 2 for c in count.values())
    assert twice <= len(ends)


def test_a_sentence_that_is_left_over_takes_the_one_before_along():
    runs = pack_pairs(*framed([[4, 4, 4, 4]]), 15)  # three fit
    assert sorted(zip(runs.first.tolist(), runs.stop.tolist(), strict=True)) == [(0, 2), (2, 4)]
    runs = pack_pairs(*framed([[6, 6, 6]]), 15)  # two fit
    assert sorted(zip(runs.first.tolist(), runs.stop.tolist(), strict=True)) == [(0, 2), (1, 3)]


def test_sentences_of_framed_documents():
    found = find_sentences(*framed([[3, 2], [7], [1]]), 11)
    assert found.begins.tolist() == [1, 4, 8, 11, 17]
    assert found.stops.tolist() == [4, 6, 11, 15, 18]
    assert found.document.tolist() == [0, 0, 1, 1, 2]


# Rows of a store.


def make_texts(count: int = 240) -> list[str]:
    """English and Chinese documents, each sentence of which has a number that no other has."""
    rng, number = random.Random(3), 0
    texts = []
    for at in range(count):
        sentences = []
        for _ in range(rng.choice([1, 2, 3, 5, 9])):
            number += 1
            if at % 2:
                words = "".join(rng.choices("水火山石田土日月人口", k=rng.randint(2, 9)))
                sentences.append(f"{words}{number}号。")
            else:
                words = " ".join(rng.choices(["river", "hill", "stone", "wood", "field"], k=3))
                sentences.append(f"The {words} number {number} stands.")
        texts.append(("" if at % 2 else " ").join(sentences))
    return texts


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return make_texts()


@pytest.fixture(scope="module")
def file(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pair_store(file: Path, bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("pairs")
    given = {"validation_share": 0.0, "unit_bytes": 6000, "word_starts": True, "sentences": True}
    prepare_store([str(file)], bpe, at, **given)
    assert len(TokenStore(at, "train").shards) > 2
    return at


def rows_of(store: Path, tokenizer: Tokenizer, kind: Any, length: int = LENGTH) -> PairRows:
    return PairRows(TokenStore(store, "train"), kind, length, tokenizer, 7, 2, shuffle=True)


def pairs_of(rows: PairRows, numbers: np.ndarray) -> list[tuple[list[int], list[int], int]]:
    """A, B and whether they are a negative pair, of all rows; how rows are laid out is checked."""
    begin, end = rows.tokenizer.begin, rows.tokenizer.end
    found = []
    tokens, documents, segments, labels = rows.read_pairs(numbers)
    for at in range(len(numbers)):
        assert documents[at, -1] == 0  # the column of a following token
        used = int((documents[at] > 0).sum())
        assert (documents[at, used:] == 0).all()
        assert (tokens[at, used:] == rows.pad).all()
        assert np.count_nonzero(labels[at]) == documents[at].max()
        for pair in range(1, int(documents[at].max()) + 1):
            places = np.flatnonzero(documents[at] == pair)
            ids, kinds = tokens[at, places].tolist(), segments[at, places].tolist()
            middle = kinds.index(1)
            assert kinds == [0] * middle + [1] * (len(kinds) - middle)
            assert (ids[0], ids[middle - 1], ids[-1]) == (begin, end, end)
            label = int(labels[at, places[0]])
            assert label in (1, 2)
            found.append((ids[1 : middle - 1], ids[middle:-1], label - 1))
    return found


@pytest.mark.parametrize("kind", ["next", "order"])
def test_positives_follow_and_negatives_do_not(pair_store, bpe, texts, kind):
    rows = rows_of(pair_store, bpe, kind)
    encoded = bpe.encode(texts)
    # Both halves are stretches of documents.
    joined = [(" ".join(map(str, ids)) + " ") for ids in encoded]

    def where(half: list[int]) -> list[tuple[int, int]]:
        text = " ".join(map(str, half)) + " "
        hits = []
        for number, document in enumerate(joined):
            at = (" " + document).find(" " + text)
            if at >= 0:
                hits.append((number, document[:at].count(" ")))
        return hits

    def follows(first: list[int], second: list[int]) -> bool:
        after = {(document, at + len(first)) for document, at in where(first)}
        return bool(after & {*where(second)})

    pairs = pairs_of(rows, np.arange(2 * len(rows)))
    clear = 0
    for first, second, negative in pairs:
        if not negative:
            assert follows(first, second)
        elif kind == "order":
            assert follows(second, first)
        else:  # parts of sentences may stand in several documents
            mine, theirs = ({document for document, _ in where(x)} for x in (first, second))
            assert mine
            assert theirs - mine
            clear += not theirs & mine
    assert kind == "order" or clear > 0.4 * len(pairs)
    share = sum(negative for *_, negative in pairs) / len(pairs)
    assert len(pairs) > 300
    assert abs(share - 0.5) < 4 * 0.5 / len(pairs) ** 0.5


def test_the_length_of_b_does_not_betray_a_negative_pair(pair_store, bpe):
    pairs = pairs_of(rows_of(pair_store, bpe, "next"), np.arange(600))
    lengths = [[len(b) for _, b, negative in pairs if negative == wanted] for wanted in (0, 1)]
    assert 0.85 < np.mean(lengths[1]) / np.mean(lengths[0]) <= 1.05


@pytest.mark.parametrize("kind", ["next", "order"])
def test_a_row_depends_on_its_number_alone(pair_store, bpe, kind):
    rows, again = rows_of(pair_store, bpe, kind), rows_of(pair_store, bpe, kind)
    numbers = np.array([5, 17, -1, 3, len(rows) + 5])
    together = rows.read_pairs(numbers)
    for at, number in enumerate(numbers.tolist()):
        apart = again.read_pairs(np.array([number]))
        assert all((x[at] == y[0]).all() for x, y in zip(together, apart, strict=True))
    assert not together.documents[2].any()
    assert (together.tokens[2] == rows.pad).all()


def test_another_epoch_has_other_chances(pair_store, bpe):
    rows = rows_of(pair_store, bpe, "order")
    first, second = (
        Counter((tuple(sorted((tuple(a), tuple(b)))), n) for a, b, n in pairs_of(rows, numbers))
        for numbers in (np.arange(len(rows)), np.arange(len(rows), 2 * len(rows)))
    )
    assert sum((first & second).values()) < 0.8 * sum(first.values())


def test_words_go_with_their_tokens(pair_store, bpe):
    rows = rows_of(pair_store, bpe, "next")
    numbers = np.arange(40)
    tokens, documents, *_ = rows.read_pairs(numbers)
    words = rows.read_words(numbers)
    framing = (documents > 0) & np.isin(tokens, [bpe.begin, bpe.end])
    assert (words[framing] == 1).all()
    (text,) = {bpe.raw.id_to_token(t) for t in bpe.encode([" number"])[0][:1]}
    begins = tokens == bpe.raw.token_to_id(text)
    assert begins.any()
    assert (words[begins] == 1).all()  # a token with the space before a word
    assert 0.2 < words[(documents > 0) & ~framing].mean() < 0.9


def test_one_document_in_a_shard_makes_positives_alone(bpe, tmp_path):
    (tmp_path / "one.txt").write_text("One is here. Two is here. Three is here. Four is here.\n")
    prepare_store(
        [str(tmp_path / "one.txt")], bpe, tmp_path / "s", validation_share=0.0, sentences=True
    )
    pairs = pairs_of(rows_of(tmp_path / "s", bpe, "next"), np.arange(40))
    assert [negative for *_, negative in pairs] == [0] * len(pairs)


def test_rows_are_counted_beforehand_and_what_is_left_out_is_told(
    file, texts, bpe_path, bpe, tmp_path, capsys
):
    given = {"validation_share": 0.1, "unit_bytes": 6000, "sentences": True}
    prepare_command([str(file)], str(bpe_path), str(tmp_path / "s"), **given, lengths=[LENGTH, 128])
    store = TokenStore(tmp_path / "s", "train")
    known = [dict(shard.rows or {}) for shard in store.shards]
    for length in (LENGTH, 128):
        kept = rows_of(tmp_path / "s", bpe, "next", length)
        found = []
        for number, shard in enumerate(store.shards):
            starts = store.marks(number, "sentences")[0 : shard.tokens] > 0
            found.append(pack_pairs(starts, np.asarray(store.ends(number)), length))
        assert [k[f"sentence_pairs {length}"] for k in known] == [len(f.rows) - 1 for f in found]
        assert kept.alone == sum(f.alone for f in found) == sum(k[f"alone {length}"] for k in known)
    told = capsys.readouterr().out
    assert f"  {kept.alone} of one sentence make no pair in rows of 128 tokens" in told
    assert kept.alone > 20
