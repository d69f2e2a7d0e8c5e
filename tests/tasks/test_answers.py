"""Scores of answers: the official scripts' by hand-made cases, torchmetrics and trying all."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from torchmetrics.text import SQuAD

from ptft_lightning.tasks.answers import (
    Scored,
    best_threshold,
    chinese_units,
    compare,
    english_units,
    measures,
)

WORDS = ("the", "a", "An", "Paris", "paris", "1,000", "don't", "U.S.", "a-b", "!", "é", "9th")


def made(rng: random.Random) -> str:
    """Some words, one of which is left when articles and punctuation are gone."""
    return " ".join([*rng.choices(WORDS, k=rng.randint(0, 4)), rng.choice(("Paris", "9th"))])


def test_squad_1_equals_torchmetrics() -> None:
    rng = random.Random(0)
    answers = [made(rng) for _ in range(300)]
    golds = [[made(rng) for _ in range(rng.randint(1, 3))] for _ in answers]
    reference = SQuAD()
    reference.update(
        [{"prediction_text": a, "id": str(i)} for i, a in enumerate(answers)],
        [
            {"answers": {"text": g, "answer_start": [0] * len(g)}, "id": str(i)}
            for i, g in enumerate(golds)
        ],
    )
    wanted = {k: float(v) / 100 for k, v in reference.compute().items()}
    assert measures(answers, golds, "en", False) == pytest.approx(wanted)
    assert 0.1 < wanted["f1"] < 0.9


def test_squad_1_shares_nothing_where_nothing_is_left() -> None:
    """Its script's F1 of two answers that are articles alone is 0, unlike that of 2.0."""
    assert compare("the", ["a"], "en", False) == Scored(exact=1, f1=0)
    assert compare("the", ["a"], "en", True) == Scored(exact=1, f1=1)


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1),
        ("tower of London", ["the Tower"], 0, 0.5),
        ("big red bus", ["red bus", "big"], 0, 0.8),
        ("the the cat", ["cat cat"], 0, 2 / 3),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", ["cat"], 0, 0),
        ("", ["the", "a!"], 1, 1),  # nothing is left of the gold answers
        ("cat", ["the", "cat"], 1, 1),
    ],
)
def test_squad_2_by_hand(answer: str, golds: list[str], exact: float, f1: float) -> None:
    got = compare(answer, golds, "en", True)
    assert (got.exact, got.f1) == (exact, pytest.approx(f1))


def test_the_two_kinds_of_questions_are_told_apart() -> None:
    answers, golds = ["cat", "", "a dog", "", "x"], [["cat"], ["cow"], ["dog", "fox"], [], []]
    got = measures(answers, golds, "en", True)
    assert got == pytest.approx(
        {
            **{"exact_match": 3 / 5, "f1": 3 / 5, "no_answer_accuracy": 1 / 2},
            **{"has_answer_exact_match": 2 / 3, "has_answer_f1": 2 / 3},
        }
    )


def test_english_units() -> None:
    assert english_units("An apple, THE U.S.  a-b; theatre") == ["apple", "us", "ab", "theatre"]


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("1950年，中国。", ["1950", "年", "中", "国"]),
        ("iPhone X手机", ["iphone", "x", "手", "机"]),
        ("3.5米", ["3.5", "米"]),
        ("《紅樓夢》", ["紅", "樓", "夢"]),
        ("𠀀字 ab", ["𠀀", "字", "ab"]),
        ("……！", []),
        ("5%，￥3", ["5", "%", "￥", "3"]),
    ],
)
def test_chinese_units(text: str, units: list[str]) -> None:
    assert chinese_units(text) == units


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "f1"),
    [
        ("《红楼梦》", ["红楼梦"], 1, 1),
        ("在北京市", ["北京"], 0, 2 * 2 / (4 + 2)),
        ("北京和上海", ["上海北京"], 0, 2 * 2 / (5 + 4)),  # a stretch, not a bag
        ("1950 年", ["1950年"], 1, 1),
        ("195年", ["1950年"], 0, 2 * 1 / (2 + 2)),
        ("海", ["山", "大海"], 0, 2 / 3),
        ("5", ["5%"], 0, 2 / 3),
    ],
)
def test_chinese_by_hand(answer: str, golds: list[str], exact: float, f1: float) -> None:
    got = compare(answer, golds, "zh", False)
    assert (got.exact, got.f1) == (exact, pytest.approx(f1))


def test_longest_stretch_equals_trying_all() -> None:
    rng = random.Random(1)
    for _ in range(200):
        one, other = ("".join(rng.choices("天地人", k=rng.randint(1, 7))) for _ in "ab")
        stretches = [one[i:j] for i, j in itertools.combinations(range(len(one) + 1), 2)]
        longest = max((len(s) for s in stretches if s in other), default=0)
        wanted = 2 * longest / (len(one) + len(other))
        assert compare(one, [other], "zh", False).f1 == pytest.approx(wanted)


def test_best_threshold_equals_trying_all() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 30) * 10:
        doubts = rng.integers(-3, 4, size).astype(float)
        gains = rng.choice([-1.0, 0.0, 0.5, 1.0], size)
        threshold, gain = best_threshold(doubts, gains)
        tried = [gains[doubts <= t].sum() for t in (-99.0, *doubts)]
        assert gain == pytest.approx(max(tried))
        assert gains[doubts <= threshold].sum() == pytest.approx(max(tried))


def test_no_threshold_of_nothing() -> None:
    assert best_threshold([], []) == (0.0, 0.0)
