"""How right an answer is: exact match and F1 as the official scripts of SQuAD and CMRC count them.

English is compared without case, punctuation and articles, by words (the scripts of SQuAD 1.1 and
2.0, Rajpurkar et al. 2016 and 2018). Chinese is compared without case, punctuation and spaces, each
ideograph a unit of its own and other words whole; its F1 counts the longest common stretch of units
(as the script of CMRC 2018, Cui et al. 2019). Knows texts only, no tokens and no model.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import numpy as np

from ptft_lightning.data.words import IDEOGRAPHS

Language = Literal["en", "zh"]
Units = Callable[[str], list[str]]

ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
PUNCTUATION = set(string.punctuation)
# An ideograph, a sign that changes what a number says, or a run of letters and digits without an
# ideograph; `3.5` and `don't` are one.
MIXED = re.compile(
    rf"[{IDEOGRAPHS}]|[%％‰$＄€£¥￥℃℉°]|"
    rf"(?:(?![{IDEOGRAPHS}])[^\W_])+(?:[.'](?:(?![{IDEOGRAPHS}])[^\W_])+)*"
)


def english_units(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles."""
    bare = "".join(c for c in text.lower() if c not in PUNCTUATION)
    return ARTICLES.sub(" ", bare).split()


def chinese_units(text: str) -> list[str]:
    """Ideographs one by one, other words whole, in lower case, without punctuation."""
    return MIXED.findall(text.lower())


def shared_words(one: list[str], other: list[str]) -> int:
    """Words that both have, in any order."""
    return sum((Counter(one) & Counter(other)).values())


def longest_stretch(one: list[str], other: list[str]) -> int:
    """Units of the longest stretch that both have."""
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.find_longest_match().size


UNITS: dict[Language, Units] = {"en": english_units, "zh": chinese_units}
SHARED = {"en": shared_words, "zh": longest_stretch}


@dataclass(frozen=True)
class Scored:
    """How right one answer is, 0 to 1 each, by the gold answer it fits best."""

    exact: float
    f1: float


def compare(answer: str, golds: Sequence[str], language: Language, unanswerable: bool) -> Scored:
    """An answer, "" for none, against the right ones, none of them where there is no answer.

    With `unanswerable` as SQuAD 2.0's script: gold answers of which nothing is left are left out,
    and to say nothing is right only where nothing is right.
    """
    units, said = UNITS[language], UNITS[language](answer)
    right = [units(gold) for gold in golds]
    if unanswerable:
        right = [gold for gold in right if gold] or [[]]
    exact = max(float(said == gold) for gold in right)
    f1 = max(_f1(said, gold, language, unanswerable) for gold in right)
    return Scored(exact, f1)


def _f1(said: list[str], gold: list[str], language: Language, unanswerable: bool) -> float:
    if not said or not gold:
        return float(unanswerable and said == gold)
    shared = SHARED[language](said, gold)
    return 2 * shared / (len(said) + len(gold))


def measures(
    answers: Sequence[str], golds: Sequence[Sequence[str]], language: Language, unanswerable: bool
) -> dict[str, float]:
    """`exact_match` and `f1`, 0 to 1; where contexts may lack the answer, also of the questions
    that have one and of those that have none."""
    scored = [
        compare(answer, gold, language, unanswerable)
        for answer, gold in zip(answers, golds, strict=True)
    ]
    found = _means("", scored)
    if unanswerable:
        has = [any(UNITS[language](text) for text in gold) for gold in golds]
        found |= _means("has_answer_", [s for s, h in zip(scored, has, strict=True) if h])
        no = [s for s, h in zip(scored, has, strict=True) if not h]
        found["no_answer_accuracy"] = _means("", no)["exact_match"]
    return found


def _means(prefix: str, scored: Sequence[Scored]) -> dict[str, float]:
    count = len(scored)
    exact = sum(s.exact for s in scored) / count if count else float("nan")
    f1 = sum(s.f1 for s in scored) / count if count else float("nan")
    return {f"{prefix}exact_match": exact, f"{prefix}f1": f1}


def best_threshold(doubts: Sequence[float], gains: Sequence[float]) -> tuple[float, float]:
    """The threshold above which a doubt means no answer, and the sum it gains.

    Args:
        doubts: How much more likely no answer is than the answer found, for each question.
        gains: What it changes in the sum of scores to answer the question instead of saying
            nothing.

    Returns:
        The threshold, halfway between two doubts where there are some on both sides of it, else 1
        beyond all of them; and the gain over answering nothing.
    """
    if not len(doubts):
        return 0.0, 0.0
    doubt, gain = np.asarray(doubts, float), np.asarray(gains, float)
    order = np.argsort(doubt, kind="stable")
    total = np.cumsum(gain[order])
    last = np.append(doubt[order][1:] != doubt[order][:-1], True)  # equal doubts stand together
    ends, sums = doubt[order][last], total[last]
    best = int(sums.argmax())
    if sums[best] <= 0:
        return float(ends[0]) - 1, 0.0
    following = ends[best + 1] if best + 1 < len(ends) else np.inf
    threshold = (ends[best] + following) / 2 if np.isfinite(following) else ends[best] + 1
    return float(threshold), float(sums[best])
