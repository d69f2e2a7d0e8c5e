"""Hidden states -> logits of the next tokens, by the projection of phase one; knows no template."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.tasks.base import TaskHead
from ptft_lightning.terms import Output, Term, projected_cross_entropy


class VocabularyHead(TaskHead):
    """Vocabulary logits; tied to the embedding where the backbone was pretrained so."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.projection: nn.Linear | None = None
        if not backbone.tied:
            self.projection = nn.Linear(backbone.dim, backbone.vocab_size, bias=False)
        # Not registered: its weight belongs to the backbone, and may be replaced by a sharded one.
        self.shared = (backbone.embedding,)

    def _weight(self) -> Tensor:
        return self.shared[0].weight if self.projection is None else self.projection.weight

    def logits(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """(..., dim) hidden states -> (..., vocabulary) logits."""
        return nn.functional.linear(hidden, self._weight())

    def reads(self, batch: Batch, backbone: Backbone) -> Batch:
        """Of a prefix-LM, prompts are the prefix, with what a tuning keeps in front of them."""
        if not backbone.prefix_lm:
            return batch
        at, tokens = batch.targets, batch.tokens
        row, start = at["prompt_row"], at["prompt_start"]
        documents = torch.ones_like(tokens) if batch.documents is None else batch.documents
        own = documents[row] == documents[row, start][:, None]
        before = (
            torch.arange(tokens.shape[1], device=tokens.device) < (start + at["prompt"])[:, None]
        )
        # Of an example that fills up a micro-batch the prompt is empty.
        prompts = (own & before & (at["prompt"] > 0)[:, None]).long()
        return replace(batch, segments=torch.zeros_like(tokens).index_add_(0, row, prompts))

    def forward(self, hidden: Tensor, batch: Batch) -> Output:
        """(B, T, dim) hidden states -> the `generation` term over K targets."""
        at, labels = batch.targets, batch.targets["labels"]
        chosen = hidden[at["row"], at["at"]]
        losses, right = projected_cross_entropy(chosen, self._weight(), None, labels)
        count = torch.tensor(len(labels), device=labels.device)
        return Output({"generation": Term(losses.sum(), count)}, {"token_accuracy": right})
