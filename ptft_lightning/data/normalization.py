"""Text before it is encoded: NFKC, traditional -> simplified Chinese; knows no vocabulary.

The steps of a `Tokenizer` that `tokenizers` cannot do by itself, and those before them. Each keeps
track of where its characters come from, so that spans of tokens point into the text as it was
written.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from tokenizers import NormalizedString, PreTokenizedString, Regex, normalizers

from ptft_lightning.errors import UserError

Step = Literal["nfkc", "t2s"]
Spans = npt.NDArray[np.int64]  # (n, 2): first character and the one after the last


def normalize(text: str, steps: Sequence[str]) -> str:
    """`text` after each of the steps in their order: `nfkc` is Unicode's compatibility form
    (UAX #15), `t2s` OpenCC's conversion from traditional to simplified characters.

    Raises:
        UserError: `t2s` without OpenCC.
    """
    for step in steps:
        text = _convert(step)(text)
    return text


def origins(text: str, steps: Sequence[str]) -> Spans:
    """For each character of `normalize(text, steps)`, its span in `text`."""
    spans = _each(len(text))
    for step in steps:
        after = _nfkc_origins(text) if step == "nfkc" else _t2s_origins(text)
        spans = through(after, spans)
        text = _convert(step)(text)
    return spans


def through(spans: Spans, origin: Spans) -> Spans:
    """Spans over characters whose own spans are `origin`, as spans of what those came from."""
    if not len(origin):
        return np.zeros_like(spans)
    first = np.minimum(spans[:, 0], len(origin) - 1)
    last = np.maximum(spans[:, 1] - 1, first)
    return np.stack([origin[first, 0], origin[last, 1]], 1)


def with_marks(spans: Spans, text: str) -> Spans:
    """Spans that end before combining marks moved behind them: normalisers that compose or drop a
    mark give the letter's span alone."""
    ends = spans[:, 1].copy()
    for at, end in enumerate(ends.tolist()):
        while end and end < len(text) and unicodedata.combining(text[end]):
            end += 1
        ends[at] = end
    return np.stack([spans[:, 0], ends], 1)


def check_steps(steps: Sequence[str]) -> None:
    """All steps must be known, and given once.

    Raises:
        ValueError: naming the one that is not.
    """
    known = get_args(Step)
    if wrong := [s for s in steps if s not in known]:
        raise ValueError(f"unknown normalisation {wrong[0]!r}, known are {', '.join(known)}")
    if len(set(steps)) < len(steps):
        raise ValueError(f"normalisation {', '.join(steps)}: name each once")


def _each(length: int) -> Spans:
    begins = np.arange(length, dtype=np.int64)
    return np.stack([begins, begins + 1], 1)


def _nfkc_origins(text: str) -> Spans:
    whole = PreTokenizedString(text)
    whole.normalize(NormalizedString.nfkc)
    whole.split(lambda _, piece: piece.split(Regex(r"[\s\S]"), "isolated"))
    parts = whole.get_splits(offset_referential="original", offset_type="char")
    return np.array([span for _, span, _ in parts], np.int64).reshape(-1, 2)


def _t2s_origins(text: str) -> Spans:
    """Phrases keep their number of characters in all of OpenCC's dictionary that we know of; where
    one does not, the characters of the changed stretch share its span."""
    converted = _convert("t2s")(text)
    spans = _each(len(converted))
    if len(converted) == len(text):
        return spans
    for kind, a, b, c, d in SequenceMatcher(None, text, converted, False).get_opcodes():
        same = kind == "equal" or b - a == d - c
        spans[c:d] = _each(b - a) + a if same else (a, b)
    return spans


@cache
def _convert(step: str) -> Callable[[str], str]:
    """The function of a step; OpenCC's dictionary is loaded once a process."""
    if step == "nfkc":
        return normalizers.NFKC().normalize_str
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise UserError(
            "traditional -> simplified (t2s) needs OpenCC: pip install 'ptft-lightning[zh]'"
        ) from error
    convert: Callable[[str], str] = OpenCC("t2s").convert
    return convert
