"""A net of phase two made ready to write text: as its tuning reads, whole on every rank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from ptft_lightning.backbones.base import Backbone, Prefix
from ptft_lightning.backbones.cache import KeyValueCache
from ptft_lightning.data.batch import Batch
from ptft_lightning.modules.nets import TaskNet
from ptft_lightning.tuning.base import Reader


@contextlib.contextmanager
def ready_to_decode(net: TaskNet, compiled: bool) -> Iterator[Backbone]:
    """The backbone to call, with a cache, while the context lasts.

    Ranks write different numbers of tokens: where the net is sharded, each gathers all of it once,
    and none waits for another. Compiled layers run as they are: each length would be compiled anew.
    """
    shards = {name: part for name, part in net.named_modules() if isinstance(part, FSDPModule)}
    eager = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    for shard in shards.values():
        shard.set_reshard_after_forward(False)
        shard.unshard()
    try:
        with eager:
            yield net.backbone if net.reader is None else Reading(net.backbone, net.reader)
    finally:
        for name, shard in shards.items():
            shard.reshard()
            shard.set_reshard_after_forward(name != "")  # as `shard` in nets.py leaves the root


class _Seen(Backbone):
    """A backbone whose inputs stand in its own place: what is not said stays as it is."""

    def __init__(self, of: Backbone) -> None:
        super().__init__()
        self.of, self.embedding, self.layers = of, of.embedding, of.layers
        self.dim, self.input_dim, self.vocab_size = of.dim, of.input_dim, of.vocab_size
        self.max_length, self.prefix_lm = of.max_length, of.prefix_lm
        self.causal, self.packs = of.causal, of.packs
        self.norm_eps, self.bias, self.tied = of.norm_eps, of.bias, of.tied


class Cached(_Seen):
    """A backbone that reads with a given cache, whoever calls it."""

    def __init__(self, of: Backbone, cache: KeyValueCache | None) -> None:
        super().__init__(of)
        self.cache = cache

    def forward(self, *args: Any, **more: Any) -> Tensor:
        """See `Backbone`."""
        out: Tensor = self.of(*args, **{**more, "cache": self.cache})
        return out


class Reading(_Seen):
    """A backbone as a tuning's reader reads with it, token by token."""

    def __init__(self, of: Backbone, reader: Reader) -> None:
        super().__init__(of)
        self.reader = reader

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        prefix: Prefix | None = None,
        cache: KeyValueCache | None = None,
        all_layers: bool = False,
    ) -> Tensor:
        """See `Backbone`; a reader finds the places it keeps by their positions."""
        assert (embeds, prefix, all_layers) == (None, None, False), "they are the reader's part"
        if positions is None:
            read = 0 if cache is None else cache.length
            places = torch.arange(read, read + tokens.shape[1], device=tokens.device)
            positions = places[None].expand_as(tokens)
        none = tokens.new_zeros(0)
        batch = Batch(tokens, documents, positions, segments, none, none, {}, 0, tokens.numel())
        out: Tensor = self.reader(Cached(self.of, cache), batch)
        return out
