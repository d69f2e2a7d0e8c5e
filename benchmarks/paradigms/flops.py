"""FLOPs of a training step, counted while one is computed; recurrent layers, which torch's counter
does not see on CPUs, from their weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ptft_lightning.backbones.config import BackboneConfig
from ptft_lightning.data.batch import build_batch
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.modules.nets import PretrainNet, build_backbone, fill
from ptft_lightning.objectives.base import Objective

ROWS = 2


def flops_per_row(
    objective: Objective, backbone: BackboneConfig, tokenizer: Tokenizer, length: int
) -> float:
    """Forward and backward pass of one full row of random tokens: a product of (n, k) and (k, m)
    matrices is 2 n k m; norms, softmax and sorting are left out, as is usual."""
    shape = asdict(backbone)  # type: ignore[call-overload]
    with torch.device("meta"):
        built = build_backbone(backbone.kind, shape, tokenizer.size, tokenizer)
        head = objective.build_head(built, shape["tie_embeddings"])
        net = PretrainNet(built, head)
    fill(net, torch.device("cpu"), lambda name: None, seed=0)
    batch = _batch(objective, tokenizer, length)
    # Each weight of a cell is multiplied with each token once, and twice in the backward pass.
    weights = sum(
        parameter.numel()
        for cell in net.modules()
        if isinstance(cell, (nn.LSTM, nn.GRU))
        for name, parameter in cell.named_parameters()
        if name.startswith("weight")
    )
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        terms = net(batch).terms.values()
        torch.stack([term.total for term in terms]).sum().backward()
    return counter.get_total_flops() / ROWS + 6.0 * weights * length


def _batch(objective: Objective, tokenizer: Tokenizer, length: int) -> Any:
    rng = np.random.default_rng(0)
    tokens = rng.choice(tokenizer.ordinary, (ROWS, length + 1))
    documents, numbers = np.ones_like(tokens), np.arange(ROWS)
    inputs, targets = objective.make(tokens, documents, numbers, 0, tokenizer)
    return build_batch(inputs, documents[:, :-1], numbers, targets, ROWS)
