"""Semantic role labelling: the arguments of a given predicate, as spans of words with roles.

The predicate is told in the text itself, which works with every backbone, packed or not: before
the sentence stands the predicate, as in `begin predicate end sentence end` (Shi and Lin 2019), so
that a causal model knows it before it reads and every window of a long sentence has it; and in the
sentence an `end` token stands on both sides of it, since the same word may occur twice. Backbones
with token types also see it as of the second type. An indicator in the head would come too late:
the states of the other words would not depend on it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np

from ptft_lightning.data.examples import Columns, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.frames import Frame, read_frames, typed_frame
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.word_windows import Aligned
from ptft_lightning.data.words import Words
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.tagging import Monitor, Tagging
from ptft_lightning.tasks.tags import Span, tags_of_spans
from ptft_lightning.tasks.word_head import WordPooling


class SemanticRoles(Tagging):
    """The arguments of predicates: .jsonl lines of `tokens` and `frames`, each with the number of
    its `predicate` and `args` of role, first and last word.

    An example is a predicate. For the settings see `Tagging`.

    Args:
        lost_borders: Share of the arguments that may begin or end inside a token.
        presplit: Encode every word by itself.
        pooling: Which hidden state is a word's.
        overlap: Share of a window that the next one has, too.
        crf: Score steps from tag to tag too, and forbid those that the scheme does.
        dropout: Probability on the hidden states, in training.
        strict: Arguments count only if their tags are well-formed.
        monitor: The validation metric that decides which bundle is best.
    """

    name = "semantic_roles"
    answer = "roles"

    def __init__(
        self,
        lost_borders: float = 0.01,
        presplit: bool = False,
        pooling: WordPooling = "auto",
        overlap: float = 0.25,
        crf: bool = False,
        dropout: float = 0.1,
        strict: bool = False,
        monitor: Monitor = "f1",
    ) -> None:
        super().__init__(
            lost_borders=lost_borders,
            presplit=presplit,
            pooling=pooling,
            overlap=overlap,
            crf=crf,
            dropout=dropout,
            strict=strict,
            monitor=monitor,
        )

    def config(self) -> dict[str, Any]:
        """All settings."""
        whole = super().config()
        files = set(vars(self.files)) - {"lost_borders"}
        return {name: value for name, value in whole.items() if name not in files}

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Example]:
        """See `read_frames`."""
        frames = read_frames(path, labelled, bad)
        return [_tagged(frame) for frame in frames] if labelled else [*frames]

    def typed(self, text: str, columns: Columns, place: str) -> Example:
        """A sentence with its predicate in brackets."""
        return typed_frame(text, place)

    def framed(
        self, example: Words, aligned: Aligned, tokenizer: Tokenizer
    ) -> tuple[list[int], Aligned, list[int]]:
        """`begin predicate end`, the text with an end on both sides of its predicate, `end`."""
        begin, _, end = super().framed(example, aligned, tokenizer)
        if not end:
            raise UserError("SemanticRoles needs a tokenizer with a token that ends a text")
        first, last = aligned.words[cast(Frame, example).predicate].tolist()
        ids = aligned.ids
        marked = [*ids[:first], *end, *ids[first:last], *end, *ids[last:]]
        borders = np.array([first, last])
        starts = np.searchsorted(borders, aligned.words[:, 0], side="right")
        stops = np.searchsorted(borders, aligned.words[:, 1], side="left")
        moved = aligned.words + np.stack([starts, stops], 1)
        segments = [0] * len(marked)
        segments[first + 1 : last + 1] = [1] * (last - first)
        text = Aligned(marked, aligned.spans, moved.astype(np.int64), segments)
        return [*begin, *ids[first:last], *end], text, end


def _tagged(frame: Frame) -> Frame:
    spans = [Span(*argument) for argument in frame.arguments]
    return replace(frame, labels=tags_of_spans(spans, len(frame.words)))
