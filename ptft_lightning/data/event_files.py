"""Texts with events, each a trigger and its arguments: files in, places out; knows no model.

    {"content": "Hackers stole data.", "events": [{"subtype": "Databreach",
     "nugget": {"start": 8, "end": 13, "text": "stole"},
     "arguments": [{"role": "Attacker", "start": 0, "end": 7, "text": "Hackers"}]}]}

as CASIE has them, or with a word and where it starts, as DuEE has them (`trigger` and
`trigger_start_index`, `argument` and `argument_start_index`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from ptft_lightning.data.examples import Columns
from ptft_lightning.data.lines import json_records
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError

Offsets = Literal["refuse", "nearest"]
Record = dict[str, Any]
Placed = tuple[str, int, int]
"""What it is, its first character and the one after its last."""


@dataclass
class EventFormat:
    """How a file says where events are."""

    events: str
    """The field with the list of events."""
    kind: str
    """The field of an event that names its kind."""
    trigger: str
    """The field of an event that holds its trigger."""
    offsets: Offsets
    """What to do where the text has something else than the file says."""
    moved: list[str] = field(default_factory=list)
    """Places of what was looked for nearby."""
    total: int = 0

    def documents(
        self, path: str, columns: Columns, needed: bool
    ) -> Iterator[tuple[str, str, list[Record]]]:
        """Place, text and events of each line of a .jsonl file; `needed`: it must have events.

        Raises:
            UserError: a line or column that cannot be read, or an empty file.
        """
        names = [columns.text, *([self.events] if needed else [])]
        empty = True
        for place, record in json_records(path):
            empty = False
            for name in names:
                if record.get(name) is None:
                    raise UserError(
                        f"{place}: no column '{name}'; the columns are {list(record)}: set "
                        "data.columns.text or model.task.events"
                    )
            events = record.get(self.events) or []
            if not isinstance(events, list):
                raise UserError(f"{place}: '{self.events}' is {events!r}: give a list of events")
            yield place, str(record[columns.text]), events
        if empty:
            raise UserError(f"'{path}' holds no examples")

    def trigger_of(self, event: Record, text: str, place: str) -> Placed:
        """An event's kind and where its trigger is.

        Raises:
            ValueError: it has none, or the text does not.
        """
        if not isinstance(event, dict) or not event.get(self.kind):
            raise ValueError(f"an event without '{self.kind}': set model.task.kind")
        return self._placed(event, str(event[self.kind]), self.trigger, text, place)

    def arguments_of(self, event: Record, text: str, place: str) -> list[Placed]:
        """The roles of an event's arguments and where they are.

        Raises:
            ValueError: one that has no role, or that the text does not have.
        """
        found = []
        arguments = event.get("arguments") or []
        if not isinstance(arguments, list):
            raise ValueError(f"the arguments are {arguments!r}: give a list")
        for item in arguments:
            if not isinstance(item, dict) or not item.get("role"):
                raise ValueError("an argument without 'role': name its role")
            found.append(self._placed(item, str(item["role"]), "argument", text, place))
        return found

    def tell(self, path: str) -> None:
        """Say how much was not where the file says."""
        if self.moved:
            say(
                f"'{path}': {len(self.moved)} of {self.total} triggers and arguments are not where "
                "the file says and were taken where they occur nearest to it; the first at "
                f"{self.moved[0]}"
            )

    def _placed(self, item: Record, kind: str, name: str, text: str, place: str) -> Placed:
        inner = item.get(name)
        inner = inner if isinstance(inner, dict) else item
        said, start, end = inner.get("text"), inner.get("start"), inner.get("end")
        if start is None:
            said, start = item.get(name), item.get(f"{name}_start_index")
            end = start + len(said) if isinstance(said, str) and type(start) is int else None
        if type(start) is not int or type(end) is not int:
            raise ValueError(
                f"the {name} of {kind} has no start and end: give characters as numbers, or set "
                "model.task.trigger"
            )
        self.total += 1
        there = text[start:end] if 0 <= start < end <= len(text) else None
        if there is not None and (said is None or said == there):
            return kind, start, end
        problem = (
            f"the {name} of {kind} is at {start} to {end}, where the text of {len(text)} "
            f"characters has {there!r}, not {said!r}"
        )
        if self.offsets == "refuse" or not isinstance(said, str) or not said:
            raise ValueError(f"{problem}: correct it, or set model.task.offsets nearest")
        return kind, *self._nearest(said, start, text, problem, place)

    def _nearest(
        self, said: str, start: int, text: str, problem: str, place: str
    ) -> tuple[int, int]:
        start = max(0, start)
        before, after = text.rfind(said, 0, start + len(said)), text.find(said, start)
        near = [at for at in (before, after) if at >= 0]
        if not near:
            raise ValueError(f"{problem}, which it has nowhere: correct it")
        at = min(near, key=lambda place: abs(place - start))
        self.moved.append(place)
        return at, at + len(said)
