"""Whether layout `sentence_pairs`, objective, store and backbone go together."""

from __future__ import annotations

from collections.abc import Iterator

from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.data.manifest import has_manifest, read_manifest
from ptft_lightning.objectives.base import Objective


def pair_problems(objective: Objective, data: CorpusDataModule, types: int | None) -> Iterator[str]:
    """What stands in the way, each with its fix; `types` are the backbone's token types,
    None where it knows none."""
    layout, paired = f"data.layout is '{data.layout}'", data.layout == "sentence_pairs"
    if objective.pairs is None:
        if paired:
            yield (
                f"{layout}, objective '{objective.name}' does not learn from pairs: set "
                "data.layout documents, or take NextSentence or SentenceOrder"
            )
        return
    if not paired:
        yield (
            f"objective '{objective.name}' learns from pairs of sentences, {layout}: set "
            "data.layout sentence_pairs"
        )
    elif has_manifest(data.store) and "sentences" not in read_manifest(data.store).arrays:
        yield (
            f"data.layout sentence_pairs needs sentence starts, and the token store '{data.store}' "
            "has none: prepare the text with --sentences true into another one"
        )
    if types is None:
        yield (
            f"objective '{objective.name}' tells A from B by token types, which this kind of "
            "backbone does not read: take a Transformer"
        )
    elif types < 2:
        yield (
            f"objective '{objective.name}' tells A from B by token types, the backbone has "
            f"{types}: set model.backbone.token_types 2"
        )
