"""Faults that `check` must find."""

from __future__ import annotations

from torch import Tensor

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.objectives.causal import CausalHead, CausalLM
from ptft_lightning.terms import Output


class DetachedHead(CausalHead):
    """Learns from hidden states without telling the layers below."""

    def forward(self, hidden: Tensor, batch: Batch, embedding: Tensor) -> Output:
        return super().forward(hidden.detach(), batch, embedding)


class DetachedLM(CausalLM):
    """A causal objective whose gradient ends at its head."""

    def build_head(self, backbone: Backbone, tied: bool) -> DetachedHead:
        return DetachedHead(backbone, tied)
