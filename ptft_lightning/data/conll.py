"""Tagged sentences, a word a line: CoNLL columns and CoNLL-U; and parallel lines of words and tags.

Knows nothing of what tags mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import cast

from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.lines import text_lines
from ptft_lightning.errors import UserError

COMMENT = re.compile(r"#\s?\w+( id)?\s*=|# id ")
UNIVERSAL_COMMENT = re.compile("#")  # there a token's line begins with its number
LANGUAGE = re.compile(r"([a-z]{2,3}):.")
# The columns of CoNLL-U by their names.
UNIVERSAL = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


@dataclass
class Sentence:
    """Tokens with their tags, if any, and where the first stood."""

    place: str
    tokens: list[str] = field(default_factory=list)
    tags: list[str] | None = None
    glued: list[bool] = field(default_factory=list)
    """Of each token whether no space comes before it, where the file tells."""


Row = tuple[str, list[str]]


def read_columns(path: str, token: int, tag: int | None, bad: BadExamples) -> list[Sentence]:
    """CoNLL: a token a line with its columns, cut by tabs or else by spaces, blank lines between
    sentences; lines of `-DOCSTART-` and comments are no tokens.

    Args:
        path: The file.
        token: The column of the word, from 0; negative ones count from the end.
        tag: The column of the tag; None: there is none.
        bad: Gets the sentences that have a line with other columns than the file's first.
    """
    sentences, width = list[Sentence](), 0
    for rows in _blocks(path, _columns):
        rows = [row for row in rows if row[1][0] != "-DOCSTART-"]
        if not rows:
            continue
        if not width:
            width = len(rows[0][1])
            _check_column(path, width, token, tag)
        wrong = next(((place, len(r)) for place, r in rows if len(r) != width or "" in r), None)
        if wrong is not None:
            place, count = wrong
            bad.add(place, f"{count} columns that are not empty, the first line has {width}")
            continue
        tags = None if tag is None else [row[tag] for _, row in rows]
        sentences.append(Sentence(rows[0][0], [row[token] for _, row in rows], tags))
    _strip_language(sentences)
    return sentences


def read_universal(path: str, tag: str | None, bad: BadExamples) -> list[Sentence]:
    """CoNLL-U: the syntactic words with the tag of a column; the lines of multiword tokens and of
    empty nodes, which are no words of their own, are left out.

    Args:
        path: The file.
        tag: `upos`, `xpos` or another column's name; None: no tags.
        bad: Gets the sentences that have a line without ten columns.
    """
    if tag is not None and tag not in UNIVERSAL:
        raise UserError(
            f"'{path}': CoNLL-U has no column '{tag}': set task.tag_column to one of "
            f"{', '.join(UNIVERSAL[2:])}"
        )
    sentences, at = [], None if tag is None else UNIVERSAL.index(tag)
    for rows in _blocks(path, lambda line: line.split("\t"), comment=UNIVERSAL_COMMENT):
        wrong = next((place for place, row in rows if len(row) != len(UNIVERSAL)), None)
        if wrong is not None:
            bad.add(wrong, f"not the {len(UNIVERSAL)} columns of CoNLL-U, cut by tabs")
            continue
        rows = [row for row in rows if row[1][0].isdigit()]
        if not rows:
            continue
        sentence = Sentence(rows[0][0], [row[1] for _, row in rows])
        sentence.tags = None if at is None else [row[at] for _, row in rows]
        after = ["SpaceAfter=No" in row[9].split("|") for _, row in rows]
        sentence.glued = [False, *after[:-1]]
        sentences.append(sentence)
    return sentences


def read_parallel(path: str, tags: str | None, bad: BadExamples) -> list[Sentence]:
    """A sentence a line, tokens between spaces, and another file with their tags."""
    sentences = []
    beside: Iterable[tuple[int, str]] = text_lines(tags) if tags else ()
    for mine, theirs in zip_longest(text_lines(path), beside):
        if tags and (mine is None or theirs is None):
            raise UserError(f"'{path}' and '{tags}' differ in their number of lines")
        number, line = cast(tuple[int, str], mine)
        place, tokens = f"{path} line {number}", line.split()
        said = theirs[1].split() if theirs else None
        if said is not None and len(said) != len(tokens):
            bad.add(place, f"{len(tokens)} tokens and {len(said)} tags")
        elif not tokens:
            bad.add(place, "a sentence without tokens")
        else:
            sentences.append(Sentence(place, tokens, said))
    return sentences


def _blocks(
    path: str, cut: Callable[[str], list[str]], comment: re.Pattern[str] = COMMENT
) -> Iterator[list[Row]]:
    """Sentences as places and columns of their lines."""
    rows = list[Row]()
    for number, line in text_lines(path):
        if line.strip(" \t\r"):
            if not comment.match(line):
                rows.append((f"{path} line {number}", cut(line)))
        elif rows:
            yield rows
            rows = []
    if rows:
        yield rows


def _columns(line: str) -> list[str]:
    # Not at every white space: a token may be an ideographic or non-breaking one.
    line = line.strip(" \r")
    return line.rstrip("\t").split("\t") if "\t" in line else re.split(" +", line)


def _check_column(path: str, width: int, token: int, tag: int | None) -> None:
    for name, column in (("token_column", token), ("tag_column", tag)):
        if column is not None and not -width <= column < width:
            raise UserError(
                f"'{path}' has {width} columns: task.{name} {column} is none of them (0 to "
                f"{width - 1}, or -1 for the last)"
            )
    if tag is not None and tag % width == token % width:
        raise UserError(
            f"'{path}': column {token} of {width} would hold both tokens and tags: set "
            "task.token_column and task.tag_column, or separate the columns with tabs or spaces"
        )


def _strip_language(sentences: list[Sentence]) -> None:
    """Of `en:word`, as in WikiANN, only the word, where all tokens of a file begin so."""
    match = LANGUAGE.match(sentences[0].tokens[0]) if sentences else None
    if match is None:
        return
    prefix = f"{match[1]}:"
    if all(token.startswith(prefix) and token != prefix for s in sentences for token in s.tokens):
        for sentence in sentences:
            sentence.tokens = [token.removeprefix(prefix) for token in sentence.tokens]
