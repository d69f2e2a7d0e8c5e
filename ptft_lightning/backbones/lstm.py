"""An LSTM or GRU in one direction, or in two that do not see each other, as ELMo's."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ptft_lightning.backbones.base import Backbone, Prefix
from ptft_lightning.backbones.cache import KeyValueCache
from ptft_lightning.backbones.characters import CharacterEmbedding
from ptft_lightning.backbones.lstm_config import LSTMConfig
from ptft_lightning.backbones.recurrent import RecurrentLayer, steps_of
from ptft_lightning.backbones.unpacking import document_places
from ptft_lightning.data.tokenizer import Tokenizer


class LSTM(Backbone):
    """A stack of recurrent layers over token embeddings; its state begins anew at each document.

    What it knows of a document's beginning is in its state alone: `positions` and `segments` are
    not read, and a cache holds one state a layer.
    """

    config_class = LSTMConfig
    packs = True

    def __init__(self, config: LSTMConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.dim, self.input_dim, self.vocab_size = config.dim, config.width, vocab_size
        self.max_length, self.causal = config.max_length, config.causal
        self.tied = config.tie_embeddings and config.causal  # tasks' heads read all of `dim`
        if config.input == "characters":
            # What others ask of an embedding it has: vectors of tokens, and a weight's device.
            self.embedding = cast(nn.Embedding, CharacterEmbedding(config))
        else:
            self.embedding = nn.Embedding(vocab_size, config.width)
        self.layers = nn.ModuleList(RecurrentLayer(config, i) for i in range(config.depth))
        self.dropout = nn.Dropout(config.dropout)

    def spell(self, tokenizer: Tokenizer) -> None:
        """See `Backbone`."""
        if isinstance(self.embedding, CharacterEmbedding):
            self.embedding.spell(tokenizer)

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        prefix: Prefix | None = None,
        cache: KeyValueCache | None = None,
        all_layers: bool = False,
    ) -> Tensor:
        """See `Backbone`; the first of all layers has the embeddings once for each direction."""
        assert prefix is None, "it has no keys and values, as its config says"
        directions = self.config.directions
        assert cache is None or directions == 1, "what reads backwards begins at the end"
        if documents is None:
            documents = torch.ones_like(tokens)
        places = document_places(documents)
        steps = [steps_of(places, tokens.shape[1], bool(back)) for back in range(directions)]
        x: Tensor = self.embedding(tokens) if embeds is None else embeds
        x = x.repeat(1, 1, directions)
        states = []
        for i, layer in enumerate(self.layers):
            states.append(x)
            if self.recompute and torch.is_grad_enabled():  # a frozen backbone is in evaluation
                x = checkpoint(layer, x, steps, use_reentrant=False)
            else:
                x = layer(x, steps, None if cache is None else cache.layers[i])
        x = self.dropout(x)
        return torch.stack([*states, x]) if all_layers else x
