"""A folder of Hugging Face's peft as a bundle: read in place, its base beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ptft_lightning.backbones.fused import part_rows
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import FORMAT, Bundle
from ptft_lightning.interop.adapters import BODY, AdapterBundle
from ptft_lightning.interop.families import (
    TASKS,
    build_parts,
    find_family,
    origin_of,
    read_task,
)
from ptft_lightning.interop.peft import CONFIG, KINDS, ROOT, SIDES, TENSORS, Pair
from ptft_lightning.interop.settings import Settings
from ptft_lightning.interop.tensor_files import read_json
from ptft_lightning.tasks.classification import Classification
from ptft_lightning.tuning.lora import ADDED, LoRA

# What changes the sum of weights and product, with the values that leave it alone.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    **dict.fromkeys(("use_dora", "use_qalora", "use_bdlora", "lora_bias"), (False, None)),
    **dict.fromkeys(("layer_replication", "target_parameters"), (None, [], {})),
    **dict.fromkeys(("trainable_token_indices", "alora_invocation_tokens"), (None, [], {})),
}


class PeftBundle(AdapterBundle):
    """A folder of peft's with its base, seen as a bundle tuned with LoRA."""

    def __init__(self, folder: Path, base: Bundle) -> None:
        found = _Adapters(folder, base)
        super().__init__(found)
        self.base = base
        if found.config["head"] is base.config["head"]:
            self.shared = (*self.shared, "head.")

    @property
    def tokenizer(self) -> Tokenizer:
        """See `Bundle`."""
        return self.base.tokenizer


def open_peft(folder: Path, elsewhere: str | None) -> PeftBundle:
    """Open a folder of peft's.

    Raises:
        UserError: its base is not known or not there, or its adapters are no plain LoRA.
    """
    from ptft_lightning.interop.open import open_model

    place = elsewhere or read_json(folder / CONFIG).get("base_model_name_or_path")
    if place is None:
        raise UserError(
            f"'{folder}' does not say which model its adapters are for: name it with --model.base "
            "PATH (or --base PATH)"
        )
    return PeftBundle(folder, open_model(place))


