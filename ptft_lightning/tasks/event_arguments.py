"""Event extraction, second half: the arguments of a trigger that is known, as tagging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from ptft_lightning.data.event_files import Offsets, Placed
from ptft_lightning.data.examples import Columns, Encoded, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.module import say
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.word_windows import Aligned
from ptft_lightning.data.words import Split, Words, words_of
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.events import EventTriggers, Monitor, event_scores
from ptft_lightning.tasks.marking import signs_of
from ptft_lightning.tasks.tag_files import words_in
from ptft_lightning.tasks.tags import Span, overlapping
from ptft_lightning.tasks.word_head import WordPooling


@dataclass(frozen=True, eq=False)
class Triggered(Words):
    """The words around a trigger; of their labels, those of arguments that tags can say."""

    event: str = ""
    trigger: tuple[int, int] = (0, 0)
    """Its first character in the text and the one after its last."""
    offset: int = 0
    """Where the text begins in its document."""
    arguments: tuple[Placed, ...] = ()
    """All there are, by characters of the document."""
    document: str = ""

    @property
    def group(self) -> str:
        """The document: texts around its triggers overlap."""
        return self.document

    @property
    def said(self) -> dict[str, Any]:
        """The event's kind, its trigger, and the text around it."""
        start, end = self.trigger
        place = [self.offset + start, self.offset + end]
        said = {"event": self.event, "trigger": self.text[start:end], "trigger_span": place}
        return said | {"text": self.text, "offset": self.offset}

    @property
    def gold(self) -> Any:
        """The arguments as a line of predictions has them; what is not around has no text."""
        return [self.named(*placed) for placed in self.arguments]

    def named(self, role: str, start: int, end: int) -> dict[str, Any]:
        """An argument, by characters of the document."""
        text = self.text[max(0, start - self.offset) : max(0, end - self.offset)]
        return {"role": role, "start": start, "end": end, "text": text}


