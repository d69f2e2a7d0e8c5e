"""Documents that are left out of a token store, by where they start; knows no tokens.

A drop list is a `.jsonl` file. Its first line says what was looked at, each other line names a
document: its `file`, `at` which byte of the text (of tables of rows: which row) it starts, and the
document that it `repeats`. The lines stand in the order of the files.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptft_lightning.data.plan import Plan
from ptft_lightning.data.token_store import Ids
from ptft_lightning.errors import UserError

FORMAT = "ptft_lightning drop list 1"


@dataclass(frozen=True)
class DropList:
    """A drop list as `prepare` obeys it."""

    name: str
    fingerprint: str
    """Hash of its bytes."""
    about: dict[str, Any]
    """Its first line: format, column, encoding, files (with their bytes as stored), counts."""
    places: dict[str, Ids]
    """Of each file, where documents start that are left out, ascending."""

    def check(self, plan: Plan) -> None:
        """The list must be about the files of the plan as they are now, read in the same way.

        Raises:
            UserError: naming what differs.
        """
        for key in ("column", "encoding"):
            if self.about[key] != getattr(plan, key):
                raise UserError(
                    f"--drop '{self.name}' was made with --{key} {self.about[key]}, not with "
                    f"{getattr(plan, key)}: make it again with `ptft_lightning duplicates`"
                )
        for file, stored in zip(plan.files, plan.stored, strict=True):
            if (was := self.about["files"].get(file)) != stored:
                how = "does not know" if was is None else f"knows {was} bytes, not {stored}, of"
                raise UserError(
                    f"--drop '{self.name}' {how} '{file}': make it again with `ptft_lightning "
                    "duplicates`, of the same files under the same names"
                )

    def check_met(self, plan: Plan, dropped: int) -> None:
        """Every document it names in the files of the plan must have been met.

        Raises:
            UserError: some were not.
        """
        named = sum(len(self.places.get(file, ())) for file in plan.files)
        if dropped != named:
            raise UserError(
                f"--drop '{self.name}' names {named} documents, {dropped} of them start where it "
                "says: the text was changed; make the list again, and the store in another "
                "directory"
            )


def read_drop_list(file: str) -> DropList:
    """Read a drop list.

    Raises:
        UserError: missing, or something else.
    """
    places: dict[str, list[int]] = defaultdict(list)
    digest = hashlib.sha256()
    try:
        with open(file, "rb") as stream:
            about = json.loads(first := next(stream, b""))
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']!r}")
            digest.update(first)
            for line in stream:
                digest.update(line)
                entry = json.loads(line)
                places[entry["file"]].append(entry["at"])
        if (count := sum(map(len, places.values()))) != about["dropped"]:
            raise ValueError(f"it has {count} lines, its first one says {about['dropped']}")
    except FileNotFoundError:
        raise UserError(f"--drop: file not found: '{file}'") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"--drop '{file}' is not a list that `ptft_lightning duplicates` wrote: {error}"
        ) from error
    ascending: dict[str, Ids] = {
        name: np.sort(np.array(at, np.int64)) for name, at in places.items()
    }
    return DropList(file, digest.hexdigest()[:16], about, ascending)


def write_drop_list(file: Path, about: dict[str, Any], entries: Iterator[dict[str, Any]]) -> None:
    """Write a drop list; it is there whole or not at all."""
    temporary = file.with_name(f".{file.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as stream:
        for record in ({"format": FORMAT, **about}, *entries):
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    temporary.replace(file)
