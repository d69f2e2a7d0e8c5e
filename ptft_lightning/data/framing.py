"""An example's text, or its two, between the tokens of a model's frame; knows no task."""

from __future__ import annotations

from ptft_lightning.data.examples import Encoded, Example
from ptft_lightning.data.tokenizer import Tokenizer


def frame_example(examples: list[Example], tokenizer: Tokenizer, max_length: int) -> list[Encoded]:
    """`begin text end` or `begin text end pair end`, the longer part cut first to `max_length`."""
    firsts = tokenizer.encode([e.text for e in examples])
    seconds = tokenizer.encode([e.pair or "" for e in examples])
    encoded = [
        _frame(first, second if e.pair is not None else None, tokenizer, max_length, e.place)
        for e, first, second in zip(examples, firsts, seconds, strict=True)
    ]
    for number, item in enumerate(encoded):
        item.example = number
    return encoded


def _frame(
    first: list[int], second: list[int] | None, tokenizer: Tokenizer, max_length: int, place: str
) -> Encoded:
    end = [] if tokenizer.end is None else [tokenizer.end]
    begin = [] if tokenizer.begin is None else [tokenizer.begin]
    room = max_length - len(begin) - len(end) * (1 if second is None else 2)
    total = len(first) + len(second or [])
    if second is None:
        left, right = begin + first[:room] + end, []
    else:
        keep = min(len(first), max(room - len(second), room // 2))
        left, right = begin + first[:keep] + end, second[: room - keep] + end
    left = left or [tokenizer.pad] * (not right)  # an example has a token to be read from
    segments = [0] * len(left) + [1] * len(right)
    return Encoded(left + right, segments, cut=max(0, total - room), place=place)
