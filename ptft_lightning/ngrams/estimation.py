"""Counts to probabilities: modified Kneser-Ney smoothing, interpolated.

After Chen & Goodman (1998), with counts as Heafield et al. (2013) adjust them. For a k-gram of
context c and last word w

    p_k(w | c) = max(a(cw) - D(a(cw)), 0) / sum_v a(cv) + g(c) p_{k-1}(w | c')

where c' is c without its first word; a is the number of times cw came for the highest order and for
those that begin a document, else the number of different words before it; D takes one of three
values, by a = 1, 2 or more, from how many k-grams have a = 1, 2, 3, 4; and g gives away what the
discounts took. Below the unigrams all words of the vocabulary are equally likely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ptft_lightning.ngrams.counts import Numbers, Stream, Tally, find, places

Floats = npt.NDArray[np.float64]
ORDERS = range(1, 6)  # that a model may have
FALLBACK = (0.5, 1.0, 1.5)  # where too few counts tell the discounts


class Level(NamedTuple):
    """The k-grams of one order."""

    keys: Numbers
    """(N,), sorted; of unigrams the words themselves."""
    logs: Floats
    """(N,) ln p of the last word after the others."""
    backoff: Floats
    """(N,) ln g of the k-gram as a context; 0 where nothing follows it."""


class Estimate(NamedTuple):
    """A model, and how it came about."""

    levels: list[Level]
    discounts: list[tuple[float, float, float]]
    guessed: list[int]
    """Orders whose discounts are `FALLBACK`."""
    tokens: int


def estimate(stream_of: Callable[[], Iterator[Stream]], vocab_size: int, order: int) -> Estimate:
    """A model of `order` of the documents that `stream_of()` gives, once for each order.

    Words are 0 .. vocab_size - 1; vocab_size itself is the begin word, which is never predicted.
    """
    words = vocab_size + 1
    keys: list[Numbers] = []
    raw: list[Numbers] = []
    tokens = 0
    unigrams = np.zeros(words, np.int64)
    for stream in stream_of():
        unigrams += np.bincount(stream.words, minlength=words)
        tokens += int((stream.depth > 0).sum())
    raw.append(unigrams)
    for k in range(2, order + 1):
        tally = Tally()
        for stream in stream_of():
            *_, place = places(keys, stream, words)
            before = np.concatenate([place[:1], place[:-1]])
            whole = stream.depth >= k - 1
            tally.add(before[whole] * words + stream.words[whole])
        found, counts = tally.finish()
        keys.append(found)
        raw.append(counts)
    return _smooth(keys, raw, vocab_size, tokens)


def _smooth(keys: list[Numbers], raw: list[Numbers], vocab_size: int, tokens: int) -> Estimate:
    words = vocab_size + 1
    suffixes, begins = _relate(keys, words)
    adjusted = []
    for k, counts in enumerate(raw):
        if k + 1 < len(raw):
            different = np.bincount(suffixes[k + 1], minlength=len(counts))
            counts = np.where(begins[k], counts, different)
        adjusted.append(counts)
    adjusted[0] = adjusted[0].copy()
    adjusted[0][vocab_size] = 0  # never predicted

    found = [discounts_of(counts) for counts in adjusted]
    discounts = [FALLBACK if given is None else given for given in found]
    levels: list[Level] = []
    for k, counts in enumerate(adjusted):
        taken = np.array([0.0, *discounts[k]])[np.minimum(counts, 3)]
        contexts = np.zeros(words, np.int64) if k == 0 else keys[k - 1] // words
        size = 1 if k == 0 else len(levels[k - 1].keys)
        total = np.bincount(contexts, counts, minlength=size)
        given = np.bincount(contexts, taken, minlength=size)
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.where(total > 0, given / total, 1.0)
            own = np.where(counts > 0, (counts - taken) / total[contexts], 0.0)
        if k == 0:
            lower = np.full(words, 1 / vocab_size)
        else:
            lower = np.exp(levels[k - 1].logs)[suffixes[k]]
            levels[k - 1] = levels[k - 1]._replace(backoff=np.log(left))
        p = own + left[contexts] * lower
        if k == 0:
            p[vocab_size] = 0.0
        with np.errstate(divide="ignore"):
            logs = np.log(p)
        own_keys = np.arange(words) if k == 0 else keys[k - 1]
        levels.append(Level(own_keys, logs, np.zeros(len(own_keys))))
    guessed = [k + 1 for k, given in enumerate(found) if given is None]
    return Estimate(levels, discounts, guessed, tokens)


def _relate(keys: list[Numbers], words: int) -> tuple[list[Numbers], list[npt.NDArray[np.bool_]]]:
    """For each k-gram the place of its last k - 1 words, and whether it begins a document."""
    suffixes, begins = [np.zeros(words, np.int64)], [np.arange(words) == words - 1]
    for k, own in enumerate(keys, start=1):
        context, last = own // words, own % words
        if k == 1:
            suffixes.append(last)
        else:
            suffixes.append(find(keys[k - 2], suffixes[k - 1][context] * words + last))
        begins.append(begins[k - 1][context])
    return suffixes, begins


def discounts_of(counts: Numbers) -> tuple[float, float, float] | None:
    """D for counts of 1, 2, and 3 or more; None where the counts do not tell.

    D_j = j - (j + 1) Y n_{j+1} / n_j with Y = n_1 / (n_1 + 2 n_2), n_j how many counts are j.
    """
    n = np.bincount(counts[(counts > 0) & (counts < 5)], minlength=5).astype(np.float64)
    if not n[1:].all():
        return None
    y = n[1] / (n[1] + 2 * n[2])
    one, two, three = (j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3))
    if min(one, two, three) < 0 or one > 1 or two > 2 or three > 3:
        return None
    return float(one), float(two), float(three)
