"""Prompt tuning: a few trained vectors in front of every example (Lester et al. 2021).

The backbone stays as it is. Places for the vectors are kept free before examples are packed, so a
prompt costs `length` tokens of `data.max_length`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.sample_order import random_key
from ptft_lightning.errors import UserError
from ptft_lightning.tuning.base import Reader, Tuning

Init = Literal["vocabulary", "random"]
TABLE = "backbone.embedding.weight"


class PromptTuning(Tuning):
    """A prompt of trained embeddings and the head train, nothing else.

    Args:
        length: Vectors of the prompt; they are taken from data.max_length.
        init: What they begin as: the embeddings of tokens chosen by the seed, or random values.
    """

    name = "prompt"

    def __init__(self, length: int = 20, init: Init = "vocabulary") -> None:
        if length < 1:
            raise UserError(f"tuning.length is {length}: give a prompt of 1 vector or more")
        self.reserved, self.init = length, init
        self.reads = f"behind a prompt of {length} vectors"

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {"length": self.reserved, "init": self.init}

    def apply(self, backbone: Backbone) -> None:
        """Freeze the backbone."""
        backbone.requires_grad_(False)

    def build_reader(self, backbone: Backbone) -> Reader:
        """See `PromptReader`.

        Raises:
            UserError: there are no embeddings of tokens to begin with.
        """
        if self.init == "vocabulary" and not isinstance(backbone.embedding, nn.Embedding):
            raise UserError(
                "model.tuning.init is vocabulary, and the backbone has no embedding of tokens but "
                "reads their characters: give random"
            )
        return PromptReader(backbone.input_dim, self.reserved, self.init)


class PromptReader(Reader):
    """Puts the prompt's vectors in place of the embeddings of the reserved places."""

    def __init__(self, dim: int, length: int, init: Init) -> None:
        super().__init__()
        self.init = init
        self.prompt = nn.Parameter(torch.empty(length, dim))

    def forward(self, backbone: Backbone, batch: Batch) -> Tensor:
        """See `Reader`; the first places of every document are the prompt's."""
        tokens, documents, positions = batch.tokens, batch.documents, batch.positions
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        length = len(self.prompt)
        reserved = positions < length
        if documents is not None:
            reserved = reserved & (documents > 0)
        prompt = F.embedding(positions.clamp(max=length - 1), self.prompt)
        embeds = torch.where(reserved[..., None], prompt, backbone.embedding(tokens))
        out: Tensor = backbone(tokens, documents, batch.positions, batch.segments, embeds=embeds)
        return out

    def initial(self, name: str, value_of: Callable[[str], Tensor], seed: int) -> Tensor:
        """Different rows of the embedding, as far as it has so many."""
        if name != "reader.prompt" or self.init == "random":
            return value_of(name)
        table, generator = value_of(TABLE), torch.Generator(device="cpu")
        generator.manual_seed(random_key(seed, name) % 2**63)
        chosen = torch.randperm(len(table), generator=generator, device="cpu")
        return table[chosen[torch.arange(len(self.prompt), device="cpu") % len(table)]]
