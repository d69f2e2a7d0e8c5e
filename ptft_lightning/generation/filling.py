"""Masks in a text filled by a masked model; knows no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.generation.continuing import shorten
from ptft_lightning.generation.growth import TORN
from ptft_lightning.generation.model import LanguageModel, pad_rows


@dataclass(frozen=True)
class Filled:
    """A text with its masks filled, each on its own by its likeliest token."""

    ids: list[int]
    text: str
    fills: list[list[tuple[int, float]]]
    """For each mask the likeliest tokens with their probabilities."""


def mask_name(tokenizer: Tokenizer) -> str:
    """How the tokenizer writes its mask token."""
    name: str | None = None if tokenizer.mask is None else tokenizer.raw.id_to_token(tokenizer.mask)
    assert name is not None, "a masked model's tokenizer has a mask"
    return name


def encode_masked(model: LanguageModel, text: str) -> list[int]:
    """The ids of a whole document in which each written mask name is the mask token.

    The one place where text becomes a control token, because the user asks for it. A space before
    a mask belongs to the token that is masked.

    Raises:
        UserError: no mask, or too long.
    """
    tokenizer, name = model.tokenizer, mask_name(model.tokenizer)
    pieces = text.split(name)
    if len(pieces) == 1:
        raise UserError(
            f"nothing to fill in '{shorten(text)}': write {name} where a word is missing"
        )
    pieces = [piece.removesuffix(" ") for piece in pieces[:-1]] + pieces[-1:]
    ids: list[int] = []
    for number, piece in enumerate(tokenizer.encode(pieces)):
        ids += piece if number == 0 else [tokenizer.mask or 0, *piece]
    ids = tokenizer.frame(ids)
    if len(ids) > model.max_length:
        raise UserError(
            f"the prompt '{shorten(text)}' has {len(ids)} tokens, and the model reads at most "
            f"{model.max_length}: give a shorter one"
        )
    return ids


def show_masked(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids with the masks written out."""
    hidden = set(tokenizer.specials.tolist()) - {tokenizer.mask}
    shown = [i for i in ids if i not in hidden]
    return tokenizer.decode(shown, specials=True)


def show_token(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token; where that is no whole character, its name in the vocabulary."""
    text = tokenizer.decode([token])
    return str(tokenizer.raw.id_to_token(token)) if TORN in text or not text else text


@torch.inference_mode()
def fill_masks(model: LanguageModel, prompts: Sequence[Sequence[int]], top: int) -> list[Filled]:
    """The `top` likeliest ordinary tokens for each mask of each prompt (ids of `encode_masked`).

    Probabilities are over the whole vocabulary.
    """
    tokenizer, device = model.tokenizer, model.device
    rows = pad_rows(prompts, left=False, device=device)
    hidden = model.backbone(rows.tokens, rows.documents, rows.positions)
    masked = torch.eq(rows.tokens, tokenizer.mask or 0)
    if rows.documents is not None:
        masked = masked & (rows.documents > 0)
    probabilities = model.logits(hidden[masked]).softmax(-1)
    ordinary = torch.from_numpy(tokenizer.ordinary).to(device)
    values, at = probabilities[:, ordinary].topk(min(top, len(ordinary)))
    best = zip(ordinary[at].tolist(), values.tolist(), strict=True)
    choices = iter([list(zip(tokens, shares, strict=True)) for tokens, shares in best])
    out = []
    for prompt in prompts:
        fills = [next(choices) for token in prompt if token == tokenizer.mask]
        given = iter(fills)
        ids = [next(given)[0][0] if token == tokenizer.mask else token for token in prompt]
        out.append(Filled(ids, tokenizer.decode(ids), fills))
    return out
