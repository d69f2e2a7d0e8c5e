"""Passages cover their documents; BM25 ranks as its formula says."""

from __future__ import annotations

import builtins
import math
import random
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ptft_lightning.data.passages import Bm25, cut_passages, terms
from ptft_lightning.errors import UserError


def test_passages_cover_the_document(corpus_documents: list[str]) -> None:
    rng = random.Random(0)
    for document in corpus_documents:
        most = rng.choice((1, 20, 60, 1000))
        passages = [*cut_passages("f", 3, document, most)]
        for passage in passages:
            assert document[passage.start :].startswith(passage.text)
        covered = "".join(passage.text for passage in passages)
        assert "".join(covered.split()) == "".join(document.split())
        if most == 1000 and len(document) <= 1000:
            assert len(passages) == 1


def test_passages_end_with_sentences() -> None:
    document = 'He said "no." She left! 天气很好。我们走吧！\n\nA line\n \n'
    passages = [p.text for p in cut_passages("f", 1, document, 10)]
    assert passages == ['He said "no." ', "She left! ", "天气很好。我们走吧！", "\n\nA line\n \n"]
    assert [*cut_passages("f", 1, " \n \n", 10)] == []


def test_terms() -> None:
    assert terms("The U.S. 在北京市，水 iPhone4手机") == [
        *("the", "u", "s", "在北", "北京", "京市", "水", "iphone4", "手机"),
    ]


def test_ranks_as_the_formula_says() -> None:
    """Lucene's BM25: idf ln(1 + (N - n + .5) / (n + .5)), k1 1.5, b 0.75."""
    rng = random.Random(0)
    passages = [" ".join(rng.choices("abcdefgh", k=rng.randint(1, 12))) for _ in range(30)]
    mean = sum(len(p.split()) for p in passages) / len(passages)

    def score(question: str, passage: str) -> float:
        words, total = passage.split(), 0.0
        for term in question.split():
            n = sum(term in p.split() for p in passages)
            idf, tf = math.log(1 + (len(passages) - n + 0.5) / (n + 0.5)), words.count(term)
            total += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean)) if n else 0.0
        return total

    questions = ["a b", "h", "c zz d e", "zz", ""]
    for question, ranked in zip(questions, Bm25(passages).rank(questions, 7), strict=True):
        wanted = {i: score(question, passage) for i, passage in enumerate(passages)}
        best = sorted((s for s in wanted.values() if s > 0), reverse=True)[:7]
        assert [s for _, s in ranked] == pytest.approx(best, rel=1e-4)
        assert [wanted[i] for i, _ in ranked] == pytest.approx(best, rel=1e-4)


def test_passages_without_words_are_refused() -> None:
    with pytest.raises(UserError, match="the passages hold no word"):
        Bm25(["!", "..."])


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "bm25s":
            raise ImportError(name)
        return real(name, *rest)

    with (
        mock.patch.object(builtins, "__import__", without),
        pytest.raises(UserError, match=r"pip install 'ptft-lightning\[retrieval\]'"),
    ):
        Bm25(["some words"])
