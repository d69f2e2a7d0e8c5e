"""Documents to a token store, one unit one shard; knows no models.

Units are dealt in a seeded order, so that stored order is already mixed. Each finished shard leaves
a small `.json` beside it: killed at any moment, the next call continues after the last complete
shard and ends with the same bytes. Shards know nothing of each other: whoever makes them, one
process, several or a cluster, the bytes are the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptft_lightning.data.bad_documents import (
    MAX_BAD_SHARE,
    BadDocuments,
    OnBadDocument,
    check_limit,
)
from ptft_lightning.data.decoding import Encoding
from ptft_lightning.data.documents import check_file
from ptft_lightning.data.manifest import NAME, SPLITS, Manifest, read_manifest, write_manifest
from ptft_lightning.data.plan import (
    PLAN,
    SHOWN,
    UNIT_BYTES,
    Plan,
    check_share,
    list_units,
    shown_change,
)
from ptft_lightning.data.shards import ShardMaker, collect, receipt_of
from ptft_lightning.data.sources import HUB, expand_sources
from ptft_lightning.data.streams import is_url, stored_size
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.files import write_atomically

if TYPE_CHECKING:
    from ptft_lightning.data.drop_list import DropList


def prepare_store(
    files: list[str],
    tokenizer: Tokenizer,
    directory: str | Path,
    column: str = "text",
    validation_share: float = 0.01,
    seed: int = 0,
    unit_bytes: int = UNIT_BYTES,
    encoding: Encoding = "utf-8",
    on_bad_document: OnBadDocument = "skip",
    max_bad_share: float = MAX_BAD_SHARE,
    word_starts: bool = False,
    sentences: bool = False,
    lengths: list[int] | None = None,
    sizes: list[int] | None = None,
    dropped: DropList | None = None,
    workers: int = 1,
    cluster: str | None = None,
) -> Manifest:
    """Tokenize `files` into a token store at `directory`; continue where a killed call stopped.

    Rows of `lengths` tokens in layouts `documents` and, with `sentences`, `sentence_pairs` are
    counted. `files` may also be globs, folders, URLs and hub data sets; `sizes` are their bytes of
    text, if known. What `dropped` lists is left out. Shards are made by `workers` processes of this
    machine, or on the Ray `cluster` of that address.

    Raises:
        UserError: what cannot be read, was begun with other settings, or a process that died.
    """
    from ptft_lightning.data.lots import text_sizes  # leaves
    from ptft_lightning.data.workers import share_out

    _check_settings(directory, files, unit_bytes, validation_share, max_bad_share, lengths or [])
    share = partial(share_out, workers=workers, cluster=cluster)
    plan = Plan(
        files=(files := expand_sources(files)),
        column=column,
        tokenizer=tokenizer.fingerprint,
        held_out=validation_share,
        seed=seed,
        unit_bytes=unit_bytes,
        sizes=sizes or text_sizes(files, column, share),
        stored=[0 if file.startswith(HUB) else stored_size(file) for file in files],
        encoding=encoding,
        drop=dropped.fingerprint if dropped else None,
        **_finders(tokenizer, word_starts, sentences),
    )
    target = Path(directory)
    _claim(target, plan, dropped)
    make = partial(_make_all, target, plan, tokenizer, on_bad_document, dropped, share)
    return _finish(target, make, on_bad_document, max_bad_share, lengths or [])


def _finish(
    target: Path,
    make: Callable[[], Manifest],
    on_bad: OnBadDocument,
    max_bad_share: float,
    lengths: list[int],
) -> Manifest:
    """Make what is not there yet, the manifest last, while nobody else does."""
    from ptft_lightning.data.row_counts import count_rows  # leaves
    from ptft_lightning.data.store_lock import preparing

    with preparing(target):
        finished = (target / NAME).is_file()
        manifest = read_manifest(target) if finished else make()
        check_bad_share(manifest, on_bad, max_bad_share)
        if not finished:
            write_manifest(target, manifest)
        return count_rows(target, manifest, lengths) if lengths else manifest


def _make_all(
    target: Path,
    plan: Plan,
    tokenizer: Tokenizer,
    on_bad: OnBadDocument,
    dropped: DropList | None,
    share: Callable[..., list[Any]],
) -> Manifest:
    from ptft_lightning.data.lots import make_shards

    units = list_units(plan)
    places = dropped.places if dropped else {}
    make_shards(ShardMaker(target, plan, tokenizer, on_bad, places), units, share)
    for left in target.glob(".*.tmp"):  # by processes that were killed
        left.unlink()
    manifest = _collect(target, plan, tokenizer, len(units))
    if dropped:
        dropped.check_met(plan, manifest.dropped)
    return manifest


def _check_settings(
    target: str | Path,
    files: list[str],
    unit_bytes: int,
    validation_share: float,
    max_bad_share: float,
    lengths: list[int],
) -> None:
    check_limit(max_bad_share)
    if is_url(str(target)):
        raise UserError(
            f"a token store is prepared in a directory, '{target}' is a URL: prepare it here, then "
            "copy it there"
        )
    if not files:
        raise UserError("no files to prepare: name them with --data.files (or --files)")
    if unit_bytes < 1:
        raise UserError(f"--unit_bytes is {unit_bytes}: give 1 or more")
    if short := [n for n in lengths if n < 2]:
        raise UserError(f"--lengths has {short[0]}: a row needs at least 2 tokens")
    check_share(validation_share)


def check_bad_share(manifest: Manifest, on_bad: OnBadDocument, limit: float) -> None:
    """Refuse a store of which too much could not be read; see `BadDocuments.check_share`."""
    bad = BadDocuments(manifest.bad_kinds, manifest.bad_places, on_bad)
    shards = (*manifest.train, *manifest.validation)
    bad.check_share(sum(shard.documents for shard in shards), limit)


def _finders(tokenizer: Tokenizer, word_starts: bool, sentences: bool) -> dict[str, str | None]:
    if not (word_starts or sentences):
        return {}
    from ptft_lightning.data.marks import finders

    return finders(tokenizer, word_starts, sentences)


def _claim(target: Path, plan: Plan, dropped: DropList | None) -> None:
    """Note the plan in the directory, or check that the same plan began it."""
    if dropped:
        dropped.check(plan)
    for file in plan.files:  # a wrong column is said before the directory belongs to this plan
        check_file(file, plan.reading)
    target.mkdir(parents=True, exist_ok=True)
    note = target / PLAN
    content = json.dumps(asdict(plan), indent=1, ensure_ascii=False)
    if not note.is_file():
        write_atomically(note, content.encode())
        return
    begun: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    changed = [k for k, v in asdict(plan).items() if begun.get(k) != v]
    if changed:
        was = ", ".join(shown_change(k, begun.get(k), getattr(plan, k)) for k in changed)
        raise UserError(
            f"token store '{target}' was begun with other settings ({was}): "
            "use another directory, or remove this one"
        )


def _collect(target: Path, plan: Plan, tokenizer: Tokenizer, units: int) -> Manifest:
    """The manifest that the receipts add up to."""
    receipts = [json.loads(receipt_of(target, n).read_text(encoding="utf-8")) for n in range(units)]
    manifest = collect(receipts, asdict(plan), tokenizer)
    if not any(shard.documents for split in SPLITS for shard in getattr(manifest, split)):
        files = ", ".join(plan.files[:SHOWN]) + (" ..." if len(plan.files) > SHOWN else "")
        bad = BadDocuments(manifest.bad_kinds, manifest.bad_places)
        raise UserError(f"empty corpus: no document in {files}; {bad.summary()}")
    return manifest
