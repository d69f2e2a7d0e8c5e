"""Words to tokens: which tokens are whose, and long sentences in overlapping windows.

No word is lost: each belongs to one window, the one in which most stands on its poorer side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ptft_lightning.data.examples import Encoded
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.words import Index, Words
from ptft_lightning.errors import UserError


@dataclass
class Aligned:
    """A text's tokens and the words they spell."""

    ids: list[int]
    spans: Index
    """(tokens, 2): the characters each token covers, without the space before a word."""
    words: Index
    """(words, 2): the first token of each word and the one after its last, equal where it has
    none. Neighbours share a token that covers both."""
    segments: list[int] = field(default_factory=list)
    """Of each token; none means 0."""


class Window(NamedTuple):
    """A stretch of tokens and the words it answers for, by their numbers."""

    tokens: tuple[int, int]
    words: tuple[int, int]
    cut: int
    """Tokens of a word that is longer than a window, left out."""


def align_words(examples: list[Words], tokenizer: Tokenizer, presplit: bool) -> list[Aligned]:
    """Encode texts as they are or, `presplit`, each word by itself (with the space before it), so
    that no token covers parts of two words."""
    if presplit:
        return _align_apart(examples, tokenizer)
    encoded = tokenizer.encode_spans([e.text for e in examples])
    return [
        _aligned(ids, _trimmed(spans, e.text), e.words)
        for e, (ids, spans) in zip(examples, encoded, strict=True)
    ]


def _align_apart(examples: list[Words], tokenizer: Tokenizer) -> list[Aligned]:
    pieces = [
        [e.text[a:b] for a, b in zip(_begins(e.words), e.words[:, 1].tolist(), strict=True)]
        for e in examples
    ]
    different = list(dict.fromkeys(piece for words in pieces for piece in words))
    encoded = zip(different, tokenizer.encode_spans(different), strict=True)
    known = {piece: (ids, _trimmed(spans, piece)) for piece, (ids, spans) in encoded}
    found = []
    for example, mine in zip(examples, pieces, strict=True):
        ids = [i for piece in mine for i in known[piece][0]]
        spans = [known[p][1] + at for p, at in zip(mine, _begins(example.words), strict=True)]
        found.append(_aligned(ids, np.concatenate([_NONE, *spans]), example.words))
    return found


def _begins(words: Index) -> list[int]:
    """Where the piece of each word begins, which has the space before it."""
    return [0, *words[:-1, 1].tolist()][: len(words)]


_NONE = np.zeros((0, 2), np.int64)


def _trimmed(spans: Index, text: str) -> Index:
    """Spans without the white space they begin with."""
    spans = spans.copy()
    for number, (start, end) in enumerate(spans.tolist()):
        while start < end - 1 and text[start].isspace():
            start += 1
        spans[number, 0] = start
    return spans


def _aligned(ids: list[int], spans: Index, words: Index) -> Aligned:
    """Of each word the tokens that share a character with it."""
    # A token of no characters must not break the order.
    starts, ends = np.maximum.accumulate(spans[:, 0]), np.maximum.accumulate(spans[:, 1])
    first = np.searchsorted(ends, words[:, 0], side="right")
    last = np.searchsorted(starts, words[:, 1], side="left")
    return Aligned(ids, spans, np.stack([first, np.maximum(first, last)], 1).astype(np.int64))


def inside_tokens(aligned: Aligned, borders: Index) -> Index:
    """Of character numbers, the places of those that have a token on both sides of them."""
    spans = np.concatenate([aligned.spans, [[np.iinfo(np.int64).max] * 2]])
    at = np.searchsorted(spans[:, 1], borders, side="right")
    return np.flatnonzero(spans[np.minimum(at, len(spans) - 1), 0] < borders)


def windows(aligned: Aligned, room: int, overlap: float) -> Iterator[Window]:
    """Cut into windows of at most `room` tokens, neighbours of which share about `overlap` of that.

    Windows begin and end where words do. In what two share, the words of the first half belong to
    the first, the others to the second.
    """
    begins, ends, count = aligned.words[:, 0], aligned.words[:, 1], len(aligned.words)
    start, owned = 0, 0
    while True:
        at = int(begins[start]) if count else 0
        stop = int(np.searchsorted(ends, at + room, side="right"))
        stop = max(stop, min(start + 1, count))  # a word longer than a window stands alone
        last = int(ends[stop - 1]) if count else 0
        tokens, cut = (at, min(last, at + room)), max(0, last - at - room)
        if stop == count:
            yield Window(tokens, (owned, count), cut)
            return
        # Back by the overlap, but not so far that the next window would end where this one does.
        back = max(last - int(overlap * room), int(ends[stop]) - room)
        following = int(np.clip(np.searchsorted(begins, back), start + 1, stop))
        middle = (int(begins[following]) + last) / 2
        until = int(np.clip(np.searchsorted(begins, middle), following, stop))
        yield Window(tokens, (owned, until), cut)
        start, owned = following, until


def encode_windows(
    aligned: Aligned, before: list[int], after: list[int], max_length: int, overlap: float, pad: int
) -> Iterator[Encoded]:
    """The windows of a text, each between the same tokens `before` and `after` it.

    Their targets are `word`, (w, 2): the tokens of each word that the window answers for, first and
    one after the last; `number`, (w,): which of the text's words that is; and `edges`, (2,):
    whether the text's first and last word are among these. Words without tokens are left out.

    Raises:
        UserError: no room for a token.
    """
    room = max_length - len(before) - len(after)
    if room < 1:
        raise UserError(f"data.max_length {max_length} leaves no room for words: raise it")
    for (start, stop), (first, last), cut in windows(aligned, room, overlap):
        tokens = [*before, *aligned.ids[start:stop], *after] or [pad]
        segments = aligned.segments[start:stop] or [0] * (stop - start)
        around = [0] * len(before), [0] * (len(tokens) - len(before) - (stop - start))
        numbers = np.arange(first, last)
        numbers = numbers[aligned.words[first:last, 0] < aligned.words[first:last, 1]]
        ranges = np.clip(aligned.words[numbers], start, stop) + (len(before) - start)
        edges = np.array([first == 0, last == len(aligned.words)])
        targets = {"word": ranges, "number": numbers, "edges": edges}
        yield Encoded(tokens, [*around[0], *segments, *around[1]], cut=cut, targets=targets)
