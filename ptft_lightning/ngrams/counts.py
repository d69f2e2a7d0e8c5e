"""Streams of documents to n-gram counts, level by level; knows no probabilities.

Level k holds the distinct k-grams as sorted keys: context * words + last word, where `context` is
the place of the first k - 1 words in level k - 1 (of level 1: the word itself). So any order fits
into 64 bits, a lookup is a binary search, and a k-gram's place is its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ptft_lightning.data.token_store import TokenStore

Numbers = npt.NDArray[np.int64]
BLOCK = 4_000_000  # tokens counted at once
NONE = -1


class Stream(NamedTuple):
    """Some documents one after another, each after a begin word of its own."""

    words: Numbers
    """(N,)"""
    depth: Numbers
    """(N,): how many words of its document come before each, the begin word included."""


def frame(ids: npt.NDArray[np.integer], ends: Numbers, begin: int) -> Stream:
    """Put `begin` before each document; `ends` are the indices after their last tokens."""
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    at = starts + np.arange(len(ends))  # of the begin words
    words = np.full(len(ids) + len(ends), begin, np.int64)
    real = np.ones(len(words), np.bool_)
    real[at] = False
    words[real] = ids
    index = np.arange(len(words))
    return Stream(words, index - np.repeat(at, ends - starts + 1))


def streams(store: TokenStore, begin: int, most: int | None = None) -> Iterator[Stream]:
    """The documents of a store, some at a time; no more than the first that hold `most` tokens."""
    for shard in range(len(store.shards)):
        ids, ends = store.tokens(shard), np.asarray(store.ends(shard), np.int64)
        first = taken = 0
        while first < len(ends):
            after = int(np.searchsorted(ends, taken + BLOCK, side="right"))
            after = max(after, first + 1)  # a document that is longer than a block
            yield frame(np.asarray(ids[taken : ends[after - 1]]), ends[first:after] - taken, begin)
            first, taken = after, int(ends[after - 1])
        if most is not None:
            most -= len(ids)
            if most <= 0:
                return


def find(keys: Numbers, wanted: Numbers) -> Numbers:
    """Place of each wanted key, NONE where it is not there."""
    if not len(keys):
        return np.full(len(wanted), NONE, np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, NONE)


def places(levels: list[Numbers], stream: Stream, words: int) -> Iterator[Numbers]:
    """For each level the place of the k-gram that ends with each word, NONE where there is none.

    `levels` are the keys of level 2 and up.
    """
    place = stream.words
    yield place
    for below, keys in enumerate(levels, start=1):
        before = np.concatenate([[NONE], place[:-1]])
        there = (stream.depth >= below) & (before >= 0)
        place = np.full(len(place), NONE, np.int64)
        place[there] = find(keys, before[there] * words + stream.words[there])
        yield place


class Tally:
    """Distinct keys with their counts, added by and by; memory is that of the distinct ones."""

    def __init__(self) -> None:
        self.parts: list[tuple[Numbers, Numbers]] = []

    def add(self, keys: Numbers) -> None:
        """Count keys; parts of like size are merged, so that each key moves few times."""
        if not len(keys):
            return
        self.parts.append(np.unique(keys, return_counts=True))
        while len(self.parts) > 1 and len(self.parts[-2][0]) < 2 * len(self.parts[-1][0]):
            self._merge()

    def _merge(self) -> None:
        (a, m), (b, n) = self.parts.pop(), self.parts.pop()
        keys, counts = np.concatenate([a, b]), np.concatenate([m, n])
        order = np.argsort(keys, kind="stable")  # merges two sorted runs
        keys, counts = keys[order], counts[order]
        first = np.flatnonzero(np.diff(keys, prepend=NONE))  # keys are 0 or more
        self.parts.append((keys[first], np.add.reduceat(counts, first)))

    def finish(self) -> tuple[Numbers, Numbers]:
        """Keys in order, and how often each came."""
        while len(self.parts) > 1:
            self._merge()
        return self.parts[0] if self.parts else (np.zeros(0, np.int64), np.zeros(0, np.int64))
