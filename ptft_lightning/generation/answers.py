"""How likely a causal model finds answers to prompts, and prompts made of examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from ptft_lightning.data.sample_order import random_key
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.generation.model import LanguageModel
from ptft_lightning.generation.scoring import Row, predict_rows

Ids = list[int]


@torch.inference_mode()
def score_answers(
    model: LanguageModel, questions: Sequence[tuple[Ids, Ids]], batch_size: int
) -> Iterator[float]:
    """log p(answer | prompt), in nats, of each prompt and answer: the sum over the answer's tokens.

    Args:
        model: A causal model.
        questions: Ids of prompt (one at least) and answer, together no longer than max_length.
        batch_size: Rows computed at once; those of like length stand together.
    """
    order = sorted(range(len(questions)), key=lambda i: sum(map(len, questions[i])))
    totals = [0.0] * len(questions)
    rows = (_row(i, *questions[i]) for i in order)
    while batch := list(islice(rows, batch_size)):
        for (number, _), value in zip(*predict_rows(model, batch), strict=True):
            totals[number] += value
    yield from totals


def _row(number: int, prompt: Ids, answer: Ids) -> Row:
    places = range(len(prompt), len(prompt) + len(answer))
    return Row(prompt + answer, [(at - 1, number, at) for at in places], answer)


def choose_shots(labels: Sequence[str], count: int, seed: int) -> list[int]:
    """`count` numbers of examples, as many of each label as can be, in the order they are shown.

    The same for the same labels and seed: each example has its own random key.
    """
    keys = [random_key(seed, "shot", number) for number in range(len(labels))]
    turns: dict[str, int] = {}
    ranked = []
    for number in sorted(range(len(labels)), key=keys.__getitem__):
        turn = turns[labels[number]] = turns.get(labels[number], -1) + 1
        ranked.append((turn, keys[number], number))
    chosen = [number for _, _, number in sorted(ranked)[:count]]
    return sorted(chosen, key=lambda number: random_key(seed, "place", number))


@dataclass(frozen=True)
class Layout:
    """How a prompt looks: `before` + text + `between` + answer, shots parted by `separator`."""

    before: str
    between: str
    separator: str

    def shot(self, text: str, answer: str) -> str:
        """A text with its answer."""
        return f"{self.before}{text}{self.between}{answer}"


@dataclass(frozen=True)
class Prompt:
    """What is read before the answer."""

    ids: Ids
    shots: int
    """How many of the shots it shows; the first ones are left out where it would be too long."""
    cut: int
    """Tokens of the text that were too many even without shots."""


def build_prompt(
    layout: Layout, shots: Sequence[str], text: str, tokenizer: Tokenizer, room: int
) -> Prompt:
    """Shots, then the text up to where its answer begins, in `room` tokens."""
    begin = [] if tokenizer.begin is None else [tokenizer.begin]
    nothing = [tokenizer.pad if tokenizer.end is None else tokenizer.end]
    for left in range(len(shots) + 1):
        shown = [*shots[left:], layout.shot(text, "").removesuffix(" ")]
        ids = begin + tokenizer.encode([layout.separator.join(shown)])[0]
        if len(ids) <= room:
            return Prompt(ids or nothing, len(shots) - left, 0)
    before, own, after = tokenizer.encode([layout.before, text, layout.between.removesuffix(" ")])
    keep = max(0, room - len(begin) - len(before) - len(after))
    ids = begin + before + own[:keep] + after
    return Prompt(ids[-room:], 0, len(own) - keep)
