"""A template with a gap and the words that stand in it: texts and words -> token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ptft_lightning.data.examples import Encoded, Example
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

PLACE = re.compile(r"\{(text|pair|mask)\}")


class Piece(NamedTuple):
    """A part of a template."""

    name: str
    """text, pair, mask, or empty for what stands there as it is."""
    literal: str
    space: bool
    """Whether a space stood before it: it belongs to the token behind it."""


@dataclass(frozen=True)
class Template:
    """`{text}`, perhaps `{pair}`, and `{mask}` for each token of the word that says the label."""

    source: str
    pieces: list[Piece] = field(init=False)

    def __post_init__(self) -> None:
        parts = PLACE.split(self.source)
        pieces, space = [], False
        for number, part in enumerate(parts):
            if number % 2:
                pieces.append(Piece(part, "", space))
                space = False
            elif part:
                if "{" in part or "}" in part:
                    raise UserError(
                        f"task.template '{self.source}' has braces around something else than "
                        "text, pair or mask"
                    )
                space = part.endswith(" ") and number < len(parts) - 1
                pieces.append(Piece("", part[: len(part) - space], False))
        object.__setattr__(self, "pieces", pieces)
        names = [piece.name for piece in pieces]
        if names.count("text") != 1 or names.count("pair") > 1 or "mask" not in names:
            raise UserError(
                f"task.template '{self.source}' needs {{text}} once, {{mask}}, and {{pair}} at "
                'most once, as in "{text} It was {mask}."'
            )

    @property
    def masks(self) -> int:
        """How many tokens a word has."""
        return [piece.name for piece in self.pieces].count("mask")

    @property
    def paired(self) -> bool:
        """Whether it shows a second text."""
        return "pair" in [piece.name for piece in self.pieces]

    def check(self, tokenizer: Tokenizer, causal: bool) -> None:
        """Refuse a gap that the model cannot fill."""
        if causal and (self.masks != 1 or self.pieces[-1].name != "mask"):
            raise UserError(
                f"task.template '{self.source}': a causal model says what comes next, and nothing "
                "after it: end the template with one {mask}"
            )
        if not causal and tokenizer.mask is None:
            raise UserError(
                "task.objective 'masked' needs a mask token, and the tokenizer has none of "
                "[MASK], <mask>, <|mask|>"
            )

    def word_ids(self, verbalizer: Mapping[str, Sequence[str]], tokenizer: Tokenizer) -> WordIds:
        """Label -> the ids of each of its words, (masks,) each.

        Raises:
            UserError: a word is not in the vocabulary, has another number of tokens than the
                template has masks, or says two labels.
        """
        space = " " * next(piece.space for piece in self.pieces if piece.name == "mask")
        unknown = {tokenizer.raw.token_to_id(name) for name in ("[UNK]", "<unk>")}
        found: WordIds = {}
        owner: dict[tuple[int, ...], str] = {}
        for label, words in verbalizer.items():
            for word, ids in zip(words, tokenizer.encode([space + w for w in words]), strict=True):
                said = f"task.verbalizer: the word '{word}' of label '{label}'"
                if not ids or not unknown.isdisjoint(ids):
                    raise UserError(f"{said} is not in the model's vocabulary: choose another one")
                if len(ids) != self.masks:
                    pieces = [tokenizer.raw.id_to_token(i) for i in ids]
                    raise UserError(
                        f"{said} has {len(ids)} tokens {pieces}, the template {self.masks}: choose "
                        "another word, or give a {mask} for each token"
                    )
                if owner.setdefault(tuple(ids), label) != label:
                    raise UserError(f"{said} says '{owner[tuple(ids)]}', too: choose another one")
            found[label] = tokenizer.encode([space + w for w in words])
        return found

    def encode(
        self, examples: list[Example], tokenizer: Tokenizer, max_length: int, causal: bool
    ) -> list[tuple[Encoded, list[int]]]:
        """The filled-in template and the places whose hidden states say the gap's tokens: those of
        the masks, or of the last token before it. The longer text is cut first."""
        literals = iter(tokenizer.encode([p.literal for p in self.pieces if not p.name]))
        spaces = {p.name: " " * p.space for p in self.pieces if p.name}
        fixed = [next(literals) if not piece.name else [] for piece in self.pieces]
        begin = [] if tokenizer.begin is None else [tokenizer.begin]
        end = [] if tokenizer.end is None or causal else [tokenizer.end]
        taken = sum(map(len, [begin, end, *fixed])) + self.masks * (not causal)
        room = max_length - taken
        if room < 1:
            raise UserError(
                f"data.max_length is {max_length}, the template alone has {taken} tokens: raise it"
            )
        firsts = tokenizer.encode([spaces["text"] + e.text for e in examples])
        seconds = tokenizer.encode([spaces.get("pair", "") + (e.pair or "") for e in examples])
        encoded = []
        for number, (e, first, second) in enumerate(zip(examples, firsts, seconds, strict=True)):
            second = second if self.paired else []
            keep = min(len(first), max(room - len(second), room // 2))
            shown = {"text": first[:keep], "pair": second[: room - keep]}
            ids, places = [*begin], []
            for piece, literal in zip(self.pieces, fixed, strict=True):
                if piece.name == "mask":
                    ids += [tokenizer.pad] * (causal and not ids)  # something to be read from
                    places.append(len(ids) - causal)
                    ids += [] if causal else [tokenizer.mask or 0]
                else:
                    ids += shown.get(piece.name, literal)
            ids += end
            cut = max(0, len(first) + len(second) - room)
            item = Encoded(ids, [0] * len(ids), cut=cut, place=e.place, example=number)
            encoded.append((item, places))
        return encoded


WordIds = dict[str, list[list[int]]]


def as_array(words: WordIds) -> Ids:
    """(labels, most words, masks) ids, -1 where a label has fewer words."""
    most = max(map(len, words.values()))
    masks = len(next(iter(words.values()))[0])
    return np.array([ids + [[-1] * masks] * (most - len(ids)) for ids in words.values()], np.int64)
