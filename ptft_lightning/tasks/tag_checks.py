"""What is noticed about words and tokens before training: borders that no tag can say, words
without tokens, sentences in several windows."""

from __future__ import annotations

import numpy as np

from ptft_lightning.data.examples import Encoded
from ptft_lightning.data.module import say
from ptft_lightning.data.word_windows import Aligned, inside_tokens
from ptft_lightning.data.words import Words
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.tags import OUTSIDE, spans_of_tags


def check_borders(examples: list[Words], aligned: list[Aligned], allowed: float) -> None:
    """Count the entities that begin or end inside a token.

    Raises:
        UserError: their share is larger than `allowed`.
    """
    total, lost = 0, list[str]()
    for example, tokens in zip(examples, aligned, strict=True):
        spans = spans_of_tags(example.labels or ())
        ends = np.array(
            [(example.words[s.start, 0], example.words[s.end - 1, 1]) for s in spans], np.int64
        ).reshape(-1, 2)
        total += len(spans)
        broken = {at // 2 for at in inside_tokens(tokens, ends.reshape(-1)).tolist()}
        texts = [example.text[slice(*ends[number])] for number in sorted(broken)]
        lost += [f"{example.place} ('{text}')" for text in texts]
    fix = "set task.presplit true, or pretrain with another tokenizer (of characters or words)"
    refuse_lost(file_of(examples), "begin or end inside a token", lost, total, allowed, fix)


def tell_tokenless(examples: list[Words], aligned: list[Aligned]) -> None:
    """Tell of words that the tokenizer makes nothing of."""
    counts = [int((a.words[:, 0] == a.words[:, 1]).sum()) for a in aligned]
    if not any(counts):
        return
    places = [e.place for e, count in zip(examples, counts, strict=True) if count]
    say(
        f"'{file_of(examples)}': {sum(counts)} words become no token, as control characters, and "
        f"are always {OUTSIDE}; {first_places(places)}"
    )


def tell_windows(examples: list[Words], encoded: list[Encoded]) -> None:
    """Tell of sentences that are longer than a window."""
    long = len({e.example for e in encoded if not all(e.targets["edges"])})
    if long:
        say(
            f"'{file_of(examples)}': {long} of {len(examples)} sentences are read in windows, "
            f"{len(encoded)} in all"
        )


def file_of(examples: list[Words]) -> str:
    """The file that examples come from."""
    place = examples[0].place if examples else ""
    return place.rpartition(" line ")[0] or place


def refuse_lost(
    where: str, what: str, lost: list[str], total: int, allowed: float, fix: str
) -> None:
    """Tell how many entities have a border that cannot be predicted; stop where they are many."""
    if not lost:
        return
    share = len(lost) / total
    said = (
        f"'{where}': {len(lost)} of {total} entities ({share:.1%}) {what}, so that no tags say "
        f"them; {first_places(lost)}"
    )
    if share > allowed:
        raise UserError(f"{said}: {fix}, or allow it: task.lost_borders {share:.2g}")
    say(said)


def first_places(places: list[str]) -> str:
    """The first three; of a file's lines only the first in full."""
    file = places[0].rpartition(" ")[0]
    further = [place.removeprefix(f"{file} ") for place in places[1:3]]
    more = [".."] if len(places) > 3 else []
    return f"at {', '.join([places[0], *further, *more])}"
