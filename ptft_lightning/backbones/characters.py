"""A token's vector out of the bytes it is written with, by convolution; knows no documents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptft_lightning.backbones.lstm_config import LSTMConfig
from ptft_lightning.data.spelling import token_bytes
from ptft_lightning.data.tokenizer import Tokenizer

PADDING, BEGIN, END, FIRST = 0, 1, 2, 3  # ids; byte b is FIRST + b


def spell(tokenizer: Tokenizer, most: int) -> Tensor:
    """(V, most) ids of the bytes of each token, between BEGIN and END; long ones are cut."""
    table = torch.full((tokenizer.size, most), PADDING, dtype=torch.long, device="cpu")
    for row, spelled in zip(table, token_bytes(tokenizer), strict=True):
        ids = [BEGIN, *(FIRST + byte for byte in spelled[: most - 2]), END]
        row[: len(ids)] = torch.tensor(ids, device="cpu")
    return table


class CharacterEmbedding(nn.Module):
    """(...) tokens -> (..., width) vectors (Kim et al. 2016, as in Peters et al. 2018).

    Filters of several widths over the vectors of a token's bytes, the maximum of each over the
    places, ReLU, highway layers, a projection. Each token that occurs is computed once.
    """

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.most = config.max_characters
        self.cnn = CharacterCNN(config)
        self.table: Tensor | None = None  # no buffer: it is made anew from the tokenizer

    @property
    def weight(self) -> Tensor:
        """The vectors of bytes, (259, character_dim)."""
        return self.cnn.bytes.weight

    def spell(self, tokenizer: Tokenizer) -> None:
        """Learn how its tokens are written; comes before anything is read."""
        self.table = spell(tokenizer, self.most)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        assert self.table is not None, "spell() comes first"
        if self.table.device != tokens.device:
            self.table = self.table.to(tokens.device)
        kinds, which = torch.unique(tokens, return_inverse=True)
        out: Tensor = self.cnn(self.table[kinds])[which]
        return out


class CharacterCNN(nn.Module):
    """(N, characters) ids -> (N, width)."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.bytes = nn.Embedding(FIRST + 256, config.character_dim)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.character_dim, count, width) for width, count in config.filters
        )
        inner = sum(count for _, count in config.filters)
        self.highways = nn.ModuleList(nn.Linear(inner, 2 * inner) for _ in range(config.highways))
        self.projection = nn.Linear(inner, config.width)

    def forward(self, ids: Tensor) -> Tensor:
        """See the class."""
        x = self.bytes(ids).transpose(1, 2)
        x = torch.cat([c(x).amax(-1) for c in self.convolutions], -1).relu()
        for highway in self.highways:
            new, gate = highway(x).chunk(2, -1)
            # At first it mostly carries (Srivastava et al. 2015: a bias of -2).
            x = x + torch.sigmoid(gate - 2) * (new.relu() - x)
        out: Tensor = self.projection(x)
        return out
