"""The gradient of in-batch negatives over ranks, for a test that compares it with one process.

`torchrun -m ranks.contrasts OUT.pt`: each rank has its share of the pairs.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ptft_lightning.tasks.contrast import contrast

PAIRS, DIM = 8, 6


def step(rank: int, ranks: int, symmetric: bool, gather: bool) -> tuple[list[Tensor], float]:
    """Gradients of one step as training takes it, and this rank's part of the loss."""
    torch.manual_seed(0)
    net: nn.Module = nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh(), nn.Linear(DIM, DIM))
    inputs = torch.randn(PAIRS, 3, DIM)  # a text, its match, and a hard negative
    keys = torch.arange(1, PAIRS * 3 + 1).view(PAIRS, 3)
    keys[5, 1] = keys[0, 1]  # a copy on another rank
    keys[6, 0] = keys[1, 0]  # another match of one's text
    keys[7] = 0  # an empty slot
    match = torch.arange(PAIRS) < PAIRS - 1
    mine = slice(rank * PAIRS // ranks, (rank + 1) * PAIRS // ranks)
    if ranks > 1:
        net = DistributedDataParallel(net)
    unit = F.normalize(net(inputs[mine]), dim=-1)
    how = {"temperature": 0.3, "symmetric": symmetric, "gather": gather}
    term = contrast(unit[:, 0], unit[:, 1:], keys[mine], match[mine], **how)
    (ranks * term.share(PAIRS, PAIRS - 1)).backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return gradients, float(term.total.detach())


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    me, all_of_us = distributed.get_rank(), distributed.get_world_size()
    results = {}
    for both in (False, True):
        for over_ranks in (False, True):
            results[f"{both}-{over_ranks}"] = step(me, all_of_us, both, over_ranks)
    if me == 0:
        torch.save(results, sys.argv[1])
    distributed.destroy_process_group()
