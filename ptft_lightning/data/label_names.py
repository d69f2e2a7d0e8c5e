"""Names for labels that a file gives as ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ptft_lightning.data.examples import Example
from ptft_lightning.data.streams import Damaged, open_bytes
from ptft_lightning.errors import UserError


def read_label_names(given: str | Mapping[str, str]) -> dict[str, str]:
    """A mapping from ids to names, or a text file whose line n (from 0) names the id n.

    Raises:
        UserError: the file is missing or not UTF-8, or a name occurs twice.
    """
    if isinstance(given, str):
        with open_bytes(given) as stream:
            try:
                lines = stream.read().decode("utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise UserError(f"'{given}' is not UTF-8: {error}") from error
            except Damaged as error:
                raise UserError(f"'{given}' is damaged, get it again") from error
        names = {str(n): line.strip() for n, line in enumerate(lines) if line.strip()}
    else:
        names = {str(key): str(name) for key, name in given.items()}
    if twice := {n for n in names.values() if list(names.values()).count(n) > 1}:
        raise UserError(f"data.label_names: {sorted(twice)} stand for several labels")
    return names


def name_labels(examples: list[Example], names: Mapping[str, str]) -> list[Example]:
    """The examples with names in place of ids; labels without a name stay as they are."""
    return [
        replace(
            e,
            label=None if e.label is None else names.get(e.label, e.label),
            labels=None if e.labels is None else [names.get(x, x) for x in e.labels],
        )
        for e in examples
    ]
