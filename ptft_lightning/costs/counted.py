"""FLOPs as torch's own counter counts them, on the meta device: nothing is computed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ptft_lightning.data.batch import Batch
from ptft_lightning.modules.nets import Net, PretrainNet


def counted_flops(net: Net, batch: Batch) -> int:
    """Of the forward and backward pass of a micro-batch.

    `net` stands on the meta device. Attention is counted as plain products: torch 2.13 counts the
    fused kernels of CUDA, but not that of CPUs. Of phase two's nets the head is left out.
    """
    there = batch.to("meta")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = _loss(net, there)
        if loss.requires_grad:
            torch.autograd.backward(loss)
    return int(counter.get_total_flops())


def _loss(net: Net, batch: Batch) -> Tensor:
    if isinstance(net, PretrainNet):
        return torch.stack([term.total for term in net(batch).terms.values()]).sum()
    return net.hidden(batch).sum()
