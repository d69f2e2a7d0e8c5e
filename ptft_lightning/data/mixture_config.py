"""Which token stores are read together, and how much of each; opens none of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptft_lightning.errors import UserError


@dataclass(frozen=True)
class MixtureConfig:
    """Several token stores as one text.

    Args:
        stores: Names and token stores; an epoch is one pass over the first.
        weights: Each store's share of the rows, of any sum; 0 leaves a store out for now. Default:
            by size, see temperature.
        temperature: Without weights a store of n rows gets a share in proportion to
            n ** (1 / temperature): 1 takes each text as large as it is, more than 1 lifts small
            ones (Arivazhagan et al. 2019).
        max_passes: No store is read more often in a run; what it leaves goes to the others (as in
            UniMax, Chung et al. 2023).
    """

    stores: dict[str, str]
    weights: dict[str, float] | None = None
    temperature: float = 1.0
    max_passes: float | None = None

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UserError: naming the value.
        """
        if not self.stores:
            raise UserError("data.mixture.stores is empty: name one token store or more")
        if len(places := set(self.stores.values())) < len(self.stores):
            twice = next(p for p in places if list(self.stores.values()).count(p) > 1)
            raise UserError(f"data.mixture.stores names '{twice}' twice: give it one weight")
        if self.weights is not None:
            self._check_weights(self.weights)
        for name in ("temperature", "max_passes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"data.mixture.{name} is {value}: give more than 0")

    def _check_weights(self, weights: dict[str, float]) -> None:
        if set(weights) != set(self.stores):
            odd = sorted(set(weights) ^ set(self.stores))
            raise UserError(
                f"data.mixture.weights and data.mixture.stores do not both name '{odd[0]}': give "
                f"each of {', '.join(self.stores)} a weight, perhaps 0"
            )
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise UserError(f"data.mixture.weights.{name} is {weight}: give 0 or more")
        if not any(weights.values()):
            raise UserError("data.mixture.weights are all 0: give one store more")
        if not weights[first := next(iter(self.stores))]:
            raise UserError(
                f"data.mixture.weights.{first} is 0, and an epoch is one pass over the first "
                "store: name another one first"
            )

    def request(self, rows: int) -> dict[str, Any]:
        """What decides the shares of a run of so many rows, as plain values."""
        return {
            "weights": None if self.weights is None else [self.weights[n] for n in self.stores],
            "temperature": self.temperature,
            "max_passes": self.max_passes,
            "rows": rows if self.max_passes is not None else None,
        }


def choose(
    store: str | None, replay: dict[str, float] | None, mixture: MixtureConfig | None
) -> MixtureConfig | None:
    """The mixture that a run reads; None: one store.

    Raises:
        UserError: two things are named, or none, or the shares cannot be meant.
    """
    if store is None and mixture is None:
        raise UserError(
            "data.store is missing, which CorpusDataModule reads: give one of the two, data.store "
            "or data.mixture"
        )
    if mixture is not None and (store is not None or replay):
        raise UserError(
            "data.store, perhaps with data.replay, or data.mixture: give one of the two"
        )
    if store is not None and replay:
        mixture = _replaying(store, replay)
    if mixture is not None:
        mixture.check()
    return mixture


def _replaying(store: str, replay: dict[str, float]) -> MixtureConfig:
    """`store` with fixed shares of other stores, all by the last parts of their paths."""
    for name, share in replay.items():
        if not 0 < share < 1:
            raise UserError(f"data.replay.{name} is {share}: give a share of all rows, above 0")
        if name == store:
            raise UserError(f"data.replay names data.store '{store}' itself: leave it out there")
    if (total := sum(replay.values())) >= 1:
        raise UserError(
            f"the shares of data.replay sum to {total:g}: give less than 1 in all, the rest is "
            "data.store's"
        )
    stores = {Path(place).name: place for place in (store, *replay)}
    if len(stores) <= len(replay):
        raise UserError(
            f"data.replay {[store, *replay]}: stores of the same last name, by which their losses "
            "would be told: name them in data.mixture instead"
        )
    weights = {Path(name).name: share for name, share in replay.items()}
    return MixtureConfig(stores, {Path(store).name: 1 - total, **weights})
