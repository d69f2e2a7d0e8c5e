"""Documents cut into passages, and the passages that go best with a question, by BM25; knows no
tokenizer and no model. Whatever else ranks passages has the one method of `Ranker`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ptft_lightning.data.squad import visible
from ptft_lightning.data.words import IDEOGRAPHS
from ptft_lightning.errors import UserError

# Where a passage may end: after a line, or after a sentence in it.
PIECE = re.compile(r"[^\n]*?(?:\n+|[.!?][\"')\]]*\s+|[。！？；][」』”’）]*|$)")
TERM = re.compile(rf"[{IDEOGRAPHS}]+|[^\W{IDEOGRAPHS}]+")


class Passage(NamedTuple):
    """A part of a document."""

    file: str
    document: int
    """Its number among the documents of the file, from 1."""
    start: int
    """Its first character in the document."""
    text: str


class Ranker(Protocol):
    """Knows some passages, and which go with a question."""

    def rank(self, questions: Sequence[str], count: int) -> list[list[tuple[int, float]]]:
        """For each question up to `count` numbers of passages and their scores, the best first."""
        ...


def cut_passages(file: str, number: int, document: str, characters: int) -> Iterator[Passage]:
    """Whole lines and sentences of a document, as many as fit into `characters`; a sentence that is
    longer is a passage of its own. Blank ones are left out."""
    start = end = 0
    for piece in [*PIECE.finditer(document), None]:
        if end > start and (piece is None or piece.end() - start > characters):
            if visible(document[start:end]):
                yield Passage(file, number, start, document[start:end])
            start = end
        end = start if piece is None else piece.end()


def terms(text: str) -> list[str]:
    """Words in lower case; of Chinese, each two neighbouring characters, as is usual where words
    are not known (Nie et al. 2000)."""
    found: list[str] = []
    for run in TERM.findall(text.lower()):
        if re.match(rf"[{IDEOGRAPHS}]", run) and len(run) > 1:
            found += [run[i : i + 2] for i in range(len(run) - 1)]
        else:
            found.append(run)
    return found


class Bm25:
    """BM25 (Robertson et al. 1995) as Lucene computes it, over bm25s (Lu 2024).

    Raises:
        UserError: bm25s is not installed, or the passages hold no word.
    """

    def __init__(self, passages: Sequence[str]) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise UserError(
                "ranking passages needs bm25s: pip install 'ptft-lightning[retrieval]'"
            ) from error
        words = [terms(passage) for passage in passages]
        if not any(words):
            raise UserError("the passages hold no word to find them by")
        self.index: Any = bm25s.BM25()
        self.index.index(words, show_progress=False)

    def rank(self, questions: Sequence[str], count: int) -> list[list[tuple[int, float]]]:
        """See `Ranker`; passages that share no word with the question are left out."""
        found = []
        for question in questions:
            words = terms(question)
            scores = self.index.get_scores(words) if words else np.zeros(0)
            order = np.argsort(-scores, kind="stable")[:count].tolist()
            found.append([(i, float(scores[i])) for i in order if scores[i] > 0])
        return found
