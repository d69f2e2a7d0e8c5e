"""Whether finished token stores are those a run means; knows no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptft_lightning.data.manifest import read_manifest
from ptft_lightning.data.plan import shown_change
from ptft_lightning.data.sources import HUB
from ptft_lightning.data.streams import stored_size
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

if TYPE_CHECKING:
    from ptft_lightning.data.corpus import CorpusDataModule


def check_settings(data: CorpusDataModule) -> None:
    """What no text could be read with.

    Raises:
        UserError: naming the setting.
    """
    if data.length < 2:
        raise UserError(f"data.length is {data.length}: a row needs at least 2 tokens")
    if data.layout == "sentence_pairs":
        from ptft_lightning.data.pair_rows import check_length

        check_length(data.length)
    if data.window < 1:
        raise UserError(f"data.window is {data.window}: rows are mixed among 1 shard or more")
    if data.growing:
        from ptft_lightning.data.preparation import check_growing

        check_growing(data)


def check_plan(data: CorpusDataModule) -> None:
    """A finished store must be of these files, as they are now.

    Raises:
        UserError: naming what changed.
    """
    compare_plan(data, read_manifest(data.store).plan)


def compare_plan(data: CorpusDataModule, plan: dict[str, Any]) -> None:
    """The same of a plan.

    Raises:
        UserError: naming what changed.
    """
    asked: dict[str, Any] = {
        "files": data.files,
        "column": data.column,
        "encoding": data.encoding,
        "held_out": data.validation_share,
        "stored": [0 if f.startswith(HUB) else stored_size(f) for f in data.files],
    }
    made = {"encoding": "utf-8"} | plan
    changed = [shown_change(k, made.get(k), v) for k, v in asked.items() if made.get(k) != v]
    if changed:
        raise UserError(
            f"the token store '{data.store}' was made from something else "
            f"({', '.join(changed)}): give another data.store, or leave data.files out"
        )


def compare_tokenizer(store: str, fingerprint: str, tokenizer: Tokenizer) -> None:
    """A store must hold this tokenizer's ids.

    Raises:
        UserError: with both fingerprints.
    """
    if fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"token store '{store}' was made with another tokenizer (fingerprint "
            f"{fingerprint}, yours is {tokenizer.fingerprint}): prepare the text again into "
            "another directory"
        )


def check_stores(data: CorpusDataModule) -> None:
    """The store and those beside it hold this tokenizer's ids, and what is asked for.

    Raises:
        UserError: one does not, or is not there.
    """
    pairs = data.layout == "sentence_pairs"
    _check_store(data, data.store, data.word_starts, pairs)
    for other in {*data.stores.values(), *data.validation_stores.values()} - {data.store}:
        _check_store(data, other, data.objective.whole_words, pairs)


def _check_store(data: CorpusDataModule, store: str, word_starts: bool, sentences: bool) -> None:
    manifest = data.manifest_of(store)
    if sentences and "sentences" not in manifest.arrays:
        raise UserError(
            f"token store '{store}' was made without sentence starts: prepare it again into "
            "another directory with --sentences true"
        )
    if word_starts and manifest.segmenter is None:
        raise UserError(
            f"token store '{store}' was made without word starts: prepare it again into "
            "another directory, or leave data.word_starts out"
        )
    compare_tokenizer(store, manifest.tokenizer, data.tokenizer)
