"""Sentences -> pairs, packed into rows; knows no files and no models.

A pair is a run of neighbouring sentences of one document, `[CLS] A [SEP] B [SEP]`, as long as rows
allow (Devlin et al. 2019). Where A ends is not decided here: a run takes the same places wherever
it is cut, so that the rows of a shard are a function of its sentences and of the length alone.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ptft_lightning.data.packing import Index, best_fit
from ptft_lightning.data.token_store import Flags

FRAME = 3  # [CLS], [SEP], [SEP]
SHORTEST = FRAME + 2  # a pair of two sentences of a token each
Short = npt.NDArray[np.int32]


class Sentences(NamedTuple):
    """The sentences of a shard in stored order; each (S,)."""

    begins: Short
    """First token."""
    stops: Short
    """The one after the last."""
    document: Short


class PairRuns(NamedTuple):
    """The runs of sentences that become pairs, and the row each goes to; sorted by row."""

    sentences: Sentences
    first: Index
    """(R,): the first sentence of each run."""
    stop: Index
    """(R,): the one after its last."""
    rows: Index
    """(rows + 1,): runs rows[r]..rows[r+1] make row r."""
    alone: int
    """Documents of one sentence, which make no pair."""


def find_sentences(starts: Flags, ends: Index, length: int) -> Sentences:
    """The sentences of framed documents, (T,) flags and (D,) ends; one that is longer than half of
    a row of `length` tokens is cut into equal parts, which count as sentences."""
    begins = np.flatnonzero(starts).astype(np.int64)
    document = np.searchsorted(ends, begins, side="right")
    stops = np.minimum(np.append(begins[1:], np.iinfo(np.int64).max), ends[document] - 1)
    sizes = stops - begins
    cuts = np.maximum(1, -(-sizes // ((length - FRAME) // 2)))
    part = np.arange(cuts.sum()) - np.repeat(np.cumsum(cuts) - cuts, cuts)
    begins, sizes, document, cuts = (np.repeat(x, cuts) for x in (begins, sizes, document, cuts))
    edges = [begins + sizes * (part + more) // cuts for more in (0, 1)]
    return Sentences(*(x.astype(np.int32) for x in (*edges, document)))


def pack_pairs(starts: Flags, ends: Index, length: int) -> PairRuns:
    """The rows of a shard in layout `sentence_pairs`: runs packed best-fit.

    A run takes sentences of its document as long as they fit. A last sentence that is left over
    takes the one before it along; where that belongs to a run of two, both have it.
    """
    sentences = find_sentences(starts, ends, length)
    edges = np.flatnonzero(np.diff(sentences.document, prepend=-1, append=-1)).tolist()
    begins, stops = sentences.begins.tolist(), sentences.stops.tolist()
    first, stop, alone = list[int](), list[int](), 0
    for at, end in pairwise(edges):
        if end - at == 1:
            alone += 1
            continue
        while at < end:
            if end - at == 1:
                at -= 1
                stop[-1] = max(at, first[-1] + 2)
            until = bisect_right(stops, begins[at] + length - FRAME, at, end)
            first.append(at)
            stop.append(until)
            at = until
    firsts, lasts = np.array(first, np.int64), np.array(stop, np.int64)
    sizes = sentences.stops[lasts - 1] - sentences.begins[firsts] + FRAME
    packed = best_fit(sizes, length)
    order = np.array([run for row in packed for run in row], np.int64)
    rows = np.cumsum([0, *(len(row) for row in packed)]).astype(np.int64)
    return PairRuns(sentences, firsts[order], lasts[order], rows, alone)
