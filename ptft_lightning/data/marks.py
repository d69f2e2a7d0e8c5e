"""Documents to ids with what is noted of each token: whether a word, a sentence begins there."""

from __future__ import annotations

import numpy as np

from ptft_lightning.data.sentence_starts import sentence_starts, splitter
from ptft_lightning.data.token_store import Marks
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.word_starts import segmenter, word_starts

FINDERS = {"words": word_starts, "sentences": sentence_starts}


def finders(tokenizer: Tokenizer, words: bool, sentences: bool) -> dict[str, str | None]:
    """What finds them, for the plan of a store.

    Raises:
        UserError: it is not installed, or the tokenizer cannot frame pairs of sentences.
    """
    return {
        "segmenter": segmenter() if words else None,
        "splitter": splitter(tokenizer) if sentences else None,
    }


def encode_marked(
    tokenizer: Tokenizer, texts: list[str], kinds: tuple[str, ...]
) -> list[tuple[list[int], Marks]]:
    """For each text what `Tokenizer.encode` gives, and which ids of `Tokenizer.frame` of that
    begin a word or a sentence; the begin and the end token are words of their own, and of no
    sentence."""
    around = int(tokenizer.begin is not None), int(tokenizer.end is not None)

    def padded(kind: str, starts: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Marks:
        return {kind: np.pad(starts, around, constant_values=kind == "words")}

    found = []
    for traced in tokenizer.trace(texts):
        marks: Marks = {}
        for kind in kinds:
            marks |= padded(kind, FINDERS[kind](traced))
        found.append((traced.ids, marks))
    return found
