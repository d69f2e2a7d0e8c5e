"""What is noticed about examples before they are used: counts, shares and the first places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ptft_lightning.data.examples import Encoded, Example, documents_of
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError

UnknownLabels = Literal["stop", "skip"]
FIRST = 3  # places that are named
MANY = 20  # labels that are still worth listing
NO_LABEL = "the label is empty: give it, or leave the line out"


def shown(labels: list[str]) -> str:
    """Labels for a message."""
    rest = f" and {len(labels) - MANY} more" if len(labels) > MANY else ""
    return f"{labels[:MANY]}{rest}"


class BadExamples:
    """Examples of a file that cannot be used; others are read on, so that all are counted."""

    def __init__(self, policy: UnknownLabels) -> None:
        self.policy, self.found = policy, list[tuple[str, str]]()

    def add(self, place: str, reason: str) -> None:
        """Note one: where it stands and what is wrong with it, with the fix."""
        self.found.append((place, reason))

    def settle(self, path: str, good: int) -> None:
        """Stop, or tell what was left out.

        Raises:
            UserError: naming the first, its reason, and how many there are.
        """
        if not self.found:
            return
        total = good + len(self.found)
        share = f"{len(self.found)} of {total} examples ({len(self.found) / total:.1%})"
        place, reason = self.found[0]
        if self.policy == "stop" or not good:
            skip = ", or leave them out: data.bad_examples skip" if good else ""
            raise UserError(f"{place}: {reason} ({share} of '{path}' are bad): correct them{skip}")
        say(f"'{path}': {share} left out, {reason}; {_first([place for place, _ in self.found])}")


def known_only(
    split: str,
    examples: list[Example],
    labels: list[str],
    labels_of: Callable[[Example], list[str]],
    unknown: UnknownLabels,
) -> list[Example]:
    """The examples whose labels are all known. Others stop the run; `skip` tells and leaves them
    out, but never of the training file, and never all of them.

    Raises:
        UserError: naming the first unknown label, its place, and how many examples have one.
    """
    known = set(labels)
    strange = {i for i, e in enumerate(examples) if not known.issuperset(labels_of(e))}
    if not strange:
        return examples
    first = examples[min(strange)]
    name = next(label for label in labels_of(first) if label not in known)
    said = f"label '{name}' is not one of {shown(labels)}"
    skippable = split != "train" and len(strange) < len(examples)
    if unknown == "stop" or not skippable:
        skip = ", or leave such examples out: data.unknown_labels skip" if skippable else ""
        raise UserError(
            f"{first.place}: {said} ({_share(len(strange), examples)} of {split} have such a "
            f"label): correct them{skip}"
        )
    places = [examples[i].place for i in sorted(strange)]
    say(f"{split}: {_share(len(strange), examples)} left out, {said}; {_first(places)}")
    return [e for i, e in enumerate(examples) if i not in strange]


def report_empty(split: str, examples: list[Example]) -> None:
    """Tell of texts without a word; they are used as they are."""

    def blank(e: Example) -> bool:
        return not (e.text.strip() and (e.pair is None or e.pair.strip()))

    empty = [e.place for e in examples if blank(e)]
    if empty:
        say(f"{split}: {_share(len(empty), examples)} with an empty text; {_first(empty)}")


def report_cut(split: str, encoded: list[Encoded], max_length: int) -> None:
    """Tell of examples cut to `max_length`, and what that lost."""
    encoded = documents_of(encoded)
    cut = [e for e in encoded if e.cut]
    if not cut:
        return
    lost = sum(e.cut for e in cut)
    whole = lost + sum(len(e.tokens) for e in encoded)
    longest = max(len(e.tokens) + e.cut for e in cut)
    say(
        f"{split}: {_share(len(cut), encoded)} cut to {max_length} tokens, {lost / whole:.1%} of "
        f"all tokens lost, the longest has {longest}; {_first([e.place for e in cut])}"
    )


def _share(count: int, everything: list[Example] | list[Encoded]) -> str:
    return f"{count} of {len(everything)} examples ({count / len(everything):.1%})"


def _first(places: list[str]) -> str:
    """`file line 2, 5, 9, ..`: places of one file differ in their last word."""
    further = [place.rpartition(" ")[2] for place in places[1:FIRST]]
    more = [".."] if len(places) > FIRST else []
    return f"at {', '.join([places[0], *further, *more])}"
