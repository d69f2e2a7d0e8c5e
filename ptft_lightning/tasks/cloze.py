"""Cloze: a label is said by a word in the gap of a template, by the head of phase one."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.examples import Columns, Encoded, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import Arrays, TaskHead
from ptft_lightning.tasks.classification import Classification
from ptft_lightning.tasks.cloze_template import Template, as_array
from ptft_lightning.terms import IGNORE, Output, Term


class Cloze(Classification):
    """Classification as a gap to be filled, for few labels or none (Schick & Schuetze 2021).

    Nothing of the head is new, so that a phase-one model can be tested and can predict as it is.
    A label's score is the mean over its words of the sum of their tokens' log-probabilities, each
    token's in its own gap; the loss is the cross-entropy of the labels' scores.

    Args:
        template: What the model reads: `{text}`, perhaps `{pair}`, and the gap, a `{mask}` for each
            token of the words. For a causal model it ends with the gap.
        verbalizer: The words that say each label.
        objective: What the model was pretrained with.
        monitor: The validation metric that decides which bundle is best.
    """

    name = "cloze"
    shaping = ("template", "verbalizer", "objective")
    zero_shot = True

    def __init__(
        self,
        template: str,
        verbalizer: dict[str, list[str]],
        objective: Literal["masked", "causal"] = "masked",
        monitor: Literal["accuracy", "macro_f1", "mcc", "loss"] = "accuracy",
    ) -> None:
        super().__init__(monitor=monitor)
        self.source, self.verbalizer, self.objective = template, verbalizer, objective
        self.template, self.causal = Template(template), objective == "causal"
        if len(verbalizer) < 2 or not all(verbalizer.values()):
            raise UserError(
                f"task.verbalizer is {verbalizer}: give two labels or more, each with its words, "
                "as in {good: [great, fine], bad: [awful]}"
            )

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {
            "template": self.source,
            "verbalizer": self.verbalizer,
            "objective": self.objective,
            "monitor": self.monitor.removeprefix("val_"),
        }

    def check(self, tokenizer: Tokenizer, causal: bool) -> None:
        """See `Task`."""
        if causal != self.causal:
            raise UserError(
                f"task.objective is '{self.objective}', and the model of model.init_from is "
                f"{'' if causal else 'not '}causal: give {'causal' if causal else 'masked'}"
            )
        self.template.check(tokenizer, causal)
        self.template.word_ids(self.verbalizer, tokenizer)

    def known_labels(self) -> list[str]:
        """Those that have words."""
        return [*self.verbalizer]

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Example]:
        """See `Task`."""
        if self.template.paired != (columns.pair is not None):
            paired = self.template.paired
            fix = "has {pair}: name its column with" if paired else "has no {pair}: leave out"
            raise UserError(f"task.template {fix} data.columns.pair")
        return super().read(path, columns, labelled, bad)

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """The template of each example, with the places of its gap and the ids of all words."""
        ids = {label: i for i, label in enumerate(labels)}
        # In the order of the labels' ids, whatever order the verbalizer was written in.
        named = {label: self.verbalizer[label] for label in labels}
        words = as_array(self.template.word_ids(named, tokenizer))
        found = self.template.encode(examples, tokenizer, max_length, self.causal)
        for example, (item, gap) in zip(examples, found, strict=True):
            item.targets |= {"gap": np.array(gap, np.int64), "words": words}
            for label in self.labels_of(example):
                item.targets["label"] = np.array(ids[label])
        return [item for item, _ in found]

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> Arrays:
        """Row and gap (masks,) of each example and its label, IGNORE in an empty slot; the words'
        ids (labels, words, masks), -1 where there is none."""
        masks = self.template.masks
        none = np.zeros((len(self.verbalizer), 1, masks), np.int64)
        gaps = [e.targets.get("gap", np.zeros(masks, np.int64)) for e in packed]
        labels = [e.targets.get("label", IGNORE) for e in packed]
        words = next((e.targets["words"] for e in packed if "words" in e.targets), none)
        return {
            "row": rows,
            "gap": np.stack(gaps) + starts[:, None],
            "label": np.array(labels, np.int64),
            "words": words,
        }

    def build_head(self, backbone: Backbone, labels: list[str]) -> TaskHead:
        """The head of phase one."""
        return ClozeHead(backbone, self.causal)


class Projection(nn.Module):
    """The rows of phase one's projection to the vocabulary, under the names it has there."""

    def __init__(self, backbone: Backbone, bias: bool) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = None
        if not backbone.tied:
            self.weight = nn.Parameter(torch.empty(backbone.vocab_size, backbone.dim))
        self.bias = nn.Parameter(torch.empty(backbone.vocab_size)) if bias else None
        # Not registered: its weight belongs to the backbone, and may be replaced by a sharded one.
        self.shared = (backbone.embedding,)

    def forward(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """(N, M, dim) hidden states, (L, W, M) ids -> (N, L, W): the sum over M of the logits."""
        weight = self.shared[0].weight if self.weight is None else self.weight
        rows = weight[ids].to(hidden.dtype)
        logits = torch.einsum("nmd,lwmd->nlw", hidden, rows).float()
        return logits if self.bias is None else logits + self.bias[ids].float().sum(-1)


class ClozeHead(TaskHead):
    """Scores of labels by the logits of their words. What a softmax over the vocabulary would take
    off is the same for all words, and leaves the labels' probabilities as they are."""

    def __init__(self, backbone: Backbone, causal: bool) -> None:
        super().__init__()
        self.dense: nn.Module | None = None
        self.norm: nn.Module | None = None
        if not causal:
            self.dense = nn.Linear(backbone.dim, backbone.dim, bias=backbone.bias)
            self.norm = nn.LayerNorm(backbone.dim, eps=backbone.norm_eps, bias=backbone.bias)
        self.projection = Projection(backbone, bias=not causal)

    def forward(self, hidden: Tensor, batch: Batch) -> Output:
        """(B, T, dim) hidden states -> the `cloze` term and (N, labels) scores."""
        at, labels = batch.targets, batch.targets["label"]
        states = hidden[at["row"][:, None], at["gap"]]
        if self.dense is not None and self.norm is not None:
            states = self.norm(F.gelu(self.dense(states)))
        there = (at["words"] >= 0).all(-1)
        logits = self.projection(states, at["words"].clamp(min=0))
        scores = logits.where(there, 0.0).sum(-1) / there.sum(-1)
        total = F.cross_entropy(scores, labels, ignore_index=IGNORE, reduction="sum")
        return Output({"cloze": Term(total, (labels != IGNORE).sum(), nominal=1.0)}, scores=scores)
