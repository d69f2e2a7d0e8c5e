"""Sequence labelling: a tag for every word, as of names, parts of speech, chunks and slots."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, cast

import numpy as np

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.examples import Columns, Encoded, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.word_windows import Aligned, align_words, encode_windows
from ptft_lightning.data.words import Split, Words
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import Arrays, Scored, Task, TaskHead
from ptft_lightning.tasks.crf import ChainCRF
from ptft_lightning.tasks.tag_checks import check_borders, tell_tokenless, tell_windows
from ptft_lightning.tasks.tag_files import (
    FileScheme,
    Format,
    TagFiles,
    words_in,
)
from ptft_lightning.tasks.tags import (
    OUTSIDE,
    Scheme,
    Span,
    kinds_of,
    scheme_of,
    span_scores,
    spans_of_tags,
    tag_set,
    tags_of_spans,
)
from ptft_lightning.tasks.word_head import WordHead, WordPooling
from ptft_lightning.terms import IGNORE

Monitor = Literal["f1", "macro_f1", "accuracy", "loss"]


class Tagging(Task):
    """A tag for every word: entities (BIO and the like), or plain tags as parts of speech.

    The loss is the mean over words. Sentences longer than `data.max_length` are read in overlapping
    windows, and every word is predicted in the one where it sees most; none is cut off.

    Args:
        format: Of the files; `auto` goes by the ending: .conllu, .jsonl and .json (tokens and tags,
            texts with spans as of doccano, Label Studio), seq.in beside seq.out (`parallel`), any
            other is CoNLL columns.
        token_column: Of CoNLL, from 0.
        tag_column: Of CoNLL, a number (-1: the last); of CoNLL-U a name: upos (the default), xpos,
            deprel, ...
        scheme: Of the files' tags; `auto` goes by the prefixes, and IOB1, which they do not tell,
            is read into BIO. Of texts with spans: how they are tagged. `none`: plain tags.
        split: How texts that come without words are cut: punctuation at the `edges` of what stands
            between spaces is a word of its own, or all `signs` inside, too; ideographs always are,
            and with `characters` all are. `auto`: `characters` where those were the words of the
            training file, else `edges`; the bundle says which.
        ill_formed: What to do with sentences whose tags are out of their scheme's order, as I-
            without B-: read them as conlleval does and count them, or refuse them as bad examples.
        lost_borders: Share of the entities that may begin or end inside a token or word, where no
            tag can say it.
        presplit: Encode every word by itself, so that no token covers parts of two.
        pooling: Which hidden state is a word's: that of its first token, its last, or the mean of
            all; `auto` is the first, of causal models the last, which has seen the word.
        overlap: Share of a window that the next one has, too.
        crf: Score steps from tag to tag too, and forbid those that the scheme does.
        dropout: Probability on the hidden states, in training.
        strict: Entities count only if their tags are well-formed (seqeval's strict mode).
        monitor: The validation metric that decides which bundle is best. Of plain tags, f1 is the
            accuracy.
    """

    name = "tagging"
    shaping = ("pooling", "crf", "presplit")
    judged = True
    answer: ClassVar[str] = "entities"
    """What a line of predictions calls its spans."""

    def __init__(
        self,
        format: Format = "auto",
        token_column: int = 0,
        tag_column: int | str = -1,
        scheme: FileScheme = "auto",
        split: Split = "auto",
        ill_formed: Literal["repair", "refuse"] = "repair",
        lost_borders: float = 0.01,
        presplit: bool = False,
        pooling: WordPooling = "auto",
        overlap: float = 0.25,
        crf: bool = False,
        dropout: float = 0.1,
        strict: bool = False,
        monitor: Monitor = "f1",
    ) -> None:
        self.files = TagFiles(
            format, token_column, tag_column, scheme, split, ill_formed, lost_borders
        )
        self.presplit, self.pooling, self.overlap = presplit, pooling, overlap
        self.crf, self.dropout, self.strict = crf, dropout, strict
        self.watch(monitor)
        if not 0 <= overlap <= 0.5:
            raise UserError(f"task.overlap is {overlap}: give a share from 0 to 0.5")
        if not 0 <= lost_borders <= 1:
            raise UserError(f"task.lost_borders is {lost_borders}: give a share from 0 to 1")

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {
            **vars(self.files),
            "presplit": self.presplit,
            "pooling": self.pooling,
            "overlap": self.overlap,
            "crf": self.crf,
            "dropout": self.dropout,
            "strict": self.strict,
            "monitor": self.monitor.removeprefix("val_"),
        }

    # Examples.

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Example]:
        """See `TagFiles`."""
        self.files.split = self._split()
        examples = self.files.read(path, columns, labelled, bad)
        if labelled and self.files.split == "characters":
            self.found = {"characters": 1.0}
        return [*examples]

    def _split(self) -> Split:
        """How texts are cut: `auto` as the bundle says."""
        known = self.files.split == "auto" and self.found.get("characters")
        return "characters" if known else self.files.split

    def renamed(self, path: str, examples: list[Example], bad: BadExamples) -> list[Example]:
        """Tags that were ids may be out of their scheme's order, too."""
        return [*self.files.formed(path, cast(list[Words], examples), bad)]

    def typed(self, text: str, columns: Columns, place: str) -> Example:
        """A text cut into words."""
        return words_in(text, place, self._split())

    def labels_of(self, example: Example) -> list[str]:
        """The tags of its words."""
        return list(dict.fromkeys(example.labels or ()))

    def schema(self, examples: list[Example]) -> list[str]:
        """All tags of the kinds that occur; of plain ones those that occur."""
        tags = {tag for e in examples for tag in e.labels or ()}
        try:
            scheme = self.scheme_of(tags)
        except ValueError as error:  # some lines had tags, some spans
            raise UserError(f"the training file: {error}") from error
        labels = sorted(tags) if scheme is None else tag_set(kinds_of(tags), scheme)
        if len(labels) < 2:
            raise UserError(f"tagging needs two tags or more, the training file has {labels}")
        return labels

    def scheme_of(self, tags: Iterable[str]) -> Scheme | None:
        """The scheme that tags are written in; None: they are plain, or said to be."""
        return None if self.files.scheme == "none" else scheme_of(tags)

    # Words to tokens.

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """Windows of whole words, with the tokens and the label of each."""
        words = cast(list[Words], examples)
        aligned = align_words(words, tokenizer, self.presplit)
        if self.scheme_of(labels) is not None:
            check_borders(words, aligned, self.files.lost_borders)
        ids, found = {label: i for i, label in enumerate(labels)}, list[Encoded]()
        for number, (example, text) in enumerate(zip(words, aligned, strict=True)):
            before, text, after = self.framed(example, text, tokenizer)
            tags = self._targets_of(example, text, ids)
            pad, overlap = tokenizer.pad, self.overlap
            for item in encode_windows(text, before, after, max_length, overlap, pad):
                item.example, item.place = number, example.place
                item.targets["label"] = tags[item.targets["number"]]
                item.count = int((item.targets["label"] != IGNORE).sum())
                found.append(item)
        tell_tokenless(words, aligned)
        tell_windows(words, found)
        return found

    def framed(
        self, example: Words, aligned: Aligned, tokenizer: Tokenizer
    ) -> tuple[list[int], Aligned, list[int]]:
        """What stands before a window, the text, and what stands after a window."""
        begin, end = tokenizer.begin, tokenizer.end
        return [] if begin is None else [begin], aligned, [] if end is None else [end]

    def _targets_of(self, example: Words, aligned: Aligned, ids: dict[str, int]) -> Ids:
        """(words,) label ids; IGNORE of an example without tags, and of words without tokens."""
        targets = np.full(len(example.words), IGNORE, np.int64)
        if example.labels is None:
            return targets
        seen = np.flatnonzero(aligned.words[:, 0] < aligned.words[:, 1])
        tags = [example.labels[i] for i in seen.tolist()]
        if len(seen) < len(targets) and (scheme := self.scheme_of(ids)) is not None:
            # What is left of an entity must be well-formed, too.
            tags = tags_of_spans(spans_of_tags(tags), len(tags), scheme)
        targets[seen] = [ids[tag] for tag in tags]
        return targets

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> Arrays:
        """Of each window its `row` and the `edges` it has, and (E, W) of its words where their
        tokens begin (`start`) and `end`, and the `label`: IGNORE beyond the last word."""
        counts = [len(e.targets["label"]) if e.targets else 0 for e in packed]
        shape = len(packed), max(1, *counts)
        start, label = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
        end, edges = np.ones(shape, np.int64), np.zeros((len(packed), 2), bool)
        for number, count in enumerate(counts):
            if count:
                of = packed[number].targets
                span = of["word"] + starts[number]
                start[number, :count], end[number, :count] = span[:, 0], span[:, 1]
                label[number, :count], edges[number] = of["label"], of["edges"]
        real = np.arange(shape[1]) < np.array(counts)[:, None]
        return {
            **{"row": rows, "start": start, "end": end, "real": real},
            **{"label": label, "edges": edges},
        }

    def uniform_loss(self, labels: list[str]) -> float | None:
        """One label of L: ln L; the steps of a CRF are not all allowed."""
        return None if self.crf else math.log(len(labels))

    def build_head(self, backbone: Backbone, labels: list[str]) -> TaskHead:
        """A linear layer on the words' states, and perhaps a CRF."""
        pooling = self.pooling
        if pooling == "auto":
            pooling = "last" if backbone.causal else "first"
        crf = ChainCRF(labels, self.scheme_of(labels)) if self.crf else None
        return WordHead(backbone.dim, len(labels), pooling, self.dropout, crf)

    # Predictions.

    def records(self, scored: Scored) -> dict[int, dict[str, Any]]:
        """The tags of each example's words, and the entities they spell, in characters."""
        scheme, found = self.scheme_of(scored.labels), dict[int, dict[str, Any]]()
        for number, seen in scored.whole().items():
            example = cast(Words, scored.examples[number])
            tags = [OUTSIDE] * len(example.words)
            for window, best in seen:
                for word, label in zip(
                    window.targets["number"].tolist(), best.tolist(), strict=False
                ):
                    tags[word] = scored.labels[int(label)]
            found[number] = {"tags": tags}
            if scheme is not None:
                spans = spans_of_tags(tags, scheme, self.strict)
                found[number] |= self.named(example, spans)
        return found

    def named(self, example: Words, spans: list[Span]) -> dict[str, Any]:
        """Spans of words as a line of predictions has them."""
        found = []
        for kind, first, last in spans:
            start, end = int(example.words[first, 0]), int(example.words[last - 1, 1])
            text = example.text[start:end]
            found.append({"type": kind, "start": start, "end": end, "text": text})
        return {self.answer: found}

    def judge(
        self, examples: list[Example], records: dict[int, dict[str, Any]]
    ) -> dict[str, float]:
        """Precision, recall and F1 of entities, also of each kind; of plain tags the F1 of each.
        Always the share of words with the right tag."""
        whole = [(cast(Words, examples[n]), record) for n, record in records.items()]
        pairs = [zip(e.labels or (), record["tags"], strict=True) for e, record in whole]
        right = [gold == said for sentence in pairs for gold, said in sentence]
        if all(self.answer in record for _, record in whole):
            gold = [self._spans(self.named(e, spans_of_tags(e.labels or ()))) for e, _ in whole]
            scores = span_scores(gold, [self._spans(record) for _, record in whole])
        else:
            tags = [{(tag, at) for at, tag in enumerate(e.labels or ())} for e, _ in whole]
            said = [{(tag, at) for at, tag in enumerate(record["tags"])} for _, record in whole]
            scores = span_scores(tags, said)
            # Of single words the others are these again, or of little use.
            scores = {k: v for k, v in scores.items() if k.startswith(("f1", "macro_f1"))}
        return {"accuracy": sum(right) / max(1, len(right)), **scores}

    def _spans(self, line: dict[str, Any]) -> set[tuple[Any, ...]]:
        return {(span["type"], span["start"], span["end"]) for span in line[self.answer]}
