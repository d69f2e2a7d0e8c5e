"""A text's tokens with signs around one or two stretches of it, cut to a length that keeps them.

Signs are ordinary tokens such as `@`, as in R-BERT (Wu & He 2019) and the punctuation markers of
Zhou & Chen (2021): any tokenizer has some, a published checkpoint knows what they look like, and
neither vocabulary nor embedding changes. They are put between the tokens of the text, not into the
text, so that the model reads the same tokens as without them. Knows no labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ptft_lightning.data.examples import Encoded
from ptft_lightning.data.tokenizer import Index, Tokenizer
from ptft_lightning.errors import UserError

SIGNS = "@#$*^~|&%+=<>/-:;!?.,"  # the rarest in text first
Span = tuple[int, int]


@dataclass(frozen=True)
class Stretch:
    """A stretch of a text and the token ids put before and after it."""

    span: Span
    before: list[int]
    after: list[int]


@dataclass
class Marked(Encoded):
    """Where the signs of each stretch stand among the tokens, in the order they were given."""

    places: list[tuple[int, int, int, int]] = field(default_factory=list)
    """First sign, first token of the stretch, first sign after it, first token after that."""


def signs_of(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Token ids of so many different signs: the first of `SIGNS` that the tokenizer can write; a
    small vocabulary without them has mask, end and begin.

    Raises:
        UserError: it knows fewer.
    """
    encoded = zip(SIGNS, tokenizer.encode([*SIGNS]), strict=True)
    known = [ids for sign, ids in encoded if ids and tokenizer.decode(ids).strip() == sign]
    parts = dict.fromkeys((tokenizer.mask, tokenizer.end, tokenizer.begin))
    known += [[part] for part in parts if part is not None]
    if len(known) < count:
        raise UserError(
            f"entities are marked with signs, and the tokenizer knows only {len(known)} of "
            f"{' '.join(SIGNS)}: choose a model whose tokenizer has some"
        )
    return known[:count]


def tokens_apart(
    texts: list[str], cuts: list[list[int]], tokenizer: Tokenizer
) -> list[tuple[list[int], Index]]:
    """Token ids and spans of texts such that no token lies on both sides of a cut.

    A text is encoded as it is where its tokens allow it, else in the pieces between the cuts, as
    happens where nothing separates words. The space that a token carries before its word may lie
    before a cut.
    """
    whole = tokenizer.encode_spans(texts)
    torn = [n for n, text in enumerate(texts) if _torn(text, whole[n][1], cuts[n])]
    pieces, owners = [], []
    for n in torn:
        bounds = [0, *cuts[n], len(texts[n])]
        for start, end in pairwise(bounds):
            pieces.append(texts[n][start:end])
            owners.append((n, start))
    joined: dict[int, tuple[list[int], list[Index]]] = {n: ([], []) for n in torn}
    for (n, start), (ids, spans) in zip(owners, tokenizer.encode_spans(pieces), strict=True):
        joined[n][0].extend(ids)
        joined[n][1].append(spans + start)
    for n, (ids, parts) in joined.items():
        whole[n] = ids, np.concatenate(parts)
    return whole


def _torn(text: str, spans: Index, cuts: list[int]) -> bool:
    for cut in cuts:
        for start, end in spans[(spans[:, 0] < cut) & (spans[:, 1] > cut)].tolist():
            if text[start:cut].strip() and text[cut:end].strip():
                return True
    return False


def mark(
    text: str,
    ids: list[int],
    spans: Index,
    stretches: list[Stretch],
    tokenizer: Tokenizer,
    max_length: int,
    place: str,
) -> Marked:
    """The tokens of a text that `tokens_apart` made, with signs around one or two stretches.

    What is too long is cut around the stretches, first before and after them, then in the middle
    between them; never a stretch itself.

    Raises:
        UserError: the stretches and their signs alone are longer than `max_length`.
    """
    order = sorted(range(len(stretches)), key=lambda i: stretches[i].span)
    begin = [] if tokenizer.begin is None else [tokenizer.begin]
    end = [] if tokenizer.end is None else [tokenizer.end]
    ranges = [_tokens_of(text, spans, stretches[i].span) for i in order]
    fixed = sum(b - a for a, b in ranges) + len(begin) + len(end)
    fixed += sum(len(s.before) + len(s.after) for s in stretches)
    if fixed > max_length:
        raise UserError(
            f"{place}: what is marked takes {fixed} tokens with its signs, more than the "
            f"{max_length} a row has: raise data.max_length"
        )
    edges = [0, *(edge for pair in ranges for edge in pair), len(ids)]
    gaps = list(zip(edges[::2], edges[1::2], strict=True))
    kept = _shares([b - a for a, b in gaps], max_length - fixed)
    tokens, covered, places = [*begin], [(0, 0)] * len(begin), [(0, 0, 0, 0)] * len(stretches)
    for number, (a, b) in enumerate(gaps):
        left, right = kept[number]
        for i in [*range(a, a + left), *range(b - right, b)]:
            tokens.append(ids[i])
            covered.append((int(spans[i, 0]), int(spans[i, 1])))
        if number == len(order):
            break
        stretch, (a, b) = stretches[order[number]], ranges[number]
        at = len(tokens)
        inner = at + len(stretch.before)
        places[order[number]] = (at, inner, inner + b - a, inner + b - a + len(stretch.after))
        tokens += [*stretch.before, *ids[a:b], *stretch.after]
        covered += [(0, 0)] * len(stretch.before) + [(x, y) for x, y in spans[a:b].tolist()]
        covered += [(0, 0)] * len(stretch.after)
    lost = len(ids) - sum(map(sum, kept)) - sum(b - a for a, b in ranges)
    return Marked(
        tokens=tokens + end,
        segments=[0] * (len(tokens) + len(end)),
        cut=lost,
        place=place,
        spans=np.array(covered + [(0, 0)] * len(end), np.int64).reshape(-1, 2),
        places=places,
    )


def _tokens_of(text: str, spans: Index, span: Span) -> tuple[int, int]:
    """The tokens that cover part of a stretch; where none does, the place where they would be."""
    covering = [
        i
        for i in np.flatnonzero((spans[:, 0] < span[1]) & (spans[:, 1] > span[0])).tolist()
        if text[max(spans[i, 0], span[0]) : min(spans[i, 1], span[1])].strip()
    ]
    if covering:
        return covering[0], covering[-1] + 1
    at = int((spans[:, 1] <= span[0]).sum())
    return at, at


def _shares(gaps: list[int], room: int) -> list[tuple[int, int]]:
    """How many tokens each gap keeps from its left and from its right end.

    The middle comes before what is outside, of which both sides get the same where both need it.
    """
    inner = min(room, sum(gaps[1:-1]))
    room -= inner
    left = min(gaps[0], max(room - gaps[-1], room // 2))
    middle = [(inner - inner // 2, inner // 2)] * (len(gaps) - 2)
    return [(0, left), *middle, (min(gaps[-1], room - left), 0)]
