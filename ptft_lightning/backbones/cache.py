"""Keys and values of the tokens read so far, so that generation reads each token once."""

from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """One layer's keys and values, (B, H, capacity, D) each, filled from the left.

    A recurrent layer, whose state is all it knows, has its (B, width) hidden states in place of
    keys and its (B, hidden_dim) cells' in place of values.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.keys = self.values = torch.empty(0)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, H, T, D) keys and values; give all so far, (B, H, length, D)."""
        if not self.length:
            batch, heads, _, width = key.shape
            self.keys = key.new_empty(batch, heads, self.capacity, width)
            self.values = torch.empty_like(self.keys)
        stop = self.length + key.shape[2]
        self.keys[:, :, self.length : stop] = key
        self.values[:, :, self.length : stop] = value
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def keep(self, hidden: Tensor, cells: Tensor, tokens: int) -> None:
        """Put the state after so many more tokens in place of the one before."""
        self.keys, self.values, self.length = hidden, cells, self.length + tokens


class KeyValueCache:
    """The cache of a whole backbone for B rows of up to `capacity` tokens; no gradients.

    Rows of different lengths are padded on the left: `documents` 0 there, 1 elsewhere.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.layers = [LayerCache(capacity) for _ in range(layers)]
        self.documents: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens of a row read so far, padding included."""
        return self.layers[0].length

    def see(self, documents: Tensor | None) -> Tensor | None:
        """Documents of all tokens, once those of the next (B, T) are known; None = all one."""
        if self.documents is not None and documents is not None:
            documents = torch.cat([self.documents, documents], dim=1)
        self.documents = documents
        return documents

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, (B',) indices; beams drop some and double others."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        if self.documents is not None:
            self.documents = self.documents[rows]
