"""Tags of words and the spans they spell, and scores of spans; knows no tokens and no model.

A tag is `O` or a prefix and a kind, such as `B-PER`. Of the prefixes, B begins a span and I (M)
goes on with it; the schemes that have them also tell the last word, E (L), and a span of one word,
S (U). Spans end before their last number, whatever they count: words or characters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

Scheme = Literal["BIO", "BIOES", "BMES", "BILOU"]
OUTSIDE = "O"
TAG = re.compile(r"([BIMELSU])-(.+)", re.S)
# The prefixes of each scheme by the part they play: begin, inside, end, single.
PREFIXES: dict[Scheme, tuple[str, str, str, str]] = {
    "BIO": ("B", "I", "I", "B"),
    "BIOES": ("B", "I", "E", "S"),
    "BMES": ("B", "M", "E", "S"),
    "BILOU": ("B", "I", "L", "U"),
}
PLAYS = str.maketrans("MLU", "IES")


class Span(NamedTuple):
    """A stretch of words or characters and what it is."""

    kind: str
    start: int
    end: int
    """The one after its last."""


def scheme_of(tags: Iterable[str]) -> Scheme | None:
    """The scheme that tags are written in, as far as their prefixes tell; None: plain tags, such as
    parts of speech.

    Raises:
        ValueError: no scheme has all these prefixes, or only some tags have one.
    """
    found = {tag: TAG.fullmatch(tag) for tag in set(tags) - {OUTSIDE}}
    if not any(found.values()):
        return None
    for tag, match in sorted(found.items()):
        if match is None:
            raise ValueError(f"tag '{tag}' is neither O nor a prefix and a kind, as others are")
    prefixes = {match[1] for match in found.values() if match is not None}
    for scheme, known in PREFIXES.items():
        if prefixes <= set(known):
            return scheme
    raise ValueError(
        f"the prefixes {''.join(sorted(prefixes))} are those of none of {', '.join(PREFIXES)}"
    )


def tag_set(kinds: Iterable[str], scheme: Scheme) -> list[str]:
    """O, then every tag of each kind."""
    prefixes = dict.fromkeys(PREFIXES[scheme])
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in sorted(set(kinds)) for prefix in prefixes)]


def kinds_of(tags: Iterable[str]) -> list[str]:
    """The kinds in tags of a scheme, sorted."""
    return sorted({match[2] for tag in set(tags) if (match := TAG.fullmatch(tag))})


def spans_of_tags(
    tags: Sequence[str], scheme: Scheme | None = None, strict: bool = False
) -> list[Span]:
    """The spans that tags spell, in order.

    Read in the conventional way (conlleval, the default mode of seqeval), a tag that cannot go on
    with the one before it begins a span; `strict` takes only spans well-formed in the scheme, which
    is found by `scheme_of` unless given.
    """
    parsed = [_play(tag) for tag in tags]
    starts = [
        i
        for i, now in enumerate(parsed)
        if i == 0 or now[0] == OUTSIDE or not _goes_on(parsed[i - 1], now)
    ]
    runs = pairwise([*starts, len(parsed)])
    spans = [Span(parsed[a][1], a, b) for a, b in runs if parsed[a][0] != OUTSIDE]
    if not strict:
        return spans
    form = "BI*" if (scheme or scheme_of(tags) or "BIO") == "BIO" else "BI*E|S"
    played = "".join(prefix for prefix, _ in parsed)
    return [span for span in spans if re.fullmatch(form, played[span.start : span.end])]


def tags_of_spans(spans: Iterable[Span], words: int, scheme: Scheme = "BIO") -> list[str]:
    """The tags of so many words that spell spans; those must not overlap (see `overlapping`)."""
    begin, inside, end, single = PREFIXES[scheme]
    tags = [OUTSIDE] * words
    for kind, start, stop in spans:
        middle = inside * (stop - start - 2)
        played = single if stop - start == 1 else begin + middle + end
        tags[start:stop] = [f"{prefix}-{kind}" for prefix in played]
    return tags


def overlapping(spans: Iterable[Span]) -> tuple[Span, Span] | None:
    """Two spans that share a word or character, if there are."""
    pairs = pairwise(sorted(spans, key=lambda span: (span.start, span.end)))
    return next(((one, two) for one, two in pairs if two.start < one.end), None)


def may_follow(before: str | None, tag: str | None, scheme: Scheme) -> bool:
    """Whether a well-formed sentence may have `tag` after `before`; None: its border."""
    one, two = _play(before or OUTSIDE), _play(tag or OUTSIDE)
    unfinished = one[0] in ("B", "I")
    if two[0] in ("I", "E"):
        return unfinished and one[1] == two[1]
    return scheme == "BIO" or not unfinished


def span_scores(
    gold: Iterable[Collection[tuple[Any, ...]]], predicted: Iterable[Collection[tuple[Any, ...]]]
) -> dict[str, float]:
    """Precision, recall and F1 of spans, sentence by sentence, over all of them, over each kind and
    as the mean over kinds (`macro_`); a share of nothing is 0.

    A span counts where kind and borders are right. Any tuples that begin with their kind will do,
    as relations. `support` is how many there are in gold. With spans of tags these are the figures
    of conlleval and seqeval.
    """
    right, found, wanted = Counter[str](), Counter[str](), Counter[str]()
    for truth, said in zip(gold, predicted, strict=True):
        right.update(str(item[0]) for item in set(truth) & set(said))
        found.update(str(item[0]) for item in set(said))
        wanted.update(str(item[0]) for item in set(truth))
    kinds = sorted(found | wanted)
    each = [_scores(right[kind], found[kind], wanted[kind]) for kind in kinds]
    scores = _scores(right.total(), found.total(), wanted.total())
    for name in scores.copy():
        scores[f"macro_{name}"] = sum(s[name] for s in each) / max(len(each), 1)
    for kind, own in zip(kinds, each, strict=True):
        scores |= {f"{name}_{kind}": value for name, value in own.items()}
    return scores | {"support": float(wanted.total())}


def _scores(right: int, found: int, wanted: int) -> dict[str, float]:
    return {
        "precision": right / max(found, 1),
        "recall": right / max(wanted, 1),
        "f1": 2 * right / max(found + wanted, 1),
    }


@lru_cache(4096)
def _play(tag: str) -> tuple[str, str]:
    """The part a tag plays (O, B, I, E or S) and its kind."""
    match = TAG.fullmatch(tag)
    return (match[1].translate(PLAYS), match[2]) if match else (OUTSIDE, "")


def _goes_on(before: tuple[str, str], now: tuple[str, str]) -> bool:
    return before[0] in ("B", "I") and now[0] in ("I", "E") and before[1] == now[1]
