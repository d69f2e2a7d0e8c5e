"""Words of texts, the tokens that are theirs, and windows that lose none."""

from __future__ import annotations

import numpy as np
import pytest
from faults.files_tagging import multi_word
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.word_windows import (
    Aligned,
    align_words,
    encode_windows,
    inside_tokens,
    windows,
)
from ptft_lightning.data.words import Words, holds_characters, join_words, split_words, words_of
from ptft_lightning.errors import UserError

SAMPLE = "“Dr. O'Neill (U.S.-based)” paid $5,000 in 北京市, 2015年。  हिन्दी\tcafé\u0301 @me"


def words_in(text: str, split: str) -> list[str]:
    return [text[a:b] for a, b in split_words(text, split).tolist()]


def test_edges_of_words_are_cut():
    assert words_in(SAMPLE, "edges") == [
        *("“", "Dr", ".", "O'Neill", "(", "U.S.-based", ")", "”", "paid", "$", "5,000", "in"),
        *("北", "京", "市", ",", "2015", "年", "。", "हिन्दी", "café\u0301", "@", "me"),
    ]


def test_signs_inside_are_cut():
    cut = ["O", "'", "Neill", "(", "U", ".", "S", ".", "-", "based", ")", "”"]
    found = words_in(SAMPLE, "signs")
    assert found[3:15] == cut
    assert "".join(found) == "".join(SAMPLE.split())


def test_characters_are_cut():
    assert words_in(SAMPLE, "characters") == [*"".join(SAMPLE.split())]


@given(st.text(max_size=30), st.sampled_from(["edges", "signs", "characters"]))
def test_all_but_white_space_is_in_a_word(text, split):
    spans = split_words(text, split).tolist()
    covered = [i for a, b in spans for i in range(a, b)]
    assert covered == [i for i, c in enumerate(text) if not c.isspace()]
    assert all(a < b for a, b in spans)


def test_tokens_become_text_as_it_is_written():
    english = join_words(["New", "York", "'s", "北", "京"], False)
    assert english.text == "New York 's 北京"
    assert english.tokens == ["New", "York", "'s", "北", "京"]
    assert join_words(["Y", "1", "0", "月"], True).text == "Y10月"
    assert join_words(["do", "n't", "."], False, [False, True, True]).text == "don't."
    assert holds_characters([["2", "0", "年"], ["月"]])
    assert not holds_characters([["2", "0"], ["a"]])
    assert not holds_characters([["北京", "市", "in", "China"]])


def test_words_of_characters():
    words = split_words("New York-based firm", "edges")
    assert words_of((0, 8), words) == (0, 2, False)
    assert words_of((0, 14), words) == (0, 2, True)
    assert words_of((15, 19), words) == (2, 3, True)
    assert words_of((3, 4), words)[:2] == (1, 1)


# Words and tokens.


@pytest.fixture(params=["bpe", "wordpiece"])
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("presplit", [False, True])
def test_every_token_of_a_word_lies_in_it(tokenizer, presplit):
    texts = ["the river 大地 reads.", "", SAMPLE, "a\x00 \u200b b"]
    examples = [Words(t, None, None, "", words=split_words(t, "signs")) for t in texts]
    for example, aligned in zip(examples, align_words(examples, tokenizer, presplit), strict=True):
        assert len(aligned.ids) == len(aligned.spans)
        assert aligned.words.shape == example.words.shape
        for (a, b), (first, last) in zip(example.words, aligned.words, strict=True):
            touching = [i for i, (s, e) in enumerate(aligned.spans) if s < b and e > a]
            assert touching == list(range(first, last))
            if presplit:
                assert all(a <= s and e <= b for s, e in aligned.spans[first:last])


def test_presplit_words_have_the_space_before_them(bpe):
    text = "the river reads"
    example = Words(text, None, None, "", words=split_words(text))
    (whole,), (apart,) = (align_words([example], bpe, presplit) for presplit in (False, True))
    assert whole.ids == apart.ids == bpe.encode([text])[0]
    assert np.array_equal(whole.words, apart.words)


