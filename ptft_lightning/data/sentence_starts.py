"""Which tokens begin a sentence, by sentencex; knows no files.

Its English rules know the stops of Chinese, Japanese and other scripts, too, and take one text in
several languages. A line break ends a sentence. Where it fails on a text, lines are sentences. A
token belongs to the sentence of its first character that is not a space.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

import numpy as np

from ptft_lightning.data.token_store import Flags
from ptft_lightning.data.tokenizer import Tokenizer, Traced
from ptft_lightning.data.word_starts import skip_spaces
from ptft_lightning.errors import UserError

RULES = "en"
# sentencex 1.0.32 panics where white space beyond ASCII stands between an initial and a stop
# ("J\u3000.").
PLAIN = {code: " " for code in range(0x80, 0x10000) if chr(code).isspace()}
LINE = re.compile(r"^.*\S.*$", re.MULTILINE)


def splitter(tokenizer: Tokenizer) -> str:
    """Name, version and rules of what finds sentences, for the plan of a store.

    Raises:
        UserError: it is not installed, or the tokenizer cannot frame pairs of sentences.
    """
    check_frame(tokenizer)
    _sentencex()
    return f"sentencex {version('sentencex')} {RULES}"


def check_frame(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer without the tokens that a pair of sentences stands between."""
    if tokenizer.begin is None or tokenizer.end is None:
        raise UserError(
            "pairs of sentences stand between a begin and an end token, and the tokenizer lacks "
            "one of them ([CLS] and [SEP], or <s> and </s>): train one with "
            "`ptft_lightning tokenizer`"
        )


def _sentencex() -> Any:
    try:
        import sentencex
    except ImportError as error:
        raise UserError(
            "sentences are found by sentencex: pip install 'ptft-lightning[sentences]'"
        ) from error
    return sentencex


def sentence_starts(traced: Traced) -> Flags:
    """A token begins a sentence where that of its first character is not the last token's."""
    if not traced.ids:
        return np.zeros(0, np.bool_)
    begins = np.zeros(len(traced.text), np.int64)
    begins[_begins(traced.text)] = 1
    points = np.frombuffer(traced.text.encode("utf-32-le"), np.uint32)
    own = np.maximum.accumulate(begins.cumsum()[skip_spaces(points, traced.spans)])
    return np.concatenate([[True], own[1:] != own[:-1]])


def _begins(text: str) -> list[int]:
    """The first character of each sentence; blank ones, such as empty lines, belong to the sentence
    before."""
    try:
        found = _sentencex().get_sentence_boundaries(RULES, text.translate(PLAIN))
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust, told on standard error
            raise
        return [match.start() for match in LINE.finditer(text)]
    return [piece["start_index"] for piece in found if piece["text"].strip()]
