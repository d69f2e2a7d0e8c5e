"""What a net returns: loss terms as sums, so that no split of a batch changes the gradient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LossMean = Literal["target", "example"]

IGNORE = -100
CHUNK_ELEMENTS = 2**28  # logits held at once: 1 GiB in float32


@dataclass
class Term:
    """One part of the loss over the targets of a micro-batch.

    The gradient is that of `weight * minimised / (nominal * samples of the step)`, or, without a
    nominal, of `weight * minimised / targets of the step`: constants known beforehand, whatever the
    ranks, the accumulation and the packing. The reported loss is total / count.
    """

    total: Tensor
    """Sum of the losses of the targets, a scalar."""
    count: Tensor
    """Targets that counted, a scalar."""
    nominal: float | None = None
    """What one sample adds to `minimised` at most: the losses of so many targets, or one mean.
    None where samples have very different numbers of targets: then the loader counts those of the
    step (`Batch.step_targets`)."""
    weight: float = 1.0
    per_example: Tensor | None = None
    """Sum over samples of the mean over each one's own targets, where that is minimised."""
    by_row: Tensor | None = None
    """(2, B): `total` and `count` of each row, where somebody may ask for them."""

    @property
    def minimised(self) -> Tensor:
        """What the gradient is of, before the constant."""
        return self.total if self.per_example is None else self.per_example

    def share(self, step_samples: int, step_targets: int) -> Tensor:
        """What this micro-batch adds to the loss of an optimizer step."""
        whole = step_targets if self.nominal is None else self.nominal * step_samples
        return self.weight * self.minimised / max(whole, 1)


@dataclass
class Output:
    """What `net(batch)` gives: loss terms, sums for metrics, and per-example scores if any."""

    terms: dict[str, Term]
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Scalars to be added up and divided by the first term's count (such as right answers), or by
    that of the term they are named after: `pair_accuracy` by that of `pair`."""
    scores: Tensor | None = None
    """(N, ...) what is said of each sample, such as the logits of classes, for a task's metrics and
    predictions."""


def token_term(losses: Tensor, labels: Tensor, mean: LossMean) -> Term:
    """The term of (B, K) token losses, 0 where the (B, K) labels are IGNORE.

    With l_bk the losses, n_b the targets of row b, K the most a row can have and N the rows of the
    step, the gradient is that of

        target:   sum_bk l_bk / (K N)           every target weighs the same
        example:  sum_b (sum_k l_bk / n_b) / N  every row weighs the same, its targets share that

    They agree where all rows have K targets. Where rows differ, `target` follows the long ones,
    and is the likelihood of the text up to a constant; `example` gives a token of a short row
    more weight. A row without targets counts as 0. Both report sum_bk l_bk / sum_b n_b, so that
    perplexity and bits-per-byte stay comparable.
    """
    total, count = losses.sum(1), (labels != IGNORE).sum(1)
    by_row = torch.stack([total.detach().float(), count.float()])
    if mean == "target":
        nominal = float(labels.shape[1])
        return Term(losses.sum(), count.sum(), nominal=nominal, by_row=by_row)
    shared = (total / count.clamp(min=1)).sum()
    return Term(losses.sum(), count.sum(), nominal=1.0, per_example=shared, by_row=by_row)


def projected_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropies of (N, dim) hidden states against (N,) labels.

    Labels of IGNORE count for nothing. The (N, vocabulary) logits are made in chunks, again in
    backward, where they would be large.

    Returns:
        The (N,) losses, and the number of targets whose label is the most likely one.
    """
    rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    if len(hidden) <= rows:
        return _cross_entropy(hidden, weight, bias, labels)
    parts = [
        checkpoint(_cross_entropy, h, weight, bias, y, use_reentrant=False)
        for h, y in zip(torch.split(hidden, rows), torch.split(labels, rows), strict=True)
    ]
    losses, right = zip(*parts, strict=True)
    return torch.cat(losses), torch.stack(right).sum()


def _cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
) -> tuple[Tensor, Tensor]:
    logits = F.linear(hidden, weight, bias).float()
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    with torch.no_grad():
        # The label is the most likely one where its logit is the largest: cheaper than argmax.
        chosen = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        right = ((chosen == logits.amax(-1)) & (labels != IGNORE)).sum()
    return losses, right
