"""Texts with two entities and the relation between them: files in, examples out; knows no model.

Two ways of saying where the entities are. Marks inside the text:

    {"text": "The <e1>child</e1> was put into the <e2>cradle</e2>.", "label": "Other"}

or two fields beside it, head and tail: a name, which is looked for in the text, or a stretch, which
counts characters of a text and words of a list of words. A stretch is [start, end] or a mapping
whose `pos` is one.

    {"text": "Ada met Ben.", "head": "Ada", "tail": [8, 11], "label": "met"}
    {"text": ["Ada", "met", "Ben", "."], "head": [0, 1], "tail": [2, 3], "label": "met"}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ptft_lightning.data.examples import Columns, Example, read_records
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.lines import text_lines
from ptft_lightning.data.module import say
from ptft_lightning.data.streams import bare_name
from ptft_lightning.data.words import stripped
from ptft_lightning.errors import UserError

Span = tuple[int, int]
MARKS = ("<e1>", "</e1>", "<e2>", "</e2>")
# Two letters or digits, none of them an ideograph or kana.
BORDERLESS = re.compile(r"[^\W\u2e80-\ud7ff\uf900-\ufaff]{2}")
NUMBERED = re.compile(r'\d+\t"?(.*?)"?')  # a sentence of the SemEval file


@dataclass(frozen=True)
class Related(Example):
    """A text with two entities, none of whose characters are common to both."""

    head: Span = (0, 0)
    """The first character of an entity and the one after its last."""
    tail: Span = (0, 0)
    types: tuple[str, str] | None = None
    """Of head and tail."""

    @property
    def said(self) -> dict[str, Any]:
        """The text, its two entities and where they stand."""
        said: dict[str, Any] = {"text": self.text}
        for name, (start, end) in (("head", self.head), ("tail", self.tail)):
            said |= {name: self.text[start:end], f"{name}_span": [start, end]}
        return said


@dataclass(frozen=True)
class RelationFormat:
    """How a file says where head and tail are."""

    marks: tuple[str, ...] | None
    """Four pieces of text around head and tail; None: they are in fields."""
    head: str
    tail: str
    """Names of the two fields."""
    types: tuple[str, str] | None
    """Names of the fields that hold the entities' types."""
    last: bool
    """Whether a stretch names its last character or word, not the one after it."""
    joiner: str
    """What stands between the words of a list."""


def read_relations(
    path: str, columns: Columns, how: RelationFormat, labelled: bool, bad: BadExamples
) -> list[Example]:
    """The examples of a .jsonl, .csv or .tsv file, or of a .txt as SemEval-2010 task 8 has it.

    Those whose entities cannot be placed are noted in `bad`. A name that occurs several times is
    taken where head and tail are nearest to each other, and such examples are counted.

    Raises:
        UserError: a file, line or column that cannot be read.
    """
    found: list[Example] = []
    unsure = []
    for place, record in _rows(path, columns):
        needed = [columns.text, columns.label] if labelled else [columns.text]
        needed += [] if how.marks else [how.head, how.tail]
        needed += how.types or ()
        for name in needed:
            if name not in record:
                raise UserError(
                    f"{place}: no column '{name}'; the columns are {list(record)}: set "
                    "data.columns.text or .label, model.task.head, .tail, .types or .marks"
                )
        if blank := [name for name in needed if _is_blank(record[name])]:
            bad.add(place, f"{blank[0]} is empty: give it, or leave the line out")
            continue
        label = str(record[columns.label]) if labelled else None
        try:
            example, ways = _related(record, columns, how, label, place)
        except ValueError as error:
            bad.add(place, str(error))
            continue
        found.append(example)
        unsure += [place] if ways > 1 else []
    if not found and not bad.found:
        raise UserError(f"'{path}' holds no examples")
    if unsure:
        say(
            f"'{path}': {len(unsure)} of {len(found)} examples name an entity that occurs several "
            f"times: the two nearest to each other are meant; the first at {unsure[0]}"
        )
    return found


def _is_blank(value: Any) -> bool:
    """Nothing, or nothing but spaces; a label may be 0."""
    return value is None or value == [] or not str(value).strip()


def marked(text: str, marks: tuple[str, ...], label: str | None, place: str) -> Related:
    """A text with marks around head and tail, in either order; they are taken out.

    Raises:
        ValueError: a mark is missing, stands twice, or at a wrong place.
    """
    for mark in marks:
        if (times := text.count(mark)) != 1:
            raise ValueError(f"'{mark}' stands {times} times in the text, not once")
    spans = [(text.index(a), text.index(b) + len(b)) for a, b in (marks[:2], marks[2:])]
    for (start, end), opening, closing in zip(spans, marks[::2], marks[1::2], strict=True):
        if end - start < len(opening) + len(closing):
            raise ValueError(f"'{closing}' stands before '{opening}'")
        if not text[start + len(opening) : end - len(closing)].strip():
            raise ValueError(f"nothing stands between '{opening}' and '{closing}': mark an entity")
    if max(spans)[0] < min(spans)[1]:
        raise ValueError("head and tail overlap: mark two stretches apart")
    plain, at = _without(text, marks)
    return _checked(plain, (at[0], at[1]), (at[2], at[3]), None, label, place)


