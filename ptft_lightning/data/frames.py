"""Predicates with their arguments, a sentence a line -> an example for each predicate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.lines import json_records
from ptft_lightning.data.module import say
from ptft_lightning.data.words import Words, holds_characters, join_words, split_words
from ptft_lightning.errors import UserError

Argument = tuple[str, int, int]
MARKED = re.compile(r"\[([^][]+)\]")


@dataclass(frozen=True, eq=False)
class Frame(Words):
    """A sentence and one of its predicates."""

    predicate: int = 0
    """Which word it is."""
    arguments: tuple[Argument, ...] = ()
    """Role, first word, and the one after the last."""

    @property
    def said(self) -> dict[str, Any]:
        """The sentence, its words, and which of them is the predicate."""
        start, end = self.words[self.predicate].tolist()
        return {
            **super().said,
            "predicate": {"word": self.predicate, "text": self.text[start:end]},
        }


def read_frames(path: str, labelled: bool, bad: BadExamples) -> list[Frame]:
    """`{"tokens": [..], "frames": [{"predicate": word, "args": [[role, first, last], ..]}, ..]}` a
    line, words numbered from 0, the last one of an argument its own.

    Raises:
        UserError: the file cannot be read or has no predicate at all.
    """
    records = list(json_records(path))
    characters = holds_characters([_tokens(record) for _, record in records])
    frames, without = list[Frame](), 0
    for place, record in records:
        tokens, given = _tokens(record), record.get("frames")
        if not tokens or not isinstance(given, list):
            bad.add(place, "no words under 'tokens', or no list under 'frames'")
            continue
        without += not given
        sentence = join_words(tokens, characters)
        for number, frame in enumerate(given, start=1):
            at = place if len(given) == 1 else f"{place} frame {number}"
            if reason := _wrong(frame, len(tokens), labelled):
                bad.add(at, reason)
                continue
            frames.append(_frame(frame, sentence, at, labelled))
    if not frames and not bad.found:
        raise UserError(f"'{path}' holds no predicates")
    if without:
        say(f"'{path}': {without} of {len(records)} sentences have no predicate and are left out")
    return frames


def _frame(frame: dict[str, Any], sentence: Words, place: str, labelled: bool) -> Frame:
    arguments = frame["args"] if labelled else []
    return Frame(
        *(sentence.text, None, None, place),
        words=sentence.words,
        predicate=frame["predicate"],
        arguments=tuple((str(role), first, last + 1) for role, first, last in arguments),
    )


def typed_frame(text: str, place: str) -> Frame:
    """A sentence typed by a person, its predicate in brackets.

    Raises:
        UserError: not one word is in brackets.
    """
    marks = list(MARKED.finditer(text))
    if len(marks) == 1:
        start, end = marks[0].start(), marks[0].end() - 2
        plain = text[:start] + marks[0][1] + text[marks[0].end() :]
        words = split_words(plain)
        at = [n for n, word in enumerate(words.tolist()) if word == [start, end]]
        if at:
            return Frame(plain, None, None, place, words=words, predicate=at[0])
    raise UserError(f"{place}: put the predicate, one word, in brackets: 'The cat [sees] it.'")


def _tokens(record: dict[str, Any]) -> list[str]:
    tokens = record.get("tokens")
    fine = isinstance(tokens, list) and all(isinstance(t, str) and t for t in tokens)
    return list(tokens) if fine and tokens else []


def _wrong(frame: Any, words: int, labelled: bool) -> str | None:
    """What is wrong with a frame, if anything."""
    if not isinstance(frame, dict) or type(frame.get("predicate")) is not int:
        return "a frame has no number of a word under 'predicate'"
    if not 0 <= frame["predicate"] < words:
        return f"predicate {frame['predicate']} is outside the sentence of {words} words"
    if not labelled:
        return None
    arguments = frame.get("args")
    if not isinstance(arguments, list):
        return "a frame has no list under 'args'"
    taken = dict[int, str]()
    for argument in arguments:
        if not isinstance(argument, list) or len(argument) != 3:
            return f"argument {argument!r} is not [role, first word, last word]"
        role, first, last = argument
        if type(first) is not int or type(last) is not int or not 0 <= first <= last < words:
            return f"argument {argument!r} is outside the sentence of {words} words"
        for word in range(first, last + 1):
            if word in taken:
                return f"arguments {taken[word]} and {role} share word {word}: a word has one role"
            taken[word] = role
    return None
