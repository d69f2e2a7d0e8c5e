"""In-batch negatives: every other pair of a batch shows what a text does not match."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from ptft_lightning.terms import Term


def contrast(
    first: Tensor,
    others: Tensor,
    keys: Tensor,
    positive: Tensor,
    temperature: float,
    symmetric: bool,
    gather: bool,
) -> Term:
    """InfoNCE (van den Oord et al. 2018), as a sum over the pairs that match.

    -log exp(s(u_i, v_i) / t) / sum_c exp(s(u_i, c) / t) with s the cosine. The candidates c are
    the second texts of all pairs and all hard negatives, but for those that are no negatives of
    u_i: copies of v_i, and what is paired with a copy of u_i as its match.

    Args:
        first: (N, dim) vectors of length 1 of the first texts.
        others: (N, 1 + K, dim) of the second texts and of K hard negatives each.
        keys: (N, 2 + K) which text each is; equal ones are copies, 0 where there is none.
        positive: (N,) whether a pair matches; others are candidates alone.
        temperature: What cosines are divided by.
        symmetric: Average with the other direction: v_i among all first texts (Radford et al.
            2021).
        gather: Candidates from all ranks; every rank must call it with tensors of one shape.
    """
    every = [_from_all_ranks(x) if gather else x for x in (first, others, keys, positive.long())]
    firsts, all_others, all_keys, positives = *every[:3], every[3] > 0
    start = distributed.get_rank() * len(first) if gather and _ranks() > 1 else 0
    own = start + torch.arange(len(first), device=first.device)
    # Second texts stand before hard negatives: a pair's own candidate has the pair's number.
    candidates = torch.cat([all_others[:, 0], all_others[:, 1:].flatten(0, 1)])
    names = torch.cat([all_keys[:, 1], all_keys[:, 2:].flatten()])
    extra = len(names) - len(positives)
    anchors = F.pad(all_keys[:, 0], (0, extra))
    matched = F.pad(positives, (0, extra))
    left = (names == 0) | (names == keys[:, 1:2]) | ((anchors == keys[:, :1]) & matched)
    losses = _losses(first @ candidates.T / temperature, left, own)
    if symmetric:
        left = (all_keys[:, 0] == 0) | (all_keys[:, 0] == keys[:, :1])
        left = left | ((all_keys[:, 1] == keys[:, 1:2]) & positives)
        back = _losses(others[:, 0] @ firsts.T / temperature, left, own)
        losses = (losses + back) / 2
    return Term(losses.where(positive, 0.0).sum(), positive.sum())


def _losses(similar: Tensor, left_out: Tensor, own: Tensor) -> Tensor:
    """(N,) cross-entropies of (N, C) similarities, each one's own candidate being right."""
    left_out = left_out.scatter(1, own[:, None], False)
    return F.cross_entropy(similar.float().masked_fill(left_out, -torch.inf), own, reduction="none")


def _ranks() -> int:
    started = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if started else 1


def _from_all_ranks(mine: Tensor) -> Tensor:
    """(N, ...) of each rank -> (ranks * N, ...), differentiable in every rank's own part."""
    if _ranks() == 1:
        return mine
    out: Tensor = _Gather.apply(mine)  # type: ignore[no-untyped-call]
    return out


class _Gather(torch.autograd.Function):
    """Each rank's part counts in the losses of all ranks, so that its gradient is their sum."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(_ranks())]
        distributed.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous()
        distributed.all_reduce(whole)
        return whole.chunk(_ranks())[distributed.get_rank()]
