"""What an example of each class counts in the training loss."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ptft_lightning.data.examples import Encoded
from ptft_lightning.data.packing import Ids
from ptft_lightning.errors import UserError

ClassWeights = Literal["balanced"] | dict[str, float] | list[float]


def weigh_examples(given: ClassWeights | None, examples: list[Encoded], labels: list[str]) -> None:
    """Give training examples the weight of their class."""
    if given is None:
        return
    of = np.array([int(e.targets["label"]) for e in examples])
    weights = class_weights(given, np.bincount(of, minlength=len(labels)), labels)
    for item, label in zip(examples, of.tolist(), strict=True):
        item.targets["weight"] = weights[label]


def class_weights(given: ClassWeights, counts: Ids, labels: list[str]) -> npt.NDArray[Any]:
    """(classes,) float32 weights, given how many training examples each class has.

    `balanced` is examples / (classes x examples of the class), as in scikit-learn: 1 on average
    over the examples. A mapping leaves the classes it does not name at 1.

    Raises:
        UserError: a name that is no label, another number of weights, or a weight that is none.
    """
    if given == "balanced":
        # A class without an example, all of whose examples were held out, has no share.
        weights = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return np.asarray(weights, np.float32)
    if isinstance(given, dict):
        if strange := [name for name in given if name not in labels]:
            raise UserError(f"task.class_weights names {strange}, the labels are {labels}")
        given = [given.get(label, 1.0) for label in labels]
    if len(given) != len(labels):
        raise UserError(
            f"task.class_weights has {len(given)} numbers, there are {len(labels)} labels: {labels}"
        )
    if wrong := [w for w in given if isinstance(w, str) or not (w >= 0 and math.isfinite(w))]:
        raise UserError(f"task.class_weights has {wrong[0]}: give finite numbers from 0")
    return np.array(given, np.float32)