def test_borders_inside_tokens_are_seen():
    tokenizer = multi_word()
    text = "abcd e"
    example = Words(text, None, None, "", words=np.array([[0, 1], [1, 2], [2, 4], [5, 6]]))
    (aligned,) = align_words([example], tokenizer, presplit=False)
    assert aligned.ids == [1, 2]
    assert aligned.words.tolist() == [[0, 1], [0, 1], [1, 2], [1, 2]]
    borders = np.array([0, 1, 2, 4, 5, 6])
    assert borders[inside_tokens(aligned, borders)].tolist() == [1, 4, 5]
    (aligned,) = align_words([example], tokenizer, presplit=True)
    assert inside_tokens(aligned, borders).tolist() == []


# Windows.


def made(lengths: list[int]) -> Aligned:
    ends = np.cumsum(lengths, dtype=np.int64)
    words = np.stack([ends - lengths, ends], 1) if lengths else np.zeros((0, 2), np.int64)
    total = int(ends[-1]) if lengths else 0
    spans = np.stack([np.arange(total), np.arange(total) + 1], 1)
    return Aligned(list(range(total)), spans, words)


@given(
    st.lists(st.integers(0, 6), max_size=40),
    st.integers(1, 12),
    st.floats(0, 0.5),
)
def test_windows_lose_no_word(lengths, room, overlap):
    aligned = made(lengths)
    found = list(windows(aligned, room, overlap))
    owned = [word for w in found for word in range(*w.words)]
    assert owned == list(range(len(lengths)))
    assert len(found) <= len(lengths) + 1
    for (start, stop), (first, last), cut in found:
        assert stop - start <= room
        for word in range(first, last):
            a, b = aligned.words[word].tolist()
            assert start <= a
            assert b <= stop + cut
        if cut:
            # Only a word longer than the room, and it is alone.
            assert (first, last) == (first, first + 1)
            assert lengths[first] == room + cut
    if sum(lengths) <= room:
        assert len(found) == 1
    ends = [stop for (_, stop), _, _ in found]
    assert ends == sorted(ends)


def test_each_word_is_where_it_sees_most():
    aligned = made([1] * 20)
    one, two, three = windows(aligned, 10, 0.4)
    assert (one.tokens, two.tokens, three.tokens) == ((0, 10), (6, 16), (12, 20))
    assert (one.words, two.words, three.words) == ((0, 8), (8, 14), (14, 20))


def test_windows_are_framed_and_know_their_edges():
    aligned = made([2, 0, 9, 1, 1])
    items = list(encode_windows(aligned, [90, 91], [92], max_length=8, overlap=0.25, pad=0))
    assert [item.tokens for item in items] == [
        [90, 91, 0, 1, 92],
        [90, 91, 2, 3, 4, 5, 6, 92],
        [90, 91, 11, 12, 92],
    ]
    assert [item.cut for item in items] == [0, 4, 0]
    assert [item.targets["number"].tolist() for item in items] == [[0], [2], [3, 4]]
    assert [item.targets["word"].tolist() for item in items] == [
        [[2, 4]],
        [[2, 7]],
        [[2, 3], [3, 4]],
    ]
    edges = [item.targets["edges"].tolist() for item in items]
    assert edges == [[True, False], [False, False], [False, True]]


def test_a_text_without_words_has_one_window():
    (item,) = encode_windows(made([]), [], [], max_length=8, overlap=0.25, pad=7)
    assert item.tokens == [7]
    assert item.segments == [0]
    assert item.targets["word"].shape == (0, 2)
    with pytest.raises(UserError, match="no room for words"):
        list(encode_windows(made([1]), [1, 2], [3], max_length=3, overlap=0.25, pad=7))
