"""Event extraction, first half: the words of a text that are triggers of events.

Scores are those of ACE (Li et al. 2013): a trigger is identified if its place is right and
classified if its kind is, too; an argument of an event is identified if its place is right and
classified if its role is, too. Places are those of whole words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ptft_lightning.data.event_files import EventFormat, Offsets
from ptft_lightning.data.examples import Columns, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.words import Split, Words
from ptft_lightning.tasks.tag_files import words_in
from ptft_lightning.tasks.tagging import Tagging
from ptft_lightning.tasks.tags import Span, span_scores, spans_of_tags
from ptft_lightning.tasks.word_head import WordPooling

Monitor = Literal["classification_f1", "identification_f1", "loss"]
READING = ("presplit", "pooling", "overlap", "crf", "dropout")


class EventTriggers(Tagging):
    """The words that say that something happens, and what: a tag for every word.

    Documents longer than `data.max_length` are read in overlapping windows.

    Args:
        events: The field with the list of events.
        kind: The field of an event that names its kind.
        trigger: The field of an event that holds its trigger: start, end and text.
        offsets: What to do where the text has something else than the file says: note the example
            as a bad one, or take the place nearby that has it, and count them.
        split: How texts are cut into words, see Tagging.
        lost_borders: Share of the triggers that may begin or end inside a token or word.
        presplit: Encode every word by itself.
        pooling: Which hidden state is a word's, see Tagging.
        overlap: Share of a window that the next one has, too.
        crf: Score steps from tag to tag too.
        dropout: Probability on the hidden states, in training.
        monitor: The validation metric that decides which bundle is best.
    """

    name = "event_triggers"

    def __init__(
        self,
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
            split=split,
            lost_borders=lost_borders,
            presplit=presplit,
            pooling=pooling,
            overlap=overlap,
            crf=crf,
            dropout=dropout,
        )
        self.events, self.kind, self.trigger, self.offsets = events, kind, trigger, offsets
        self.watch(monitor)

    def config(self) -> dict[str, Any]:
        """All settings."""
        names = ("events", "kind", "trigger", "offsets", *READING)
        return {name: getattr(self, name) for name in names} | {
            "split": self.files.split,
            "lost_borders": self.files.lost_borders,
            "monitor": self.monitor.removeprefix("val_"),
        }

    @property
    def layout(self) -> EventFormat:
        """How the files are laid out, counting anew."""
        return EventFormat(self.events, self.kind, self.trigger, self.offsets)

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Example]:
        """Documents, their triggers tagged; one with a trigger that is nowhere is a bad example."""
        how, found = self.layout, list[tuple[Words, list[Span]]]()
        for place, text, events in how.documents(path, columns, labelled):
            try:
                placed = {how.trigger_of(e, text, place) for e in events if labelled}
            except ValueError as error:
                bad.add(place, str(error))
                continue
            spans = sorted((Span(*one) for one in placed), key=lambda span: span.start)
            found.append((words_in(text, place, self.files.split), spans))
        how.tell(path)
        if not labelled:
            return [words for words, _ in found]
        return [*self.files.tagged(path, found, bad)]

    def named(self, example: Words, spans: list[Span]) -> dict[str, Any]:
        """Events as a file has them, so that EventArguments reads it."""
        entities = super().named(example, spans)["entities"]
        return {self.events: [{self.kind: e.pop("type"), self.trigger: e} for e in entities]}

    def judge(
        self, examples: list[Example], records: dict[int, dict[str, Any]]
    ) -> dict[str, float]:
        """Of triggers identified, and classified; also the F1 of each kind."""
        gold = [spans_of_tags(examples[number].labels or []) for number in records]
        return event_scores(gold, [spans_of_tags(record["tags"]) for record in records.values()])


def event_scores(
    gold: Sequence[Sequence[tuple[str, int, int]]], said: Sequence[Sequence[tuple[str, int, int]]]
) -> dict[str, float]:
    """Precision, recall and F1 of places alone (`identification_`) and with what they are
    (`classification_`)."""
    whole = span_scores(gold, said)
    places = span_scores(
        *([[("", *one[1:]) for one in ones] for ones in side] for side in (gold, said))
    )
    names = ("precision", "recall", "f1")
    found = {f"identification_{name}": places[name] for name in names}
    found |= {f"classification_{name}": whole[name] for name in names}
    return found | {k: v for k, v in whole.items() if k.startswith("f1_")}
