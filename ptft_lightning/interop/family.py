"""What a family of Hugging Face models is: one reversible table of tensor names, configs both ways.

A table has our names on the left and theirs on the right, without the prefix that models with a
head put before the backbone; `#` is a layer, `*` is weight or bias. Several on the right are the
parts of one of ours, in order along the first dimension.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.interop.settings import Settings, effective

Table = Mapping[str, str | tuple[str, ...]]
Heads = dict[str, str | None]
Values = dict[str, Any]
Only = dict[str, tuple[Any, ...]]
LAYER = re.compile(r"\.(\d+)\.")
# Constant tensors of older releases, which a model computes by itself.
BUFFERS = re.compile(r"(position_ids|\.attn\.(bias|masked_bias)|rotary_emb\.inv_freq)$")


class Family:
    """One model type.

    Attributes:
        name: `model_type` in config.json.
        prefix: before the names of the backbone in models with a head.
        backbone: table of the backbone.
        heads: architecture -> the head it has, None for a bare backbone; the first of each kind
            is the one written.
        turned: endings of tensors that are kept transposed.
        unused: tensors that are no part of our models.
        lent: tensors of a task's new head -> those it begins with that are no part of our models.
        spare: tensor -> the one that holds its values where it is missing.
        defaults: values of missing keys.
        only: keys that are read with these values alone.
        tagger: their name of a layer that tags every token.
    """

    name: ClassVar[str]
    prefix: ClassVar[str]
    backbone: ClassVar[Table]
    heads: ClassVar[Heads]
    turned: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[str] = r"(?!)"
    lent: ClassVar[dict[str, str]] = {}
    spare: ClassVar[dict[str, str]] = {}
    defaults: ClassVar[Values]
    only: ClassVar[Only]
    tagger: ClassVar[str] = "classifier"

    def read(self, theirs: Settings) -> TransformerConfig:
        """Their config as ours."""
        raise NotImplementedError

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        """Our config as theirs; what they lack is lost, `obstacles` tells."""
        raise NotImplementedError

    def head_table(self, head: str, tied: bool) -> Table:
        """Names of the tensors of a head that is more than one layer on every token."""
        raise NotImplementedError

    def read_classification(self, theirs: Settings) -> dict[str, Any]:
        """Task settings of their sequence classification."""
        raise NotImplementedError

    def write_classification(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Further keys of their config."""
        return {}

    def architecture(self, head: str | None) -> str | None:
        """The class that has such a head, None if there is none."""
        return next((name for name, kind in self.heads.items() if kind == head), None)

    def obstacles(self, config: TransformerConfig) -> dict[str, tuple[Any, Any]]:
        """Settings that would not come back: name -> (value, what this family has)."""
        back, mine = effective(self._there_and_back(config)), effective(config)
        return {k: (v, back[k]) for k, v in mine.items() if k in back and back[k] != v}

    def lost_dropout(self, config: TransformerConfig) -> list[str]:
        """Dropout that this family has not; it tells in training alone."""
        back = self._there_and_back(config)
        names = ("dropout", "ffn_dropout")
        return [name for name in names if getattr(config, name) != getattr(back, name)]

    def _there_and_back(self, config: TransformerConfig) -> TransformerConfig:
        return self.read(Settings("config.json", self.write(config), self.defaults))

    def sources(self, name: str, head: str | None, tied: bool, prefix: str) -> tuple[str, ...]:
        """Their names of one of our tensors, () if they have none."""
        own = name.startswith("head.")
        table = self._of_head(head, tied) if own and head is not None else self.backbone
        layer, (stem, _, kind) = LAYER.search(name), name.rpartition(".")
        key, stem = LAYER.sub(".#.", name), LAYER.sub(".#.", f"{stem}.")
        found = table.get(key, table.get(f"{stem}*", ()))
        names = (found,) if isinstance(found, str) else found
        number = layer[1] if layer else ""
        prefix = "" if own else prefix
        return tuple(prefix + n.replace("#", number).replace("*", kind) for n in names)

    def _of_head(self, head: str, tied: bool) -> Table:
        """Heads that are one layer on every token have no table of their own."""
        if head == "tagging":
            return {"head.classifier.*": f"{self.tagger}.*"}
        if head == "question_answering":
            return {"head.outputs.*": "qa_outputs.*"}
        return self.head_table(head, tied)

    def merge(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Our tensor from theirs, in the order of `sources`."""
        ours = [t.T if name.endswith(self.turned) else t for name, t in parts.items()]
        return ours[0] if len(ours) == 1 else torch.cat(ours)

    def split(
        self, tensor: Tensor, names: Sequence[str], config: TransformerConfig
    ) -> dict[str, Tensor]:
        """Their tensors from ours; each owns its memory."""
        parts = torch.split(tensor, part_sizes(tensor.shape[0], len(names), config))
        named = zip(names, parts, strict=True)
        return {n: (p.T if n.endswith(self.turned) else p).contiguous().clone() for n, p in named}

    def shapes(
        self, shape: Sequence[int], names: Sequence[str], config: TransformerConfig
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of their tensors, given that of ours."""
        sizes = zip(names, part_sizes(shape[0], len(names), config), strict=True)
        turns = {name: -1 if name.endswith(self.turned) else 1 for name in names}
        return {name: (size, *shape[1:])[:: turns[name]] for name, size in sizes}


def part_sizes(rows: int, parts: int, config: TransformerConfig) -> list[int]:
    """Rows of each part: three are queries, keys and values, two are gate and up."""
    if parts == 3:
        keys = config.key_heads * config.head_width
        return [rows - 2 * keys, keys, keys]
    return [rows // parts] * parts
