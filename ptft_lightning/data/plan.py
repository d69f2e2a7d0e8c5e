"""What decides the bytes of a token store: sources, settings, units in their order."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptft_lightning.data.decoding import Encoding
from ptft_lightning.data.documents import Reading, Unit, split_units
from ptft_lightning.data.sample_order import keyed_permutation
from ptft_lightning.errors import UserError

PLAN = "plan.json"  # of a token store
UNIT_BYTES = 32 * 2**20
SHOWN = 3  # files that are listed in a message


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a store."""

    files: list[str]
    column: str
    tokenizer: str
    held_out: float
    seed: int
    unit_bytes: int
    sizes: list[int]
    stored: list[int]
    """Bytes of each file as it lies there, perhaps compressed; what a later run compares."""
    encoding: Encoding = "utf-8"
    segmenter: str | None = None
    """What finds the words whose starts are noted; None where none are."""
    splitter: str | None = None
    """What finds the sentences whose starts are noted; None where none are."""
    drop: str | None = None
    """Fingerprint of the list of documents that are left out."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What is noted of each token."""
        found = {"words": self.segmenter, "sentences": self.splitter}
        return tuple(kind for kind, by in found.items() if by is not None)

    @property
    def reading(self) -> Reading:
        """How documents are found in the files."""
        return Reading(self.column, self.encoding)


def list_units(plan: Plan) -> list[Unit]:
    """All units of the plan in their seeded order: unit i becomes shard i."""
    sized = zip(plan.files, plan.sizes, strict=True)
    cut = (split_units(path, size, plan.unit_bytes, plan.column) for path, size in sized)
    units = [unit for parts in cut for unit in parts]
    order = keyed_permutation(np.arange(len(units)), len(units), (plan.seed,))
    return [units[i] for i in order]


def read_plan(store: str) -> dict[str, Any] | None:
    """That of a token store that was begun."""
    note = Path(store) / PLAN
    if not note.is_file():
        return None
    found: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    return found


def check_share(validation_share: float) -> None:
    """Refuse what is no share."""
    if not 0 <= validation_share <= 1:
        raise UserError(f"validation_share is {validation_share}: give a share from 0 to 1")


def held_out(document: str | bytes, share: float) -> bool:
    """Whether a document belongs to the validation split: decided by its text (UTF-8) alone."""
    if share <= 0:
        return False
    text = document.encode() if isinstance(document, str) else document
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) < share * 2**64


def shown_change(name: str, old: Any, new: Any) -> str:
    """What changed, of long lists their number and what is on one side only."""
    if isinstance(old, list) and isinstance(new, list) and max(len(old), len(new)) > SHOWN:
        before, after = set(old), set(new)
        other = next((x for x in (*old, *new) if (x in before) != (x in after)), None)
        differs = "" if other is None else f", such as {other!r}"
        return f"{name} {len(old)} entries -> {len(new)} entries{differs}"
    return f"{name} {old!r} -> {new!r}"
