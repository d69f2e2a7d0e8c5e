"""Files of tagged words in any common format -> examples whose tags are well-formed, with counts
of what was not."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from typing import Literal

from ptft_lightning.data.conll import (
    Sentence,
    read_columns,
    read_parallel,
    read_universal,
)
from ptft_lightning.data.examples import Columns
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.module import say
from ptft_lightning.data.span_files import Marked, read_json
from ptft_lightning.data.streams import bare_name
from ptft_lightning.data.words import (
    Split,
    Words,
    holds_characters,
    join_words,
    split_words,
    stripped,
    words_of,
)
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.tag_checks import first_places, refuse_lost
from ptft_lightning.tasks.tags import (
    OUTSIDE,
    PREFIXES,
    Scheme,
    Span,
    overlapping,
    scheme_of,
    spans_of_tags,
    tags_of_spans,
)

Format = Literal["auto", "conll", "conllu", "json", "parallel"]
FileScheme = Literal["auto", "BIO", "IOB1", "BIOES", "BMES", "BILOU", "none"]
# Other ways of writing B-PER, as B_PER, b-per and PER-B: those of no scheme here.
NEARLY = re.compile(r"[BIMELSU]_.+|[bimelsu][-_].+|.+[-_][BIMELSU]", re.S)
SHOWN = 5  # tags in a message
ENDINGS = {".conllu": "conllu", ".jsonl": "json", ".json": "json", "seq.in": "parallel"}


@dataclass
class TagFiles:
    """How a task reads tagged words; see `Tagging` for the settings."""

    format: Format
    token_column: int
    tag_column: int | str
    scheme: FileScheme
    split: Split
    ill_formed: Literal["repair", "refuse"]
    lost_borders: float

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Words]:
        """The sentences of a file.

        Raises:
            UserError: the file cannot be read, holds nothing, or has tags of no scheme.
        """
        found = self._records(path, columns, labelled, bad)
        if not found and not bad.found:
            raise UserError(f"'{path}' holds no sentences")
        characters = holds_characters([r.tokens for r in found if isinstance(r, Sentence)])
        if labelled and self.split == "auto":  # as the training file has them, from now on
            self.split = "characters" if characters else "edges"
        examples = [
            _joined(record, characters)
            if isinstance(record, Sentence)
            else words_in(record.text, record.place, self.split)
            for record in found
        ]
        if not labelled:
            return examples
        tagged = [e for e in examples if e.labels is not None]
        marked = [
            (example, [Span(*span) for span in record.spans or ()])
            for example, record in zip(examples, found, strict=True)
            if isinstance(record, Marked)
        ]
        return self.formed(path, tagged, bad) + self.tagged(path, marked, bad)

    def _records(
        self, path: str, columns: Columns, labelled: bool, bad: BadExamples
    ) -> list[Sentence | Marked]:
        bare = bare_name(path)
        by_ending = (kind for end, kind in ENDINGS.items() if bare.endswith(end))
        kind = next(by_ending, "conll") if self.format == "auto" else self.format
        if kind == "json":
            return read_json(path, columns, labelled, bad)
        if kind == "parallel":
            tags = "seq.out".join(path.rsplit("seq.in", 1))
            if labelled and tags == path:
                raise UserError(f"'{path}': of parallel files name the one called seq.in")
            return [*read_parallel(path, tags if labelled else None, bad)]
        if kind == "conllu":
            column = "upos" if isinstance(self.tag_column, int) else self.tag_column
            return [*read_universal(path, column if labelled else None, bad)]
        if isinstance(self.tag_column, str):
            raise UserError(
                f"task.tag_column is '{self.tag_column}': '{path}' is no CoNLL-U, give a number"
            )
        if not labelled and self.format == "auto" and bare.endswith(".txt"):
            say(f"'{path}' is read as CoNLL columns, a word a line: for a text a line, give .jsonl")
        return [*read_columns(path, self.token_column, self.tag_column if labelled else None, bad)]

    def formed(self, path: str, examples: list[Words], bad: BadExamples) -> list[Words]:
        """Examples whose tags are well-formed in the file's scheme."""
        scheme = self._scheme(path, {tag for e in examples for tag in e.labels or ()})
        if scheme is None:
            return examples
        kept, repaired, places = list[Words](), 0, list[str]()
        for example in examples:
            tags = example.labels or []
            right = tags_of_spans(spans_of_tags(tags), len(tags), scheme)
            wrong = [i for i in range(len(tags)) if tags[i] != right[i]]
            if wrong and self.scheme != "IOB1":
                if self.ill_formed == "refuse":
                    bad.add(example.place, _out_of_order(example, wrong[0], scheme))
                    continue
                repaired, places = repaired + len(wrong), [*places, example.place]
            kept.append(replace(example, labels=[sys.intern(tag) for tag in right]))
        if places:
            say(
                f"'{path}': {repaired} tags in {len(places)} of {len(examples)} sentences are out "
                f"of the order of {scheme}, as I- without B-, and were read in the conventional "
                f"way: {first_places(places)}"
            )
        return kept

    @property
    def _written(self) -> Scheme:
        """What tags are written in that are not so in their file."""
        if self.scheme == "auto" or self.scheme == "IOB1" or self.scheme == "none":
            return "BIO"
        return self.scheme

    def _scheme(self, path: str, tags: set[str]) -> Scheme | None:
        if self.scheme == "none":
            return None
        try:
            found = scheme_of(tags)
        except ValueError as error:
            raise UserError(
                f"'{path}': {error}: correct them, or set task.scheme none for plain tags"
            ) from error
        if found is None:
            self._refuse_nearly(path, tags - {OUTSIDE})
            return None
        if self.scheme == "auto":
            return found
        wanted = self._written
        if strange := {tag[0] for tag in tags - {OUTSIDE}} - set(PREFIXES[wanted]):
            raise UserError(
                f"'{path}' has tags that begin with {', '.join(sorted(strange))}, which "
                f"{self.scheme} does not know: set task.scheme auto"
            )
        return wanted

    def _refuse_nearly(self, path: str, tags: set[str]) -> None:
        """Plain tags where a scheme is named, or all of which look like those of one: every word
        that is outside would count as found."""
        if tags and (self.scheme != "auto" or all(map(NEARLY.fullmatch, tags))):
            named = "a scheme's" if self.scheme == "auto" else self.scheme
            raise UserError(
                f"'{path}': no tag begins as {named} do, as 'B-PER'; they are "
                f"{', '.join(sorted(tags)[:SHOWN])}: write them so, or set task.scheme none for "
                "plain tags"
            )

    def tagged(
        self, path: str, marked: list[tuple[Words, list[Span]]], bad: BadExamples
    ) -> list[Words]:
        """Examples of texts with stretches, which are widened to whole words where need be."""
        if marked and self.scheme == "none":
            raise UserError(
                f"'{path}' has texts with spans, whose tags need a scheme: set task.scheme auto"
            )
        examples, total, lost = list[Words](), 0, list[str]()
        for example, spans in marked:
            if pair := overlapping(spans):
                both = " and ".join(f"{s.start} to {s.end} ({s.kind})" for s in pair)
                bad.add(example.place, f"spans {both} overlap, a word has one tag: keep one")
                continue
            whole = list[Span]()
            for span in sorted(spans, key=lambda span: span.start):
                kind, (start, end) = span.kind, stripped(example.text, span.start, span.end)
                first, last, fits = words_of((start, end), example.words)
                if not fits:
                    lost.append(f"{example.place} ('{example.text[start:end]}')")
                if first < last and not (whole and first < whole[-1].end):
                    whole.append(Span(kind, first, last))
            total += len(spans)
            tags = tags_of_spans(whole, len(example.words), self._written)
            examples.append(replace(example, labels=tags))
        told = "begin or end inside a word"
        refuse_lost(path, told, lost, total, self.lost_borders, "set task.split signs")
        return examples


def _out_of_order(example: Words, word: int, scheme: Scheme) -> str:
    tag = (example.labels or [])[word]
    return (
        f"tag '{tag}' of word {word + 1}, '{example.tokens[word]}', is out of the order of "
        f"{scheme}: correct it, or set task.ill_formed repair"
    )


def words_in(text: str, place: str, split: Split) -> Words:
    """An example of a text that has no words yet."""
    return Words(text, None, None, place, words=split_words(text, split))


def _joined(sentence: Sentence, characters: bool) -> Words:
    joined = join_words(sentence.tokens, characters, sentence.glued)
    tags = None if sentence.tags is None else [sys.intern(tag) for tag in sentence.tags]
    return replace(joined, place=sentence.place, labels=tags)
