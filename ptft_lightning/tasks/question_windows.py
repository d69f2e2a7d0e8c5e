"""Questions and long contexts -> windows of tokens, each with the whole question before a part of
the context; knows no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ptft_lightning.data.examples import Encoded
from ptft_lightning.data.module import say
from ptft_lightning.data.squad import Answer, Question
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.words import stripped
from ptft_lightning.terms import IGNORE

Index = npt.NDArray[np.int64]
NOWHERE = np.zeros(2, np.int64)  # the label of a window without the answer


@dataclass(frozen=True)
class Windows:
    """How windows are cut."""

    stride: int | None
    """Each begins so many tokens after the one before; None: half of what a window holds."""
    longest_question: int
    """Tokens of a question, the rest is cut off; never more than half of a window."""
    train_without: bool
    """Whether a window without the answer trains towards none; else it is left out."""


def encode_questions(
    examples: Sequence[Question], tokenizer: Tokenizer, max_length: int, how: Windows
) -> list[Encoded]:
    """`begin question end context end`, as many windows as cover every token of each context.

    Where a vocabulary has no end token, its padding stands there. Targets of a window: `context`,
    the place of its first token of the context and their number; `label`, the first and the last
    token of the answer among them counted from 1, both 0 where the answer is not among them, both
    IGNORE where that is not known. An answer that reaches into a window only in part is not in it.
    """
    contexts = {text: n for n, text in enumerate(dict.fromkeys(e.text for e in examples))}
    encoded = tokenizer.encode_spans([*contexts])
    asked = tokenizer.encode([e.pair or "" for e in examples])
    most = min(how.longest_question, (max_length - 3) // 2)
    notes = Notes([], [], [], [])
    windows: list[Encoded] = []
    for number, (example, question) in enumerate(zip(examples, asked, strict=True)):
        ids, spans = encoded[contexts[example.text]]
        if len(question) > most:
            notes.cut.append(example.place)
        answer = _answer_tokens(example, spans, notes)
        mine = [*_cut(question[:most], ids, spans, tokenizer, max_length, how.stride)]
        _label(mine, example, answer, how.train_without, notes)
        for window in mine:
            window.place, window.example = example.place, number
        windows += mine
    notes.tell(most, len(examples), len(windows))
    return windows


@dataclass
class Notes:
    """Places of questions that lost something."""

    cut: list[str]
    unread: list[str]
    inside: list[str]
    long: list[str]

    def tell(self, most: int, questions: int, windows: int) -> None:
        """One line for each kind."""
        if windows > questions:
            say(f"{questions} questions are read in {windows} windows")
        for places, what in (
            (self.cut, f"cut to {most} tokens"),
            (self.unread, "with an answer that no token covers: not trained on"),
            (self.inside, "with an answer that begins or ends inside a token: read as all of it"),
            (self.long, "with an answer that fits in no window: not trained on"),
        ):
            if places:
                share = f"{len(places)} of {questions} questions ({len(places) / questions:.1%})"
                say(f"{share} {what}; the first is {places[0]}")


def _answer_tokens(example: Question, spans: Index, notes: Notes) -> tuple[int, int] | None:
    """First and last token of the answer most annotators gave, or the first of several such."""
    if not example.answers:
        return None
    answer: Answer = Counter(example.answers).most_common(1)[0][0]
    start, end = stripped(example.text, answer.start, answer.start + len(answer.text))
    first = int(np.searchsorted(spans[:, 1], start, side="right"))
    last = int(np.searchsorted(spans[:, 0], end, side="left")) - 1
    if first > last:
        notes.unread.append(example.place)
        return None
    if stripped(example.text, int(spans[first, 0]), int(spans[last, 1])) != (start, end):
        notes.inside.append(example.place)
    return first, last


def _cut(
    question: list[int],
    ids: list[int],
    spans: Index,
    tokenizer: Tokenizer,
    max_length: int,
    stride: int | None,
) -> Iterator[Encoded]:
    """Windows without labels; a context of no tokens has one, too."""
    close = [tokenizer.pad if tokenizer.end is None else tokenizer.end]
    left = ([] if tokenizer.begin is None else [tokenizer.begin]) + question + close
    room = max_length - len(left) - 1
    step = min(stride or max(1, room // 2), room)  # no token is passed over
    for start in range(0, max(1, len(ids) - room + step), step):
        part = ids[start : start + room]
        covered = np.zeros((len(left) + len(part) + 1, 2), np.int64)
        covered[len(left) : -1] = spans[start : start + room]
        yield Encoded(
            tokens=[*left, *part, *close],
            segments=[0] * len(left) + [1] * (len(part) + 1),
            targets={"context": np.array([len(left), len(part), start])},
            spans=covered,
        )


def _label(
    windows: list[Encoded],
    example: Question,
    answer: tuple[int, int] | None,
    train_without: bool,
    notes: Notes,
) -> None:
    known = answer is not None or example.answers == ()
    inside = []
    for window in windows:
        _, count, start = window.targets["context"].tolist()
        window.targets["label"] = NOWHERE
        if answer is not None and start <= answer[0] and answer[1] < start + count:
            window.targets["label"] = np.array(answer) - start + 1
            inside.append(window)
        window.targets["context"] = window.targets["context"][:2]
    if answer is not None and not inside:
        notes.long.append(example.place)
        known = False
    for window in windows:
        has_none = window.targets["label"] is NOWHERE
        if not known or (has_none and not train_without):
            window.targets["label"] = np.full(2, IGNORE)
            window.count = 0
