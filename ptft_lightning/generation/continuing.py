"""Prompts in, continuations out: a batch at a time, each token read once; knows no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ptft_lightning.backbones.cache import KeyValueCache
from ptft_lightning.errors import UserError
from ptft_lightning.generation.growth import Continuation, Growth, Limits
from ptft_lightning.generation.model import LanguageModel, pad_rows
from ptft_lightning.generation.sampling import Sampling, choose, penalise


def encode_prompt(model: LanguageModel, text: str) -> list[int]:
    """The ids a continuation goes on from: a document's beginning.

    Raises:
        UserError: too long, or nothing at all.
    """
    tokenizer = model.tokenizer
    (ids,) = tokenizer.encode([text])
    ids = ids if tokenizer.begin is None else [tokenizer.begin, *ids]
    if not ids:
        raise UserError("the prompt is empty, and the tokenizer has no token to begin with")
    if len(ids) > model.max_length - 1:
        raise UserError(
            f"the prompt '{shorten(text)}' has {len(ids)} tokens, and the model reads at most "
            f"{model.max_length}: give {model.max_length - 1} or fewer"
        )
    return ids


def shorten(text: str, most: int = 40) -> str:
    """A text's beginning on one line, for messages."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


class Reader:
    """A model that has read a batch of prompts and goes on one token a row at a time."""

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]], new: int) -> None:
        rows = pad_rows(prompts, left=True, device=model.device)
        self.model, self.tokens = model, rows.tokens
        self.cache = KeyValueCache(len(model.backbone.layers), rows.tokens.shape[1] + new)
        # The next position of rows of different lengths; None where all are alike.
        self.next = None if rows.positions is None else rows.positions[:, -1:] + 1
        prefix = torch.ones_like(rows.tokens) if model.backbone.prefix_lm else None
        self.hidden = self._read(rows.tokens, rows.documents, rows.positions, prefix)

    def _read(
        self,
        tokens: Tensor,
        documents: Tensor | None,
        positions: Tensor | None,
        segments: Tensor | None = None,
    ) -> Tensor:
        backbone, cache = self.model.backbone, self.cache
        states: Tensor = backbone(tokens, documents, positions, segments, cache=cache)
        return states[:, -1]

    def logits(self) -> Tensor:
        """(B, V) float32 logits of the next token, one for each id of the tokenizer."""
        return self.model.logits(self.hidden)[:, : self.model.tokenizer.size]

    def go_on(self, tokens: Tensor) -> None:
        """Read the (B,) tokens that were chosen."""
        column = tokens[:, None]
        self.tokens = torch.cat([self.tokens, column], dim=1)
        if self.next is None:
            self.hidden = self._read(column, None, None)
            return
        # Rows that have ended are read along, perhaps beyond the last position.
        positions = self.next.clamp(max=self.model.max_length - 1)
        self.hidden = self._read(column, torch.ones_like(column), positions)
        self.next = self.next + 1

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, (B',) indices."""
        self.cache.select(rows)
        self.tokens, self.hidden = self.tokens[rows], self.hidden[rows]
        self.next = None if self.next is None else self.next[rows]


@torch.inference_mode()
def continue_prompts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    limits: Limits,
    uniform: Tensor | None = None,
    listen: Callable[[str], None] | None = None,
) -> list[Continuation]:
    """A continuation of each prompt (token ids).

    Args:
        model: A causal model.
        prompts: Ids as `encode_prompt` gives them.
        sampling: How a token is chosen.
        limits: When a continuation ends.
        uniform: (B, max_new_tokens) random numbers of `uniform_numbers`; none for temperature 0.
        listen: Gets the first prompt's text as it comes.
    """
    rooms = [model.max_length - len(prompt) for prompt in prompts]
    heard = [listen, *[None] * (len(prompts) - 1)]
    grown = [
        Growth(model.tokenizer, prompt, limits, room, ear, model.end)
        for prompt, room, ear in zip(prompts, rooms, heard, strict=True)
    ]
    steps = min(limits.max_new_tokens, max(rooms))
    if uniform is None:
        uniform = torch.zeros(len(prompts), steps, dtype=torch.float64)
    if model.device.type != "mps":  # which has no float64: `choose` works on the CPU there
        uniform = uniform.to(model.device)
    reader, open_rows = Reader(model, prompts, steps), grown
    for step in range(steps):
        logits = reader.logits()
        if sampling.repetition_penalty != 1:
            logits = penalise(logits, reader.tokens, sampling.repetition_penalty)
        tokens = choose(logits, uniform[:, step], sampling)
        for row, token in zip(open_rows, tokens.tolist(), strict=True):
            if row.finish is None:
                row.add(token)
        left = [i for i, row in enumerate(open_rows) if row.finish is None]
        if not left:
            break
        if len(left) <= len(open_rows) // 2:  # copying the cache costs less than reading along
            kept = torch.tensor(left, device=model.device)
            reader.select(kept)
            tokens, uniform = tokens[kept], uniform[kept.to(uniform.device)]
            open_rows = [open_rows[i] for i in left]
        reader.go_on(tokens)
    return [row.done() for row in grown]
