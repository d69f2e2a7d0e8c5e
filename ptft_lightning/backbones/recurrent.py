"""One recurrent layer, and the order in which it reads packed rows; knows no embeddings."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ptft_lightning.backbones.cache import LayerCache
from ptft_lightning.backbones.lstm_config import LSTMConfig

SPAN = 32  # steps that documents are read together before the shorter ones are left out


class Steps(NamedTuple):
    """Documents as a cell reads them, the longest first."""

    places: Tensor
    """(D, L) places of their tokens in the flattened rows, in the order they are read; -1 past
    the end."""
    sizes: Tensor
    """(L,) how many documents have so many tokens; on the CPU."""
    rows: Tensor
    """(D,) the row each is in."""


def steps_of(places: Tensor, row_length: int, backwards: bool) -> Steps:
    """(D, L) places as `document_places` gives them -> in the order of reading."""
    lengths = (places >= 0).sum(1)
    turn = lengths.argsort(descending=True, stable=True)
    places, lengths = places[turn], lengths[turn]
    rows = places[:, 0] // row_length
    if backwards:
        offsets = lengths[:, None] - 1 - torch.arange(places.shape[1], device=places.device)
        places = torch.where(offsets >= 0, places.gather(1, offsets.clamp(min=0)), -1)
    return Steps(places, (places >= 0).sum(0).cpu(), rows)


class RecurrentLayer(nn.Module):
    """An LSTM or GRU layer of each direction: (B, T, dim) -> (B, T, dim), half of it each one's."""

    def __init__(self, config: LSTMConfig, layer: int) -> None:
        super().__init__()
        self.residual = config.residual and layer > 0
        self.dropout = nn.Dropout(config.dropout)
        self.cells = nn.ModuleDict()
        for name in ("forward", "backward")[: config.directions]:
            self.cells[f"{name}_{config.cell}"] = _build_cell(config)

    def train(self, mode: bool = True) -> RecurrentLayer:
        """The cells always are: they have no dropout, and cuDNN passes no gradients through those
        of a frozen backbone otherwise."""
        super().train(mode)
        self.cells.train(True)
        return self

    def forward(self, x: Tensor, steps: list[Steps], cache: LayerCache | None = None) -> Tensor:
        """See the class; `steps` has those of each direction. 0 at padding."""
        parts = []
        halves = x.flatten(0, 1).chunk(len(self.cells), -1)
        for cell, part, at in zip(self.cells.values(), halves, steps, strict=True):
            state = _state(cell, part, at, cache)
            out, state = _read(cell, self.dropout(part), at, state, cache is not None)
            if cache is not None:
                _keep(cache, state, at.rows, x)
            parts.append(out)
        y = torch.cat(parts, -1).view_as(x)
        return x + y if self.residual else y


def _build_cell(config: LSTMConfig) -> nn.RNNBase:
    if config.cell == "gru":
        return nn.GRU(config.width, config.width, batch_first=True)
    if config.hidden_dim is None:
        return nn.LSTM(config.width, config.width, batch_first=True)
    return nn.LSTM(config.width, config.hidden_dim, batch_first=True, proj_size=config.width)


State = list[Tensor]  # (D, width) hidden states and, of an LSTM, (D, hidden_dim) cells'


def _state(cell: Any, x: Tensor, at: Steps, cache: LayerCache | None) -> State:
    """Where the documents begin: at zero, or where those of their rows were left."""
    if cache is not None and cache.length:
        kept = [cache.keys, cache.values] if isinstance(cell, nn.LSTM) else [cache.keys]
        return [state[at.rows] for state in kept]
    sizes = [cell.proj_size or cell.hidden_size]
    sizes += [cell.hidden_size] if isinstance(cell, nn.LSTM) else []
    return [x.new_zeros(len(at.places), size) for size in sizes]


def _keep(cache: LayerCache, state: State, rows: Tensor, x: Tensor) -> None:
    """Rows that read nothing but padding stay as they were."""
    olds = [cache.keys, cache.values][: len(state)]
    if not cache.length:
        olds = [s.new_zeros(x.shape[0], s.shape[1]) for s in state]
    new = [old.index_copy(0, rows, s) for old, s in zip(olds, state, strict=True)]
    cache.keep(new[0], new[-1], x.shape[1])


def _read(cell: Any, x: Tensor, at: Steps, state: State, kept: bool) -> tuple[Tensor, State]:
    """(B T, width) -> the same, and, where it is `kept`, the state at the end of each document."""
    if cell.proj_size and x.device.type == "cpu" and torch.is_grad_enabled() and not kept:
        return _read_in_spans(cell, x, at, state), state
    order = at.places.T[at.places.T >= 0]
    out, state = _call(cell, PackedSequence(x[order], at.sizes), state)
    return _put(x, out.data, order), state


def _read_in_spans(cell: Any, x: Tensor, at: Steps, state: State) -> Tensor:
    """As `_read`, in padded pieces: on CPUs torch 2.13 takes a gradient of all tokens at each step
    of a packed sequence, where the cell projects."""
    outs, order = [], []
    for start in range(0, len(at.sizes), SPAN):
        places = at.places[: int(at.sizes[start]), start : start + SPAN]
        out, state = _call(cell, x[places.clamp(min=0)], [s[: len(places)] for s in state])
        outs.append(out[places >= 0])
        order.append(places[places >= 0])
    return _put(x, torch.cat(outs), torch.cat(order))


def _call(cell: Any, x: Any, state: State) -> tuple[Any, State]:
    """torch's own form of a state: (1, D, width) each, a pair of an LSTM."""
    given = [s[None] for s in state]
    if len(given) == 1:
        out, last = cell(x, given[0])
        return out, [last[0]]
    out, (hidden, inner) = cell(x, (given[0], given[1]))
    return out, [hidden[0], inner[0]]


def _put(x: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """(N, width) values in their places of (B T, width); 0 elsewhere."""
    return values.new_zeros(x.shape).index_put((places,), values)
