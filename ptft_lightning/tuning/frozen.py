"""Feature extraction: the backbone stays as it is, the head trains on its hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.errors import UserError
from ptft_lightning.tuning.base import Reader, Tuning
from ptft_lightning.tuning.features import store_features


class Frozen(Tuning):
    """No parameter of the backbone trains.

    Args:
        cache: Read each training and validation example once and keep its hidden states on disk:
            a directory, which runs may share, or true for `features` in the run directory.
        cache_dtype: Precision of what is kept of training examples; float16 takes half the room.
        cache_limit_gb: Gigabytes that may be kept.
        mix: Let the head train on a trained mean of all layers (Peters et al. 2018), not the last
            one; all are kept then.
    """

    name = "frozen"

    def __init__(
        self,
        cache: bool | str = False,
        cache_dtype: Literal["float32", "float16"] = "float32",
        cache_limit_gb: float = 20.0,
        mix: bool = False,
    ) -> None:
        if cache_limit_gb <= 0:
            raise UserError(f"tuning.cache_limit_gb is {cache_limit_gb}: give a positive number")
        self.cache, self.cache_dtype, self.cache_limit_gb = cache, cache_dtype, cache_limit_gb
        self.mix = mix
        self.reads = "a mean of all layers" if mix else ""
        self.tolerance = 1e-3 if cache else 0.0  # other batches round otherwise

    def config(self) -> dict[str, Any]:
        """What decides the features; not where they are kept."""
        return {"mix": True} if self.mix else {}

    def apply(self, backbone: Backbone) -> None:
        """Freeze the backbone."""
        backbone.requires_grad_(False)

    def build_reader(self, backbone: Backbone) -> Reader | None:
        """See `FrozenReader`."""
        if not (self.mix or self.cache):
            return None
        return FrozenReader(len(backbone.layers) if self.mix else None)

    def before_fit(self, module: Any) -> None:
        """Keep the hidden states, if asked."""
        if self.cache:
            beside = Path(module.trainer.default_root_dir) / "features"
            place = beside if self.cache is True else Path(self.cache)
            store_features(module, place, self.cache_dtype, self.cache_limit_gb)


class FrozenReader(Reader):
    """Gives the hidden states that a batch brings, or those of the backbone.

    The mean of `layers` + 1 states, the first of which are the embeddings, is
    gamma x sum_l softmax(weights)_l x state_l.
    """

    def __init__(self, layers: int | None) -> None:
        super().__init__()
        self.mix = layers is not None
        if layers is not None:
            self.weights = nn.Parameter(torch.empty(layers + 1))
            self.gamma = nn.Parameter(torch.empty(1))

    def states(self, backbone: Backbone, batch: Batch) -> Tensor:
        """(B, T, dim) of the last layer, or (B, T, layers + 1, dim) of all."""
        fields = batch.tokens, batch.documents, batch.positions, batch.segments
        states: Tensor = backbone(*fields, all_layers=self.mix)
        return states.permute(1, 2, 0, 3) if self.mix else states

    def forward(self, backbone: Backbone, batch: Batch) -> Tensor:
        """See `Reader`."""
        states = batch.targets.get("hidden")
        if states is None:
            states = self.states(backbone, batch)
        else:
            states = states.to(backbone.embedding.weight.dtype)
        if not self.mix:
            return states
        return self.gamma * torch.einsum("l,btld->btd", self.weights.softmax(0), states)
