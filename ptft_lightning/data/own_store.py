"""The store of a run of phase one, made by the run itself where the text is not much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptft_lightning.data.bad_documents import BadDocuments
from ptft_lightning.data.documents import text_size
from ptft_lightning.data.manifest import has_manifest
from ptft_lightning.data.module import say
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.store_checks import check_plan
from ptft_lightning.errors import UserError

if TYPE_CHECKING:
    from ptft_lightning.data.corpus import CorpusDataModule

PREPARE_LIMIT = 2 * 10**9  # bytes of text that `fit` prepares by itself: a few minutes


def provide(data: CorpusDataModule) -> None:
    """Have the store of a run there, or its beginning, and say what of it could not be read."""
    if has_manifest(data.store):
        if data.files:
            check_plan(data)
    elif data.growing:
        from ptft_lightning.data.preparation import begin

        begin(data)
    else:
        prepare_own(data)
    manifest = data.manifest_of(data.store)
    if manifest.bad_documents:
        say(BadDocuments(manifest.bad_kinds, manifest.bad_places).summary())


def prepare_own(data: CorpusDataModule) -> None:
    """Make the store of a run from its files.

    Raises:
        UserError: there are none, or more text than a fit should prepare.
    """
    if not data.files:
        raise UserError(f"no token store at '{data.store}' and no data.files to make it from")
    sizes = [text_size(file, data.column) for file in data.files]
    if sum(sizes) > PREPARE_LIMIT:
        raise UserError(
            f"{sum(sizes) / 1e9:.1f} GB of text is more than fit prepares by itself: run "
            f"`ptft_lightning prepare` into '{data.store}' first"
        )
    prepare_store(
        data.files,
        data.tokenizer,
        data.store,
        data.column,
        data.validation_share,
        encoding=data.encoding,
        on_bad_document=data.on_bad_document,
        max_bad_share=data.max_bad_share,
        word_starts=data.word_starts,
        sentences=data.layout == "sentence_pairs",
        lengths=None if data.layout == "blocks" else [data.length],
        sizes=sizes,
    )