def _without(text: str, marks: tuple[str, ...]) -> tuple[str, list[int]]:
    """A text without its marks, and where each of them stood.

    Of the two spaces around a mark that is a word of its own, as in `in [[ nouns ]] and`, one is
    the mark's.
    """
    out = []
    for number, mark in enumerate(marks):
        start = text.index(mark)
        end = start + len(mark)
        before, after = text[:start][-1:], text[end : end + 1]
        if number % 2 == 0:  # an opening one
            end += after == " " and before in ("", " ")
        else:
            start -= before == " " and after in ("", " ")
        out.append((start, end))
    at = [start - sum(e - s for s, e in out if e <= start) for start, _ in out]
    for start, end in sorted(out, reverse=True):
        text = text[:start] + text[end:]
    return text, at


def _rows(path: str, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    if bare_name(path).endswith(".txt"):
        return _numbered(path, columns)
    return read_records(path, columns)


def _numbered(path: str, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    """`number TAB "sentence"`, a line with the relation if there is one, comments, blank lines."""
    lines = [line.strip() for _, line in text_lines(path)]
    for number, line in enumerate(lines, start=1):
        if not (sentence := NUMBERED.fullmatch(line)):
            continue
        record: dict[str, Any] = {columns.text: sentence[1]}
        following = "".join(lines[number : number + 1])
        if following and not (NUMBERED.fullmatch(following) or following.startswith("Comment:")):
            record[columns.label] = following
        yield f"{path} line {number}", record


def _related(
    record: dict[str, Any], columns: Columns, how: RelationFormat, label: str | None, place: str
) -> tuple[Related, int]:
    """An example, and in how many ways its names could be placed."""
    text = record[columns.text]
    if how.marks is not None:
        return marked(str(text), how.marks, label, place), 1
    words = [str(word) for word in text] if isinstance(text, list) else None
    plain = str(text) if words is None else how.joiner.join(words)
    places = [_places(record[name], name, plain, words, how) for name in (how.head, how.tail)]
    apart = [(h, t) for h in places[0] for t in places[1] if h[1] <= t[0] or t[1] <= h[0]]
    if not apart:
        raise ValueError(
            f"{how.head} '{_piece(plain, places[0][0])}' and {how.tail} "
            f"'{_piece(plain, places[1][0])}' overlap: name two stretches apart"
        )
    head, tail = min(apart, key=_distance)
    types = None if how.types is None else (str(record[how.types[0]]), str(record[how.types[1]]))
    return _checked(plain, head, tail, types, label, place), len(apart)


def _distance(pair: tuple[Span, Span]) -> int:
    (first, last) = sorted(pair)
    return last[0] - first[1]


def _piece(text: str, span: Span) -> str:
    return text[slice(*span)]


def _inside_word(text: str, span: Span) -> bool:
    """Whether a stretch is a part of a longer word; Chinese has no spaces to tell."""
    return any(0 < at < len(text) and BORDERLESS.fullmatch(text[at - 1 : at + 1]) for at in span)


def _places(
    value: Any, name: str, text: str, words: list[str] | None, how: RelationFormat
) -> list[Span]:
    """The stretches of a text that a field can mean."""
    value = value.get("pos") if isinstance(value, dict) else value
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"{name} is empty: name an entity")
        pattern = re.compile(f"(?={re.escape(value)})")
        found = [(m.start(), m.start() + len(value)) for m in pattern.finditer(text)]
        # "US" is not meant in "RUSSIA", where it also stands by itself.
        found = [span for span in found if not _inside_word(text, span)] or found
        if not found:
            raise ValueError(f"{name} '{value}' does not occur in the text")
        return found
    if not (isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)):
        raise ValueError(f"{name} is {value!r}: give a name, or [start, end]")
    start, end = value[0], value[1] + how.last
    size, unit = (len(text), "characters") if words is None else (len(words), "words")
    if not 0 <= start < end <= size:
        raise ValueError(f"{name} is {value}, the text has {size} {unit}: correct the offsets")
    if words is None:
        return [(start, end)]
    first = len(how.joiner.join([*words[:start], ""])) if start else 0
    return [(first, first + len(how.joiner.join(words[start:end])))]


def _checked(
    text: str,
    head: Span,
    tail: Span,
    types: tuple[str, str] | None,
    label: str | None,
    place: str,
) -> Related:
    trimmed = [stripped(text, *entity) for entity in (head, tail)]
    for name, (start, end) in zip(("head", "tail"), trimmed, strict=True):
        if start == end:
            raise ValueError(f"the {name} is blank: mark some text")
    if max(trimmed)[0] < min(trimmed)[1]:
        raise ValueError("head and tail overlap: mark two stretches apart")
    return Related(text, None, label, place, None, trimmed[0], trimmed[1], types)