class EventArguments(EventTriggers):
    """Who did what to whom: the role of every word around a trigger that is known.

    Reads what EventTriggers reads and predicts. The trigger stands between signs such as `@`, the
    event's kind before every window.

    Args:
        reach: So many words before and after the trigger are read; arguments that are not wholly
            among them are counted, and always missed.
        events: See EventTriggers, as of all others.
        kind: The field of an event that names its kind.
        trigger: The field of an event that holds its trigger.
        offsets: What to do where the text has something else than the file says.
        split: How texts are cut into words.
        lost_borders: Share of the arguments that may begin or end inside a token or word.
        presplit: Encode every word by itself.
        pooling: Which hidden state is a word's.
        overlap: Share of a window that the next one has, too.
        crf: Score steps from tag to tag too.
        dropout: Probability on the hidden states, in training.
        monitor: The validation metric that decides which bundle is best.
    """

    name = "event_arguments"

    def __init__(
        self,
        reach: int = 50,
        events: str = "events",
        kind: str = "subtype",
        trigger: str = "nugget",
        offsets: Offsets = "refuse",
        split: Split = "edges",
        lost_borders: float = 0.05,
        presplit: bool = False,
        pooling: WordPooling = "auto",
        overlap: float = 0.25,
        crf: bool = False,
        dropout: float = 0.1,
        monitor: Monitor = "classification_f1",
    ) -> None:
        super().__init__(
            *(events, kind, trigger, offsets, split, lost_borders, presplit, pooling),
            *(overlap, crf, dropout, monitor),
        )
        self.reach = reach
        if reach < 0:
            raise UserError(f"task.reach is {reach}: give a number of words from 0")

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {"reach": self.reach, **super().config()}

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Example]:
        """One example for each event, in the order of the file."""
        how, found = self.layout, list[tuple[Triggered, list[Span]]]()
        for place, text, events in how.documents(path, columns, needed=True):
            document = words_in(text, place, self.files.split)
            for number, event in enumerate(events, start=1):
                at = f"{place} event {number}"
                try:
                    placed = how.trigger_of(event, text, at)
                    arguments = how.arguments_of(event, text, at) if labelled else []
                    found.append(self._around(document, placed, arguments, at))
                except ValueError as error:
                    bad.add(at, str(error))
        how.tell(path)
        if not labelled:
            return [example for example, _ in found]
        _tell_missed(path, found)
        return [*self.files.tagged(path, cast(list[tuple[Words, list[Span]]], found), bad)]

    def _around(
        self, document: Words, placed: Placed, arguments: list[Placed], place: str
    ) -> tuple[Triggered, list[Span]]:
        """The words around a trigger, and what tags can say of its arguments."""
        kind, start, end = placed
        first, last, _ = words_of((start, end), document.words)
        if first == last:
            raise ValueError(f"the trigger of {kind} at {start} to {end} is blank: mark a word")
        low, high = max(0, first - self.reach), min(len(document.words), last + self.reach)
        offset, stop = int(document.words[low, 0]), int(document.words[high - 1, 1])
        inside: list[Span] = []
        for role, a, b in sorted(set(arguments), key=lambda one: (one[1] - one[2], one)):
            span = Span(role, a - offset, b - offset)
            if a >= offset and b <= stop and not overlapping([*inside, span]):
                inside.append(span)
        example = Triggered(
            text=document.text[offset:stop],
            pair=None,
            label=None,
            place=place,
            words=document.words[low:high] - offset,
            event=kind,
            trigger=(start - offset, end - offset),
            offset=offset,
            document=document.text,
            arguments=tuple(sorted({_whole(one, document) for one in arguments})),
        )
        return example, inside

    def typed(self, text: str, columns: Columns, place: str) -> Example:
        """Nobody types a trigger and its kind."""
        raise UserError(
            f"{place}: event arguments belong to a trigger: give a file with --data.predict, such "
            "as the predictions of EventTriggers"
        )

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """See `Tagging`."""
        kinds = sorted({cast(Triggered, e).event for e in examples})
        self.kinds = dict(zip(kinds, tokenizer.encode(kinds), strict=True))
        (self.sign,) = signs_of(tokenizer, 1)
        return super().encode(examples, labels, tokenizer, max_length)

    def framed(
        self, example: Words, aligned: Aligned, tokenizer: Tokenizer
    ) -> tuple[list[int], Aligned, list[int]]:
        """The kind before a window, signs around the trigger."""
        example = cast(Triggered, example)
        begin, aligned, end = super().framed(example, aligned, tokenizer)
        before = [*begin, *self.sign, *self.kinds[example.event], *self.sign]
        first, last, _ = words_of(example.trigger, example.words)
        start, stop = int(aligned.words[first, 0]), int(aligned.words[last - 1, 1])
        return before, _signed(aligned, start, stop, self.sign), end

    def named(self, example: Words, spans: list[Span]) -> dict[str, Any]:
        """Arguments, by characters of the document."""
        of, found = cast(Triggered, example), []
        for role, first, last in spans:
            start, end = int(of.words[first, 0]), int(of.words[last - 1, 1])
            found.append(of.named(role, start + of.offset, end + of.offset))
        return {"arguments": found}

    def judge(
        self, examples: list[Example], records: dict[int, dict[str, Any]]
    ) -> dict[str, float]:
        """Of arguments identified, and classified; also the F1 of each role."""
        gold = [cast(Triggered, examples[number]).arguments for number in records]
        said = [
            [(a["role"], a["start"], a["end"]) for a in record["arguments"]]
            for record in records.values()
        ]
        return event_scores(gold, said)


def _whole(placed: Placed, document: Words) -> Placed:
    """Widened to whole words, which is what tags can say."""
    kind, start, end = placed
    first, last, _ = words_of((start, end), document.words)
    if first == last:
        return placed
    return kind, int(document.words[first, 0]), int(document.words[last - 1, 1])


def _signed(aligned: Aligned, start: int, stop: int, sign: list[int]) -> Aligned:
    """With signs before the token `start` and after the one before `stop`."""
    ids = [*aligned.ids[:start], *sign, *aligned.ids[start:stop], *sign, *aligned.ids[stop:]]
    before, after = aligned.words[:, 0], aligned.words[:, 1]
    begins = before + len(sign) * ((before >= start).astype(np.int64) + (before >= stop))
    ends = after + len(sign) * ((after > start).astype(np.int64) + (after > stop))
    # A word without tokens has none of the sign's either.
    ends = np.where(before == after, begins, ends)
    return replace(aligned, ids=ids, words=np.stack([begins, ends], 1))


def _tell_missed(path: str, found: Sequence[tuple[Triggered, list[Span]]]) -> None:
    total = sum(len(example.arguments) for example, _ in found)
    missed = [(e.place, len(e.arguments) - len(spans)) for e, spans in found]
    missed = [(place, count) for place, count in missed if count > 0]
    if missed:
        say(
            f"'{path}': {sum(n for _, n in missed)} of {total} arguments are further from their "
            "trigger than task.reach, or overlap a longer one: they are not learned and count as "
            f"missed; the first at {missed[0][0]}"
        )
