"""A linear-chain conditional random field over the words of a batch (Lafferty et al. 2001).

The score of tags y of words 1..n with (n, L) emissions e is

    start[y_1] + sum_i e[i, y_i] + sum_i transitions[y_i-1, y_i] + end[y_n]

and their probability is its exponential over the sum of those of all tags. Steps that a scheme
forbids cost so much that they never happen. A chain that is a part of a sentence has no start or
end where the sentence goes on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ptft_lightning.tasks.tags import Scheme, may_follow

FORBIDDEN = -1e4


class ChainCRF(nn.Module):
    """Scores of steps from tag to tag.

    In all methods: (N, W, L) `emissions`; (N, W) `real`, the words of each chain, then its
    padding; (N, 2) `edges`, whether the chain has a sentence's first and last word.

    Args:
        labels: The tags, by their ids.
        scheme: What they are written in; None: any may follow any.
    """

    def __init__(self, labels: list[str], scheme: Scheme | None) -> None:
        super().__init__()
        count = len(labels)
        # In numpy: no part of the state, and modules are built on meta.
        self.costs = _costs(labels, scheme)
        self.transitions = nn.Parameter(torch.empty(count, count))
        # Called biases, because they begin at 0 as those do.
        self.start_bias = nn.Parameter(torch.empty(count))
        self.end_bias = nn.Parameter(torch.empty(count))

    def losses(self, emissions: Tensor, tags: Tensor, real: Tensor, edges: Tensor) -> Tensor:
        """(N,) negative log-likelihoods of (N, W) tags; 0 for a chain without words."""
        start, steps, end = self._scores(edges)
        alpha = emissions[:, 0] + start
        for at in range(1, emissions.shape[1]):
            following = (alpha[:, :, None] + steps).logsumexp(1) + emissions[:, at]
            alpha = torch.where(real[:, at, None], following, alpha)
        whole = (alpha + end).logsumexp(1)
        return (whole - self._score(emissions, tags, real, start, steps, end)) * real[:, 0]

    def _score(
        self,
        emissions: Tensor,
        tags: Tensor,
        real: Tensor,
        start: Tensor,
        steps: Tensor,
        end: Tensor,
    ) -> Tensor:
        tags = tags * real
        own = emissions.gather(2, tags[:, :, None])[:, :, 0] * real
        moves = steps[tags[:, :-1], tags[:, 1:]] * real[:, 1:]
        last = tags.gather(1, (real.sum(1, keepdim=True) - 1).clamp(min=0))
        edges = start.gather(1, tags[:, :1]) + end.gather(1, last)
        return own.sum(1) + moves.sum(1) + edges[:, 0]

    @torch.no_grad()
    def best(self, emissions: Tensor, real: Tensor, edges: Tensor) -> Tensor:
        """(N, W) the most likely tags of each chain (Viterbi 1967); padding has any."""
        start, steps, end = self._scores(edges)
        alpha, before = emissions[:, 0] + start, list[Tensor]()
        stay = torch.arange(len(self.costs) - 1, device=emissions.device)
        for at in range(1, emissions.shape[1]):
            following, origin = (alpha[:, :, None] + steps).max(1)
            going = real[:, at, None]
            alpha = torch.where(going, following + emissions[:, at], alpha)
            before.append(torch.where(going, origin, stay))
        tags = [(alpha + end).argmax(1)]
        for origin in reversed(before):
            tags.append(origin.gather(1, tags[-1][:, None])[:, 0])
        return torch.stack(tags[::-1], 1)

    def _scores(self, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, L) of starts, (L, L) of steps and (N, L) of ends, in float32."""
        costs = torch.from_numpy(self.costs).to(edges.device)
        start = self.start_bias.float() + costs[-1, :-1]
        end = self.end_bias.float() + costs[:-1, -1]
        steps = self.transitions.float() + costs[:-1, :-1]
        return start * edges[:, :1], steps, end * edges[:, 1:]


def _costs(labels: list[str], scheme: Scheme | None) -> npt.NDArray[np.float32]:
    """(L + 1, L + 1): what a step costs beside its score; the last row is a sentence's start, the
    last column its end."""
    border = [*labels, None]
    if scheme is None:
        return np.zeros((len(border), len(border)), np.float32)
    allowed = [[may_follow(one, two, scheme) for two in border] for one in border]
    return np.where(allowed, 0, FORBIDDEN).astype(np.float32)
