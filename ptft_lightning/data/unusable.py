"""Examples that turn out unusable only when they are encoded: counted, and left out if asked."""

from __future__ import annotations

import numpy as np

from ptft_lightning.data.examples import Encoded, Example
from ptft_lightning.data.findings import BadExamples, UnknownLabels
from ptft_lightning.errors import UserError


def unusable(number: int, place: str, error: UserError) -> Encoded:
    """Stands for example `number`, so that those behind it are read and counted, too."""
    fault = str(error).removeprefix(f"{place}: ")
    return Encoded([], [], place=place, example=number, fault=fault)


def leave_out(
    path: str, examples: list[Example], encoded: list[Encoded], policy: UnknownLabels
) -> tuple[list[Example], list[Encoded]]:
    """Examples and their windows without those that have a fault, numbered anew.

    Raises:
        UserError: the policy is to stop, or none is left.
    """
    faults = {e.example: e.fault for e in encoded if e.fault}
    if not faults:
        return examples, encoded
    bad = BadExamples(policy)
    for number, fault in faults.items():
        bad.add(examples[number].place, fault)
    bad.settle(path, len(examples) - len(faults))
    usable = np.array([number not in faults for number in range(len(examples))])
    numbers = np.cumsum(usable) - 1
    kept = [item for item in encoded if usable[item.example]]
    for item in kept:
        item.example = int(numbers[item.example])
    return [examples[number] for number in np.flatnonzero(usable).tolist()], kept
