"""Layers whose inputs are computed back from their outputs (Gomez et al. 2017).

Two streams, y1 = x1 + f(x2) and y2 = x2 + g(y1), so that x2 = y2 - g(y1) and x1 = y1 - f(x2): the
backward pass needs the last outputs alone, and computes each layer a second time, with the random
numbers, the autocast and the buckets of the first. Inputs come back up to rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

from ptft_lightning.backbones.cache import LayerCache
from ptft_lightning.backbones.layers import Block
from ptft_lightning.backbones.lsh import LSHAttention
from ptft_lightning.backbones.reformer_config import ReformerConfig

Streams = tuple[Tensor, Tensor]


class Trail:
    """The streams where the backward pass stands; shared by the layers of one forward pass."""

    def __init__(self) -> None:
        self.last = self.at = 0
        self.ends: Streams | None = None
        self.streams: Streams | None = None

    def end(self, streams: Streams) -> int:
        """A layer's outputs, until the next one's; gives its number."""
        self.ends = (streams[0].detach(), streams[1].detach())
        self.last += 1
        return self.last

    def outputs(self, layer: int) -> Streams:
        """Those of a layer: the last ones, or what the layer above left."""
        if layer == self.last:
            self.at, self.streams = layer, self.ends
        if self.at != layer or self.streams is None:
            raise RuntimeError("reversible layers are walked back one by one, from the last")
        return self.streams

    def leave(self, streams: Streams) -> None:
        """A layer's inputs are the outputs of the one below."""
        self.at, self.streams = self.at - 1, streams


class ReversibleBlock(Block):
    """LSH attention as f and the feed-forward part as g, each behind its norm."""

    def __init__(self, config: ReformerConfig, layer: int) -> None:
        super().__init__(config.transformer(), layer)
        self.attention: LSHAttention = LSHAttention(config)  # type: ignore[assignment]

    def forward(self, first: Tensor, *shared: Any) -> Any:
        """(B, T, dim) twice -> (B, T, dim) twice.

        `shared` are the second stream, a trail to compute inputs back, or None to keep them, what
        the attention wants, and a cache.
        """
        second, trail, line, rotary, rotations, cache = shared
        if trail is None:
            mixed, _ = self.mix(second, (line, rotary, rotations), cache)
            first = first + mixed
            return first, second + self.feed(first)
        asked = (line, rotary, rotations)
        parameters = [*self.mixing(), *self.feeding()]
        given = (self, trail, asked, first, second, *parameters)
        return _Reversible.apply(*given)  # type: ignore[no-untyped-call]

    def mix(
        self,
        x: Tensor,
        asked: tuple[Any, ...],
        cache: LayerCache | None = None,
        buckets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """f, and the buckets of its tokens."""
        mixed, buckets = self.attention(self.attention_norm(x), *asked, cache, buckets)
        return self.dropout(mixed), buckets

    def feed(self, x: Tensor) -> Tensor:
        """g."""
        out: Tensor = self.dropout(self.ffn(self.ffn_norm(x)))
        return out

    def mixing(self) -> list[Tensor]:
        """Parameters of f."""
        return [*self.attention_norm.parameters(), *self.attention.parameters()]

    def feeding(self) -> list[Tensor]:
        """Parameters of g."""
        return [*self.ffn_norm.parameters(), *self.ffn.parameters()]


class _Moment:
    """Random state and autocast, so that what was computed is computed again the same way."""

    def __init__(self, x: Tensor) -> None:
        self.device, self.cpu = x.device.type, torch.get_rng_state()
        self.devices, self.states = get_device_states(x)
        self.enabled = torch.is_autocast_enabled(self.device)
        self.dtype = torch.get_autocast_dtype(self.device)

    @contextlib.contextmanager
    def again(self, keep: bool = True) -> Iterator[None]:
        """As it was; with `keep`, later random numbers stay what they would have been."""
        with contextlib.ExitStack() as stack:
            # Weights that were cast without a gradient must not be found by those that need one.
            cast = torch.autocast(self.device, self.dtype, self.enabled, cache_enabled=False)
            stack.enter_context(cast)
            if keep:
                kind = "cuda" if self.device == "cpu" else self.device
                stack.enter_context(torch.random.fork_rng(self.devices, device_type=kind))
                torch.set_rng_state(self.cpu)
                set_device_states(self.devices, self.states, device_type=self.device)
            yield


class _Reversible(torch.autograd.Function):
    """One layer. Parameters are inputs, so that their gradients go the usual way: to whatever
    accumulates, averages or shards them."""

    @staticmethod
    def forward(
        ctx: Any,
        block: ReversibleBlock,
        trail: Trail,
        asked: tuple[Any, ...],
        first: Tensor,
        second: Tensor,
        *parameters: Tensor,
    ) -> Streams:
        """See `ReversibleBlock`."""
        ctx.block, ctx.trail, ctx.asked = block, trail, asked
        ctx.mixed = _Moment(first)
        with ctx.mixed.again(keep=False):
            mixed, ctx.buckets = block.mix(second, asked)
            one = first + mixed
            ctx.fed = _Moment(first)
            two = second + block.feed(one)
        ctx.layer = trail.end((one, two))
        return one, two

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Also leaves the layer's inputs on the trail."""
        block: ReversibleBlock = ctx.block
        one, two = ctx.trail.outputs(ctx.layer)
        to_first, to_second = gradients

        with torch.enable_grad(), ctx.fed.again():
            one = one.detach().requires_grad_()
            fed = block.feed(one)
        second = two - fed.detach()
        through, *fed_gradients = _gradients(fed, [one, *block.feeding()], to_second)
        to_first = to_first if through is None else to_first + through
        del fed

        with torch.enable_grad(), ctx.mixed.again():
            second = second.requires_grad_()
            mixed, _ = block.mix(second, ctx.asked, buckets=ctx.buckets)
        first = one.detach() - mixed.detach()
        through, *mixed_gradients = _gradients(mixed, [second, *block.mixing()], to_first)
        to_second = to_second if through is None else to_second + through

        ctx.trail.leave((first, second.detach()))
        return (None, None, None, to_first, to_second, *mixed_gradients, *fed_gradients)


def _gradients(of: Tensor, to: list[Tensor], given: Tensor) -> list[Tensor | None]:
    """None where there is none, as of what is frozen."""
    wanted = [x for x in to if x.requires_grad]
    found = iter(torch.autograd.grad(of, wanted, given.to(of.dtype), allow_unused=True))
    return [next(found) if x.requires_grad else None for x in to]
