"""What of a corpus could not be read: counted by kind, the first places named; reads nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ptft_lightning.errors import UserError

OnBadDocument = Literal["skip", "stop"]

BAD_BYTES = "bad bytes"
NUL_BYTES = "NUL bytes"
BROKEN_JSON = "broken JSON"
BROKEN_ROW = "broken row"
NO_TEXT = "no text column"
TOO_LONG = "too long"
DAMAGED_FILE = "damaged file"
EMPTY_FILE = "empty file"

MAX_BAD_SHARE = 0.1
MAX_REPORTED = 10  # bad documents named one by one; all are counted


@dataclass
class BadDocuments:
    """What could not be read: counts by kind, and the first few places with the reason."""

    kinds: dict[str, int] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    on_bad: OnBadDocument = "skip"

    @property
    def count(self) -> int:
        """Bad documents of all kinds."""
        return sum(self.kinds.values())

    def add(self, kind: str, place: str, reason: str) -> None:
        """Count one bad document and keep its place while there is room.

        Raises:
            UserError: `on_bad` is stop.
        """
        if self.on_bad == "stop":
            raise UserError(
                f"{place}: {reason}: mend it, or count such documents and leave them out with "
                "--data.on_bad_document skip (or --on_bad_document skip)"
            )
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if len(self.places) < MAX_REPORTED:
            self.places.append(f"{place}: {reason}")

    def merge(self, kinds: Mapping[str, int], places: list[str]) -> None:
        """Take in what another reader counted."""
        self.kinds = dict(Counter(self.kinds) + Counter(kinds))
        self.places = [*self.places, *places][:MAX_REPORTED]

    def summary(self) -> str:
        """For a person: how many, of which kinds, and the first."""
        first = f"; the first: {self.places[0]}" if self.places else ""
        return f"{self.count} documents could not be read ({by_kind(self.kinds)}){first}"

    def check_share(self, good: int, limit: float) -> None:
        """Refuse a corpus of which too much is lost; files without a byte are no documents.

        Raises:
            UserError: more than `limit` of the documents are bad, or any where `on_bad` is stop.
        """
        lost = self.count - self.kinds.get(EMPTY_FILE, 0)
        if lost > limit * (good + lost) or (self.on_bad == "stop" and self.count):
            raise UserError(
                f"{self.summary()}, beside {good} good ones: mend them, or accept the loss with "
                "--data.max_bad_share and --data.on_bad_document skip (or --max_bad_share, "
                "--on_bad_document)"
            )


def by_kind(kinds: Mapping[str, int]) -> str:
    """Counts in words, the most frequent first."""
    return ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items(), key=lambda k: (-k[1], k)))
