"""Bundles that hold only what was trained: completed by their base, or with adapters folded in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import Bundle
from ptft_lightning.tuning.lora import ADDED, LoRA, Parts, merge

FULL = {"name": "full", "config": {}}
BODY = "backbone."
SHARED: tuple[str, ...] = (BODY, "reader.")  # a head is a bundle's own
SHAPING = ("rank", "alpha", "rank_stabilised", "targets")


class AdapterBundle(Bundle):
    """What a run trained, its other tensors read from its base, once one of them is asked for.

    Args:
        own: The tensors that were trained, `base` of its config naming the rest.
        elsewhere: Where the base may be, too.
    """

    def __init__(self, own: Bundle, elsewhere: str | None = None) -> None:
        super().__init__(own.path, own.config, "", own.lineage)
        self.own, self.elsewhere, self.shared = own, elsewhere, SHARED

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """See `Bundle`."""
        return self.own.tokenizer

    @cached_property
    def hash(self) -> str:
        """See `Bundle`; the base's is part of the config."""
        return self.own.hash

    @cached_property
    def base(self) -> Bundle:
        """What the run started from, as it started from it.

        Raises:
            UserError: the base is not there, or another one is.
        """
        from ptft_lightning.interop.open import open_model

        wanted, others = self.config["base"]["hash"], []
        for place in self._places():
            try:
                found = open_model(place, self.elsewhere)
            except UserError:
                if place.startswith("wandb://"):  # what it names is for those who can set init_from
                    break
                raise
            if found.hash == wanted:
                return as_start(found, self.config["tuning"])
            others.append(f"'{found.path}' is {found.hash}")
        if others:
            raise UserError(
                f"the bundle '{self.path}' was trained on the base {wanted}, and "
                f"{', '.join(others)}: name the one it was trained on with --model.base PATH (or "
                "--base PATH)"
            )
        raise UserError(
            f"the bundle '{self.path}' holds only what was trained, and its base is not at "
            f"'{self.config['base']['path']}': put it there or name it with --model.base PATH; "
            "`merge --base PATH` makes a bundle that needs no base"
        )

    def _places(self) -> list[str]:
        recorded = self.config["base"]["path"]
        beside = Path(self.path) / recorded
        if beside.exists():
            places = [os.path.normpath(beside)]
        else:  # a hub id
            places = [] if recorded.startswith(".") or self.elsewhere else [recorded]
        return [self.elsewhere, *places] if self.elsewhere is not None else places

    @cached_property
    def _names(self) -> dict[str, Bundle]:
        shared = {name: self.base for name in self.base.names() if name.startswith(self.shared)}
        return shared | dict.fromkeys(self.own.names(), self.own)

    def names(self) -> list[str]:
        """See `Bundle`."""
        return list(self._names)

    def tensor(self, name: str) -> Tensor:
        """See `Bundle`."""
        return self._names[name].tensor(name)


class MergedBundle(Bundle):
    """A bundle whose low-rank adapters are folded into the weights they stand beside."""

    def __init__(self, inner: Bundle) -> None:
        config = {key: value for key, value in inner.config.items() if key != "base"}
        super().__init__(inner.path, config | {"tuning": FULL}, "", inner.lineage)
        self.inner, self.lora = inner, LoRA(**inner.config["tuning"]["config"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """See `Bundle`."""
        return self.inner.tokenizer

    @cached_property
    def hash(self) -> str:
        """That of the bundle on disk."""
        return self.inner.hash

    @cached_property
    def parts(self) -> dict[str, Parts]:
        """Of the layers with adapters, by name."""
        names = self.inner.names()
        weights = [n for n in names if n.startswith(f"{BODY}layers.") and n.endswith(".weight")]
        shapes = {_stem(n).removeprefix(BODY): tuple(self.inner.tensor(n).shape) for n in weights}
        chosen = self.lora.choose({name: s for name, s in shapes.items() if len(s) == 2})
        return {BODY + n: parts for n, parts in chosen.items() if BODY + n + ADDED[0] in names}

    def names(self) -> list[str]:
        """See `Bundle`."""
        return [name for name in self.inner.names() if not name.endswith(ADDED)]

    def tensor(self, name: str) -> Tensor:
        """See `Bundle`."""
        value, stem = self.inner.tensor(name), _stem(name)
        if stem == name or stem not in self.parts:
            return value
        a, b = (self.inner.tensor(stem + added) for added in ADDED)
        return merge(value, a, b, self.parts[stem], self.lora)


def _stem(name: str) -> str:
    return name.removesuffix(".weight")


def as_start(bundle: Bundle, tuning: Mapping[str, Any]) -> Bundle:
    """What a run with `tuning` (name and config) starts from: the bundle's adapters go on training
    if they are of the same kind, and are folded in if not."""
    had = bundle.config.get("tuning", FULL)
    if had["name"] != LoRA.name:
        return bundle
    same = tuning["name"] == LoRA.name
    same = same and all(had["config"][key] == tuning["config"][key] for key in SHAPING)
    return bundle if same else MergedBundle(bundle)


def open_start(init_from: str | None, base: str | None, tuning: Mapping[str, Any]) -> Bundle | None:
    """What `--model.init_from` names, as a run with `tuning` starts from it."""
    from ptft_lightning.interop.open import open_model

    return None if init_from is None else as_start(open_model(init_from, base), tuning)


def plain(bundle: Bundle) -> Bundle:
    """The bundle without low-rank adapters beside its weights."""
    return as_start(bundle, FULL)


def leave_to_base(
    bundle: Bundle | None, frozen: set[str], place: Path
) -> tuple[set[str], dict[str, Any]]:
    """Names of the tensors that a bundle written at `place` leaves to its base, and its config's
    entry that names the base; nothing where there is no base, or one that comes and goes.

    Args:
        bundle: What the run started from.
        frozen: Tensors that are still as they were there.
        place: Where the bundle is written; the base is named from there.
    """
    base = bundle
    while isinstance(base, AdapterBundle) and frozen.isdisjoint(base.own.names()):
        base = base.base
    base = base.inner if isinstance(base, MergedBundle) else base
    if base is None or not frozen or ".ckpt" in Path(base.path).name:
        return set(), {}
    named = os.path.relpath(base.path, place) if Path(base.path).exists() else base.path
    return frozen, {"base": {"hash": base.hash, "path": named}}
