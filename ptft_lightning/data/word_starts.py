"""Which tokens begin a word: Chinese by rjieba, all else by the pre-tokenizer; knows no files.

A token belongs to the word of its first character that is not a space. Scripts without spaces
other than Chinese get the pre-tokenizer's stretches, which may be as long as a sentence.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from ptft_lightning.data.token_store import Flags
from ptft_lightning.data.tokenizer import Traced
from ptft_lightning.errors import UserError

# The blocks of CJK ideographs, first and last code point.
HAN = np.array(
    [[0x3400, 0x4DBF], [0x4E00, 0x9FFF], [0xF900, 0xFAFF], [0x20000, 0x2FA1F], [0x30000, 0x3347F]]
)


def segmenter() -> str:
    """Name and version of what finds Chinese words, for the plan of a store.

    Raises:
        UserError: it is not installed.
    """
    _rjieba()
    return f"rjieba {version('rjieba')}"


def _rjieba() -> Any:
    try:
        import rjieba
    except ImportError as error:
        raise UserError(
            "word starts need rjieba, for Chinese words: pip install 'ptft-lightning[zh]'"
        ) from error
    return rjieba


def word_starts(traced: Traced) -> Flags:
    """A token begins a word where the word of its first character is not the last token's."""
    if not traced.ids:
        return np.zeros(0, np.bool_)
    points = np.frombuffer(traced.text.encode("utf-32-le"), np.uint32)
    first = skip_spaces(points, traced.spans)
    words = traced.words
    block = np.searchsorted(HAN[:, 0], points, side="right") - 1
    han = (block >= 0) & (points <= HAN[block, 1])
    if han.any():
        lengths = [len(word) for word in _rjieba().cut(traced.text)]
        chinese = np.repeat(np.arange(len(lengths)), lengths)
        words = np.where(han[first], -1 - chinese[first], words)  # below zero: no pre-tokenizer's
    return np.concatenate([[True], words[1:] != words[:-1]])


def skip_spaces(points: npt.NDArray[np.uint32], spans: npt.NDArray[np.int64]) -> Any:
    """The first character of each span that is not a space; the span's first where all are."""
    index = np.arange(len(points))
    solid = np.minimum.accumulate(np.where(points == ord(" "), len(points), index)[::-1])[::-1]
    begins = np.minimum(spans[:, 0], len(points) - 1)
    return np.where(solid[begins] < spans[:, 1], solid[begins], begins)
