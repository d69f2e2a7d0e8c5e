"""Questions about contexts: SQuAD's JSON (1.1 and 2.0) or a flat .jsonl in, examples out.

Knows no tokens. A question's `text` is its context, so that a held-out share keeps the questions
about a paragraph together.
"""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ptft_lightning.data.examples import Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.streams import COMPRESSED, Damaged, bare_name, open_bytes
from ptft_lightning.errors import UserError

ANSWER_FIELDS = ("text", "answer_start")
SHOWN = 40  # characters of a text in a message


class Answer(NamedTuple):
    """A stretch of the context."""

    text: str
    start: int
    """Its first character."""


@dataclass(frozen=True)
class Question(Example):
    """A question (`pair`) about a context (`text`)."""

    id: str = ""
    answers: tuple[Answer, ...] | None = None
    """What is right, by several annotators; empty where the context has no answer, None where
    nobody said."""

    @property
    def said(self) -> dict[str, Any]:
        """The context is left out: many questions share it."""
        return {"id": self.id, "question": self.pair}

    @property
    def gold(self) -> Any:
        """The right answers' texts."""
        return None if self.answers is None else [answer.text for answer in self.answers]


class Unusable(Exception):
    """What is wrong with one question."""


def read_questions(
    path: str, labelled: bool, unanswerable: bool, bad: BadExamples
) -> list[Question]:
    """The questions of a .json file in SQuAD's layout or of a .jsonl file, also .gz or .zst.

    A line of .jsonl holds `id`, `question`, `context` and, for training, `answers` with the lists
    `text` and `answer_start`, both empty where there is no answer.

    Args:
        labelled: Whether answers are needed; else they are not looked at.
        unanswerable: Whether a context may lack the answer (`is_impossible`).
        bad: Gets the questions that cannot be used.

    Raises:
        UserError: no file, another format, or not a question in it.
    """
    bare = bare_name(path)
    if bare.endswith(".jsonl"):
        records = _lines(path)
    elif bare.endswith(".json"):
        records = _nested(path)
    else:
        raise UserError(
            f"cannot read '{path}': expected SQuAD's .json, or .jsonl, also with "
            f"{' or '.join(COMPRESSED)}"
        )
    found: list[Question] = []
    for place, record in records:
        try:
            found.append(_question(place, record, labelled, unanswerable))
        except Unusable as error:
            bad.add(place, str(error))
        except UserError as error:  # an example that is not valid Unicode says its place itself
            bad.add(place, str(error).removeprefix(f"{place}: "))
    if not found and not bad.found:
        raise UserError(f"'{path}' holds no questions")
    return found


def _text(path: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig")


def _lines(path: str) -> Iterator[tuple[str, Any]]:
    try:
        with _text(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    place = f"{path} line {number}"
                    yield place, _parsed(line, place)
    except (UnicodeDecodeError, Damaged) as error:
        raise _unreadable(path, error) from error


def _nested(path: str) -> Iterator[tuple[str, Any]]:
    """Flat records of SQuAD's articles, paragraphs and questions; what is no list of such, or no
    paragraph, comes as it is, to be found unusable."""
    try:
        with _text(path) as stream:
            content = _parsed(stream.read(), f"'{path}'")
    except (UnicodeDecodeError, Damaged) as error:
        raise _unreadable(path, error) from error
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        raise UserError(
            f"'{path}' has no list 'data' of articles: give SQuAD's layout, or flat lines in a "
            ".jsonl file"
        )
    for i, article in enumerate(articles):
        for j, paragraph in enumerate(_list_in(article, "paragraphs")):
            for k, asked in enumerate(_list_in(paragraph, "qas")):
                place = f"{path} data[{i}].paragraphs[{j}].qas[{k}]"
                flat = isinstance(asked, dict) and "context" in paragraph
                yield place, {**asked, "context": paragraph["context"]} if flat else asked


def _list_in(record: Any, name: str) -> list[Any]:
    """A named list; a record without one stands for itself, and is found unusable later."""
    found = record.get(name) if isinstance(record, dict) else None
    return found if isinstance(found, list) else [record]


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error})") from error


def _unreadable(path: str, error: Exception) -> UserError:
    if isinstance(error, Damaged):
        return UserError(f"'{path}' is damaged, get it again: {error}")
    return UserError(f"'{path}' is not UTF-8: {error}")


def _question(place: str, record: Any, labelled: bool, unanswerable: bool) -> Question:
    if not isinstance(record, dict):
        raise Unusable(f"not a question but {_shown(record)}")
    for name in ("id", "question", "context", *(["answers"] if labelled else [])):
        if record.get(name) is None and not (name == "answers" and record.get("is_impossible")):
            raise Unusable(f"no '{name}', only {', '.join(map(repr, record))}")
    for name in ("question", "context"):
        if not isinstance(record[name], str) or not visible(record[name]):
            raise Unusable(f"the {name} is {_shown(record[name])}: give a text")
    answers = _answers(record, unanswerable) if labelled else None
    context, asked = record["context"], record["question"]
    return Question(context, asked, None, place, id=str(record["id"]), answers=answers)


def _answers(record: dict[str, Any], unanswerable: bool) -> tuple[Answer, ...]:
    given = record.get("answers") or []
    if isinstance(given, dict):  # one list a field, as in tables
        texts, starts = (given.get(name) for name in ANSWER_FIELDS)
        if not (isinstance(texts, list) and isinstance(starts, list)) or len(texts) != len(starts):
            raise Unusable("answers need the lists 'text' and 'answer_start', equally long")
        pairs = zip(texts, starts, strict=True)
        given = [dict(zip(ANSWER_FIELDS, pair, strict=True)) for pair in pairs]
    elif not isinstance(given, list):
        raise Unusable(f"the answers are {_shown(given)}: give a list")
    if record.get("is_impossible"):
        if given:
            raise Unusable("is_impossible, and yet it has answers: leave one of them out")
    elif not given and record.get("is_impossible") is not None:
        raise Unusable("no answer, and yet is_impossible is false")
    if not given and not unanswerable:
        raise Unusable("no answer: where that is meant (SQuAD 2.0), set task.unanswerable true")
    return tuple(_answer(answer, record["context"]) for answer in given)


def _answer(given: Any, context: str) -> Answer:
    text, start = (given.get(k) if isinstance(given, dict) else None for k in ANSWER_FIELDS)
    if not isinstance(text, str) or type(start) is not int:
        raise Unusable(f"an answer is {_shown(given)}: it needs a 'text' and an 'answer_start'")
    if not visible(text):
        raise Unusable(f"an answer is {_shown(text)}: it has no character that is read")
    if start < 0 or context[start : start + len(text)] != text:
        raise Unusable(_astray(text, start, context))
    return Answer(text, start)


def _astray(text: str, start: int, context: str) -> str:
    """Where an answer is instead: most such files count bytes, or lost or gained a space."""
    at = max(start, 0)
    after, before = context.find(text, at), context.rfind(text, 0, max(at + len(text) - 1, 0))
    places = [place for place in (before, after) if place >= 0]
    there = "which the context does not have"
    if places:
        there = f"the nearest one is at {min(places, key=lambda place: abs(place - start))}"
    stands = _shown(context[at : at + len(text)])
    return f"the answer {_shown(text)} is not at character {start}, where {stands} stands; {there}"


def visible(text: str) -> bool:
    """Whether anything but spaces and controls is in it."""
    return any(unicodedata.category(c)[0] not in "ZC" for c in text)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
