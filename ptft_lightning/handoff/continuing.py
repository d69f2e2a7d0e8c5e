"""What a run of phase one that goes on from a bundle takes over, in words; knows no trainer."""

from __future__ import annotations

from ptft_lightning.handoff.bundle import Bundle
from ptft_lightning.handoff.vocabulary import ExtendedBundle
from ptft_lightning.objectives.base import Objective


def going_on(bundle: Bundle, objective: Objective, peak: float) -> list[str]:
    """Lines for the log: head, vocabulary, and how the learning rate goes on."""
    return [*_head(bundle, objective), *_vocabulary(bundle), _rate(bundle, peak)]


def _head(bundle: Bundle, wanted: Objective) -> list[str]:
    has, objective = bundle.config["head"]["name"], wanted.name
    if has == objective:
        return [f"head '{objective}'"]
    if has in wanted.goes_on_from:
        return [f"head '{objective}': what it shares with '{has}', the rest is new"]
    what = f"a head for '{has}'" if has else "none"
    tied = bundle.config["backbone"]["config"]["tie_embeddings"]
    output = "its output is the inherited embedding" if tied else "its output is new, too"
    return [
        f"no head: '{bundle.path}' has {what}, the one for '{objective}' begins anew ({output}); "
        "first losses say nothing of the backbone"
    ]


def _vocabulary(bundle: Bundle) -> list[str]:
    if not isinstance(bundle, ExtendedBundle):
        return []
    pieces = [len(old) for old in bundle.splits.values()]
    return [
        f"vocabulary {bundle.old.tokenizer.size} ids, {len(pieces)} new ones: each new row is the "
        f"mean of those of its {sum(pieces) / max(1, len(pieces)):.1f} old tokens (on average), "
        "all others keep their values"
    ]


def _rate(bundle: Bundle, peak: float) -> str:
    rate = bundle.lineage.get("lr")
    ended = "not known" if rate is None else f"{rate:.3g} at its end"
    return (
        f"learning rate of the bundle: {ended}; optimizer state and schedule begin anew, up to "
        f"{peak:.3g} (at one rate: model.optimizer.schedule constant and .warmup 0)"
    )
