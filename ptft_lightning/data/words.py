"""Texts as words: joined from a file's tokens, or cut where people would; knows no tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ptft_lightning.data.examples import Example
from ptft_lightning.data.tokenizer import CHARACTER

Split = Literal["auto", "edges", "signs", "characters"]
Index = npt.NDArray[np.int64]
# Ideographs and kana are words of their own, whatever else stands between spaces is looked at.
CHUNK = re.compile(rf"(?!\s){CHARACTER}|(?:(?!{CHARACTER})\S)+")
IDEOGRAPHS = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Chinese characters, for use inside brackets of a pattern."""
SPACELESS = re.compile(CHARACTER)


@dataclass(frozen=True, eq=False)
class Words(Example):
    """A text cut into words, whose labels are their tags, one each."""

    words: Index = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """(n, 2): the first character of each word in the text, and the one after its last."""

    @property
    def tokens(self) -> list[str]:
        """The words."""
        return [self.text[start:end] for start, end in self.words.tolist()]

    @property
    def said(self) -> dict[str, Any]:
        """The text and its words."""
        return {"text": self.text, "tokens": self.tokens}


def split_words(text: str, split: Split = "edges") -> Index:
    """(n, 2) spans of the words of a text.

    An ideograph is a word. Elsewhere words stand between spaces, without the punctuation and
    symbols at their edges, each of which is a word too (`edges`: "U.S.-based," is "U.S.-based" and
    ","); `signs` cuts inside as well ("U", ".", "S", ".", "-", "based", ","). With `characters`
    all are words of their own.
    """
    if split == "characters":
        found = [match.span() for match in re.finditer(r"\S", text)]
    else:
        found = [
            span
            for match in CHUNK.finditer(text)
            for span in _cut(match.group(), match.start(), split == "signs")
        ]
    return np.array(found, np.int64).reshape(-1, 2)


def _cut(chunk: str, at: int, inside: bool) -> Iterator[tuple[int, int]]:
    kept = [i for i, character in enumerate(chunk) if not _is_sign(character)]
    first, last = (kept[0], kept[-1]) if kept else (len(chunk), -1)
    borders = {i for i, c in enumerate(chunk) if _is_sign(c) and (inside or not first < i < last)}
    cuts = sorted({0, len(chunk)} | borders | {i + 1 for i in borders})
    yield from ((at + a, at + b) for a, b in pairwise(cuts))


@lru_cache(4096)
def _is_sign(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def join_words(tokens: Sequence[str], characters: bool, glued: Sequence[bool] = ()) -> Words:
    """The text of tokens as people write it, and where each stands.

    Args:
        tokens: Words, none of them empty.
        characters: The file's tokens are single characters: no spaces between them.
        glued: Of each token whether no space comes before it, where the file tells.
    """
    parts, words, at = list[str](), np.zeros((len(tokens), 2), np.int64), 0
    for number, token in enumerate(tokens):
        if number and not characters and not (glued and glued[number]):
            both = SPACELESS.match(tokens[number - 1][-1]) and SPACELESS.match(token[0])
            parts.append("" if both else " ")
            at += len(parts[-1])
        words[number] = at, at + len(token)
        parts.append(token)
        at += len(token)
    return Words("".join(parts), None, None, "", words=words)


def holds_characters(sentences: Sequence[Sequence[str]]) -> bool:
    """Whether a file's tokens are single characters, as in Chinese ones without words."""
    lengths = [len(token) == 1 for tokens in sentences for token in tokens]
    some = any(SPACELESS.match(token) for tokens in sentences for token in tokens)
    return some and sum(lengths) > 0.9 * len(lengths)


def stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """A stretch of a text without the spaces around it; tokens and markings may carry those."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def words_of(span: tuple[int, int], words: Index) -> tuple[int, int, bool]:
    """The words that characters touch, as first and one after the last, and whether the characters
    begin and end where words do; first = last where they touch none."""
    start, end = span
    first = int(np.searchsorted(words[:, 1], start, side="right"))
    last = int(np.searchsorted(words[:, 0], end, side="left"))
    if first >= last:
        return first, first, False
    return first, last, bool(words[first, 0] == start and words[last - 1, 1] == end)