class _Adapters(Bundle):
    """The adapters, and a head if there is one, under our names."""

    def __init__(self, folder: Path, base: Bundle) -> None:
        self.settings, self.base = read_json(folder / CONFIG), base
        Settings(str(folder / CONFIG), self.settings, {}).require(PLAIN)
        self.family = getattr(base, "family", None) or find_family(
            base.config, base.tokenizer.pad, None, origin_of(base.lineage)
        )
        try:
            named = load_file(folder / TENSORS)
        except Exception as error:  # safetensors has its own exception class for a broken file
            raise UserError(f"'{folder / TENSORS}' cannot be read: {error}") from error
        self.theirs = {name.removeprefix(ROOT): tensor for name, tensor in named.items()}
        inside = any(name.startswith(self.family.prefix) for name in self.theirs)
        self.prefix = self.family.prefix if inside else ""
        self.tensors: dict[str, Tensor] = {}
        self.path = str(folder)
        lora = self._adapters()
        head = self._head()
        if self.theirs:
            raise UserError(
                f"'{folder}' has tensors that are no part of a {self.family.name}: "
                f"{', '.join([*self.theirs][:3])}"
            )
        tuned = head["name"] in TASKS
        config = {
            "format": FORMAT,
            "phase": "finetune" if tuned else base.config["phase"],
            "backbone": base.config["backbone"],
            "head": head,
            "tuning": lora.described,
        }
        super().__init__(str(folder), config, "", base.lineage)

    @property
    def identity(self) -> dict[str, Any]:
        """See `Bundle`."""
        return self.settings | {"base": self.base.hash}

    def names(self) -> list[str]:
        """See `Bundle`."""
        return list(self.tensors)

    def tensor(self, name: str) -> Tensor:
        """See `Bundle`."""
        return self.tensors[name]

    def _sources(self, name: str, head: str | None) -> tuple[str, ...]:
        """Their names of a tensor: as in a model with a head, or as in a bare one."""
        tied = bool(self.base.config["backbone"]["config"]["tie_embeddings"])
        return self.family.sources(name, head, tied, self.prefix)

    def _adapters(self) -> LoRA:
        """Take the pairs; the LoRA that has them."""
        names = [n for n in self.base.names() if n.startswith(f"{BODY}layers.")]
        weights = [n for n in names if n.endswith(".weight")]
        shapes = {n.removesuffix(".weight"): tuple(self.base.tensor(n).shape) for n in weights}
        shapes = {name: shape for name, shape in shapes.items() if len(shape) == 2}
        pairs: dict[str, dict[str, tuple[Pair, float]]] = {}
        for name in shapes:
            if found := self._layer(name, part_rows(name, shapes)):
                pairs[name] = found
        several = [
            (len(pair[0]), scale) for found in pairs.values() for pair, scale in found.values()
        ]
        if not several:
            raise UserError(f"'{self.path}' has no adapters of a {self.family.name}'s layers")
        if len(ranks := sorted({rank for rank, _ in several})) > 1:
            raise UserError(
                f"'{self.path}' has adapters of ranks {', '.join(map(str, ranks))}: only those of "
                "one rank are read"
            )
        scale, depth = several[0][1], self.base.config["backbone"]["config"]["depth"]
        for name, found in pairs.items():
            self.tensors[name + ADDED[0]] = torch.cat([pair[0] for pair, _ in found.values()])
            own = [pair[1] * (other / scale) for pair, other in found.values()]
            self.tensors[name + ADDED[1]] = torch.cat(own)
        dropout = float(self.settings.get("lora_dropout") or 0.0)
        return LoRA(ranks[0], scale * ranks[0], dropout, targets=_targets(pairs, depth))

    def _layer(self, name: str, rows: Mapping[str, int]) -> dict[str, tuple[Pair, float]]:
        """The pair and scale of each part of a layer that has one."""
        named = self._sources(f"{name}.weight", self.base.config["head"]["name"])
        if len(named) == len(rows):
            taken = {part: self._take(n) for part, n in zip(rows, named, strict=True)}
            return {part: pair for part, pair in taken.items() if pair is not None}
        whole = self._take(named[0])
        if whole is None:
            return {}
        (a, b), scale = whole
        return {part: (pair, scale) for part, pair in _apart(a, b, rows).items()}

    def _take(self, source: str) -> tuple[Pair, float] | None:
        module = source.removesuffix(".weight")
        pair = [self.theirs.pop(module + side, None) for side in SIDES]
        if pair[0] is None or pair[1] is None:
            return None
        rank = len(pair[0])
        alpha = float(_by_pattern(self.settings, "alpha_pattern", module, "lora_alpha"))
        root = self.settings.get("use_rslora")
        return (pair[0], pair[1]), alpha / (rank**0.5 if root else rank)

    def _head(self) -> dict[str, Any]:
        """The base's head, or the one of a task that was trained with the adapters."""
        head: dict[str, Any] = self.base.config["head"]
        if not self.theirs:
            return head
        family, shape = self.family, TransformerConfig(**self.base.config["backbone"]["config"])
        settings = getattr(self.base, "settings", None)
        settings = settings or Settings("config.json", family.write(shape), family.defaults)
        kind = head["name"]
        if kind not in TASKS:
            kinds = {theirs: ours for ours, theirs in KINDS.items() if ours in TASKS}
            kind = kinds.get(str(self.settings.get("task_type")), Classification.name)
            if family.architecture(kind) is None:
                raise UserError(
                    f"'{self.path}' has a head for task_type {self.settings['task_type']}, and "
                    f"{family.name} has none of that kind here: {', '.join(family.heads)} are read"
                )
            last = self._sources("head.classifier.weight", kind)
            count = len(self.theirs[last[0]]) if last and last[0] in self.theirs else 0
            head = read_task(kind, family, settings, [f"LABEL_{i}" for i in range(count)])
        with torch.device("meta"):
            ours = build_parts({**self.base.config, "head": head}).state_dict()
        for name in [n for n in ours if n.startswith("head.")]:
            named = self._sources(name, kind)
            if all(n in self.theirs for n in named):
                self.tensors[name] = family.merge({n: self.theirs.pop(n) for n in named})
        return head


def _apart(a: Tensor, b: Tensor, rows: Mapping[str, int]) -> dict[str, Pair]:
    """A fused layer's pair as pairs of its parts: its blocks, if it is made of such; else each has
    the whole A."""
    below = dict(zip(rows, torch.split(b, list(rows.values())), strict=True))
    used = [part for part in rows if bool(below[part].any())]
    if used and len(a) % len(used) == 0:
        rank = len(a) // len(used)
        blocks = {part: slice(i * rank, (i + 1) * rank) for i, part in enumerate(used)}
        inside = sum(int(below[part][:, s].count_nonzero()) for part, s in blocks.items())
        if inside == int(b.count_nonzero()):
            return {part: (a[s], below[part][:, s]) for part, s in blocks.items()}
    return {part: (a, below[part]) for part in rows}


def _targets(pairs: Mapping[str, Mapping[str, Any]], depth: int) -> list[str]:
    """Patterns that choose just these parts of a backbone of so many layers."""
    chosen: dict[str, list[str]] = {}
    for name, found in pairs.items():
        for part in found:
            path = f"{name.removeprefix(BODY).rpartition('.')[0]}.{part}"
            chosen.setdefault(part, []).append(path)
    whole = {part for part, paths in chosen.items() if len(paths) == depth}
    return [p for part, paths in chosen.items() for p in ([part] if part in whole else paths)]


def _by_pattern(settings: Mapping[str, Any], table: str, module: str, default: str) -> Any:
    """Their rule: the first pattern that the end of a module's name matches."""
    for pattern, value in (settings.get(table) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return settings[default]
