"""What a net returns: loss terms as sums, so that no split of a batch changes the gradient."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORE = -100
CHUNK_ELEMENTS = 2**28  # logits held at once: 1 GiB in float32


@dataclass
class Term:
    """One part of the loss over the targets of a micro-batch.

    The gradient is that of `weight * total / (nominal * samples of the step)`: a constant known
    beforehand, whatever the ranks, the accumulation and the packing. The reported loss is
    total / count.
    """

    total: Tensor
    """Sum of the losses of the targets, a scalar."""
    count: Tensor
    """Targets that counted, a scalar."""
    nominal: float
    """Targets a sample has at most."""
    weight: float = 1.0


@dataclass
class Output:
    """What `net(batch)` gives: loss terms, sums for metrics, and per-example scores if any."""

    terms: dict[str, Term]
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Scalars to be added up and divided by the first term's count (such as right answers)."""
    scores: Tensor | None = None
    """(N, classes) logits of each example, for a task's metrics and predictions."""


def projected_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropies of (N, dim) hidden states against (N,) labels.

    Labels of IGNORE count for nothing. The (N, vocabulary) logits are made in chunks, again in
    backward, where they would be large.

    Returns:
        The sum of the losses, and the number of targets whose label is the most likely one.
    """
    rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    if len(hidden) <= rows:
        return _cross_entropy(hidden, weight, bias, labels)
    parts = [
        checkpoint(_cross_entropy, h, weight, bias, y, use_reentrant=False)
        for h, y in zip(torch.split(hidden, rows), torch.split(labels, rows), strict=True)
    ]
    totals, right = zip(*parts, strict=True)
    return torch.stack(totals).sum(), torch.stack(right).sum()


def _cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
) -> tuple[Tensor, Tensor]:
    logits = F.linear(hidden, weight, bias).float()
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    with torch.no_grad():
        # The label is the most likely one where its logit is the largest: cheaper than argmax.
        chosen = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        right = ((chosen == logits.amax(-1)) & (labels != IGNORE)).sum()
    return losses.sum(), right
