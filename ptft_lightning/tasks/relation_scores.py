"""Scores of predicted relations; knows labels and nothing else."""

from __future__ import annotations

import re
from collections import Counter

DIRECTION = re.compile(r"\(e[12],e[12]\)$")


def relation_scores(gold: list[str], said: list[str], negative: str | None) -> dict[str, float]:
    """Accuracy, and micro- and macro-averaged F1 over the relations without the negative one.

    A label may end in a direction, `(e1,e2)` or `(e2,e1)`. Micro-averaged, a relation and its
    direction are one class. Macro-averaged, F1 is that of the relation without its direction, where
    a wrong direction is a wrong answer, averaged over the relations in `gold`: the official score
    of SemEval-2010 task 8 (Hendrickx et al. 2010), here from 0 to 1.
    """
    pairs = list(zip(gold, said, strict=True))
    right = Counter(g for g, s in pairs if g == s)
    golds = Counter(g for g in gold if g != negative)
    saids = Counter(s for s in said if s != negative)
    found = sum(count for label, count in right.items() if label != negative)
    names = {label: DIRECTION.sub("", label) for label in {*gold, *said}}

    def of(counts: Counter[str], name: str) -> int:
        return sum(count for label, count in counts.items() if names[label] == name)

    relations = sorted({names[label] for label in golds})
    each = [2 * of(right, name) / (of(golds, name) + of(saids, name)) for name in relations]
    return {
        "accuracy": right.total() / len(pairs) if pairs else 0.0,
        "micro_f1": 2 * found / max(golds.total() + saids.total(), 1),
        "macro_f1": sum(each) / max(len(each), 1),
    }
