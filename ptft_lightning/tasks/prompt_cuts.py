"""Prompts cut to the room there is, so that answers stay whole; knows no text and no template."""

from __future__ import annotations

from typing import Literal

from ptft_lightning.errors import UserError
from ptft_lightning.tasks.chat_template import Written

Cut = Literal["middle", "left"]


def prompt_room(max_length: int, new: int) -> int:
    """Tokens that a prompt may have in an example of `max_length`: what `new` tokens leave, but
    half of all at least. A known answer changes nothing, so that a prompt is the same in training,
    test and prediction; one that is longer than `new` may use what its prompt leaves."""
    return max(2, max_length - min(new, max_length // 2))


def fit(written: Written, max_length: int, new: int, cut: Cut, place: str) -> tuple[Written, int]:
    """A conversation in `max_length` tokens, and how many were cut.

    The prompt loses its middle, or its beginning but for the first token; an answer that is still
    too long loses its end.

    Raises:
        UserError: the prompt is empty.
    """
    ids, counted, prompt = written
    if not prompt:
        raise UserError(f"{place}: the prompt has no token: let model.task.template write one")
    room = prompt_room(max_length, new)
    kept = [*range(prompt)]
    if prompt > room:
        head = (room + 1) // 2 if cut == "middle" else 1
        kept = [*range(head), *range(prompt - (room - head), prompt)]
    kept += range(prompt, min(len(ids), prompt + max_length - len(kept)))
    new_place = {old: now for now, old in enumerate(kept)}
    moved = [new_place[at] for at in counted if new_place.get(at)]  # the first has none before it
    lost = len(ids) - len(kept)
    return Written([ids[at] for at in kept], moved, min(prompt, room)), lost
