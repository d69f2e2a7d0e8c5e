"""Which documents of a large text are most like a small one: two ways to weigh them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ptft_lightning.data.sample_order import mix, random_key
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.ngrams.counts import Stream, frame
from ptft_lightning.ngrams.estimation import Floats, estimate
from ptft_lightning.ngrams.model import NGramModel

BUCKETS = 10_000  # of hashed n-grams, as Xie et al. (2023)
Documents = list[list[int]]


class Weigher(Protocol):
    """Says how much more a document is like the target than like the general text."""

    def weigh(self, documents: Documents) -> Floats:
        """One number a document (framed ids), higher is liker."""
        ...


class MooreLewis:
    """Cross-entropy difference (Moore & Lewis 2010).

    ln p_target(d) - ln p_general(d), over the tokens of d, by n-gram models of the target and of
    about as much general text.
    """

    def __init__(
        self, target: Documents, general: Documents, tokenizer: Tokenizer, order: int
    ) -> None:
        self.models = [_model(text, tokenizer, order) for text in (target, general)]

    def weigh(self, documents: Documents) -> Floats:
        """See `Weigher`."""
        target, general = (model.score(documents) for model in self.models)
        pairs = zip(target, general, strict=True)
        return np.array([float((t - g).mean()) if len(t) else -np.inf for t, g in pairs])


class HashedImportance:
    """The logarithm of importance weights of hashed n-grams (DSIR, Xie et al. 2023).

    A text is a bag of its tokens and pairs of tokens, each hashed into one of `BUCKETS`; a document
    of counts c_b weighs sum_b c_b ln(p_target(b) / p_general(b)).
    """

    def __init__(self, target: Documents, general: Documents) -> None:
        shares = [self._shares(text) for text in (target, general)]
        self.ratio: Floats = np.log(shares[0]) - np.log(shares[1])

    def weigh(self, documents: Documents) -> Floats:
        """See `Weigher`."""
        return np.array([float(self.ratio[hashed(d)].sum()) for d in documents])

    def _shares(self, text: Documents) -> Floats:
        counts = np.ones(BUCKETS)  # none is impossible
        for document in text:
            counts += np.bincount(hashed(document), minlength=BUCKETS)
        shares: Floats = counts / counts.sum()
        return shares


def hashed(document: list[int]) -> npt.NDArray[np.int64]:
    """The buckets of a document's tokens and of its pairs of tokens."""
    ids = np.asarray(document, np.uint64)
    with np.errstate(over="ignore"):
        grams = np.concatenate([mix(ids + np.uint64(1)), mix(mix(ids[:-1]) + ids[1:])])
    return (grams % np.uint64(BUCKETS)).astype(np.int64)


def gumbel(seed: int, documents: Iterable[str]) -> Floats:
    """Noise for each document, by its text: the highest of weight + noise are a sample without
    replacement in proportion to exp(weight) (Kool et al. 2019)."""
    uniform = [(random_key(seed, "select", text) + 0.5) / 2**64 for text in documents]
    noise: Floats = -np.log(-np.log(np.array(uniform)))
    return noise


def _model(text: Documents, tokenizer: Tokenizer, order: int) -> NGramModel:
    ends = np.cumsum([len(document) for document in text], dtype=np.int64)
    flat = np.concatenate([np.asarray(document, np.int64) for document in text])

    def once() -> Iterator[Stream]:
        yield frame(flat, ends, tokenizer.size)

    found = estimate(once, tokenizer.size, order)
    return NGramModel(found.levels, tokenizer, {})
