"""Documents to a token store, one unit one shard; knows no models.

Units are dealt in a seeded order, so that stored order is already mixed. Each finished shard leaves
a small `.json` beside it: killed at any moment, the next call continues after the last complete
shard and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ptft_lightning.data.bad_documents import (
    MAX_BAD_SHARE,
    BadDocuments,
    OnBadDocument,
    check_limit,
)
from ptft_lightning.data.decoding import Encoding
from ptft_lightning.data.documents import (
    DocumentReader,
    check_file,
    text_size,
)
from ptft_lightning.data.manifest import (
    FORMAT,
    SPLITS,
    Manifest,
    Shard,
    read_manifest,
    write_manifest,
)
from ptft_lightning.data.plan import (
    SHOWN,
    UNIT_BYTES,
    Plan,
    check_share,
    list_units,
    shown_change,
)
from ptft_lightning.data.sources import HUB, expand_sources
from ptft_lightning.data.streams import is_url, stored_size
from ptft_lightning.data.token_store import Flags, Ids, Marks, write_shard
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.files import write_atomically
from ptft_lightning.progress import ByteProgress

BATCH_DOCUMENTS = 512  # documents encoded at once: enough for every core


def held_out(document: str, share: float) -> bool:
    """Whether a document belongs to the validation split: decided by its text alone."""
    digest = hashlib.blake2b(document.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


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
) -> Manifest:
    """Tokenize `files` into a token store at `directory`; continue where a killed call stopped.

    Rows of `lengths` tokens in layouts `documents` and, with `sentences`, `sentence_pairs` are
    counted, so that they need not be later.
    `files` may also be globs, folders, URLs and hub data sets; `sizes` are their bytes of text,
    where they were counted already.

    Raises:
        UserError: a missing file, an empty corpus, too many unreadable documents, or a directory
            begun with other settings.
    """
    _check_settings(directory, files, unit_bytes, validation_share, max_bad_share, lengths or [])
    files = expand_sources(files)
    plan = Plan(
        files=files,
        column=column,
        tokenizer=tokenizer.fingerprint,
        held_out=validation_share,
        seed=seed,
        unit_bytes=unit_bytes,
        sizes=sizes or [text_size(file, column) for file in files],
        stored=[0 if file.startswith(HUB) else stored_size(file) for file in files],
        encoding=encoding,
        **_finders(tokenizer, word_starts, sentences),
    )
    for file in files:  # a wrong column is said before the directory belongs to this plan
        check_file(file, plan.reading)
    target = Path(directory)
    _claim(target, plan)
    if (target / "manifest.json").is_file():
        manifest = read_manifest(target)
        check_bad_share(manifest, on_bad_document, max_bad_share)
    else:
        _make_shards(target, plan, tokenizer, on_bad_document)
        manifest = _collect(target, plan, tokenizer)
        check_bad_share(manifest, on_bad_document, max_bad_share)
        write_manifest(target, manifest)
    if lengths:
        from ptft_lightning.data.row_counts import count_rows  # a leaf

        manifest = count_rows(target, manifest, lengths)
    return manifest


def _make_shards(target: Path, plan: Plan, tokenizer: Tokenizer, on_bad: OnBadDocument) -> None:
    done = 0
    with ByteProgress("prepare", sum(plan.sizes)) as progress, DocumentReader(plan.reading) as docs:
        # Made in the order of the files, so that a compressed one is read through once.
        numbered = enumerate(list_units(plan))
        for number, unit in sorted(numbered, key=lambda u: (u[1].path, u[1].start)):
            if not _receipt(target, number).is_file():
                bad = BadDocuments(on_bad=on_bad)
                _make_shard(target, number, docs.read(unit, bad), bad, plan, tokenizer, progress)
            done += unit.end - unit.start
            progress.advance_to(done)


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


def _claim(target: Path, plan: Plan) -> None:
    """Note the plan in the directory, or check that the same plan began it."""
    target.mkdir(parents=True, exist_ok=True)
    note = target / "plan.json"
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


def _receipt(target: Path, number: int) -> Path:
    return target / f"shard-{number:05d}.json"


def _make_shard(
    target: Path,
    number: int,
    documents: Iterator[str],
    bad: BadDocuments,
    plan: Plan,
    tokenizer: Tokenizer,
    progress: ByteProgress,
) -> None:
    encode = _encoder(tokenizer, plan)
    parts = {split: _Part(tokenizer, plan.marks) for split in SPLITS}
    for batch in _batches(documents):
        for document, (ids, marks) in zip(batch, encode(batch), strict=True):
            split = "validation" if held_out(document, plan.held_out) else "train"
            parts[split].add(tokenizer.frame(ids), len(document.encode()), marks)
        progress.advance(sum(len(d.encode()) for d in batch))
    shards = {s: part.write(target, f"{s}-{number:05d}") for s, part in parts.items()}
    receipt = {
        "bad": {"kinds": bad.kinds, "places": bad.places},
        "shards": {split: asdict(shard) for split, shard in shards.items()},
    }
    write_atomically(_receipt(target, number), json.dumps(receipt).encode())


def _encoder(
    tokenizer: Tokenizer, plan: Plan
) -> Callable[[list[str]], list[tuple[list[int], Marks]]]:
    """Texts to ids and, where the plan asks for them, marks of the framed document's tokens."""
    if not plan.marks:
        return lambda texts: [(ids, {}) for ids in tokenizer.encode(texts)]
    from ptft_lightning.data.marks import encode_marked

    return lambda texts: encode_marked(tokenizer, texts, plan.marks)


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch = []
    if batch:
        yield batch


class _Part:
    """One split's share of a shard while it grows."""

    def __init__(self, tokenizer: Tokenizer, marks: tuple[str, ...]) -> None:
        self.dtype = np.uint16 if tokenizer.size <= 2**16 else np.uint32
        self.pieces: list[np.ndarray[Any, Any]] = []
        self.lengths: list[int] = []
        self.marks: dict[str, list[Flags]] = {kind: [] for kind in marks}
        self.text_bytes = 0

    def add(self, ids: list[int], text_bytes: int, marks: Marks) -> None:
        self.pieces.append(np.array(ids, self.dtype))
        self.lengths.append(len(ids))
        self.text_bytes += text_bytes
        for kind, flags in marks.items():
            self.marks[kind].append(flags)

    def write(self, target: Path, name: str) -> Shard:
        tokens: Ids = np.concatenate([np.zeros(0, self.dtype), *self.pieces])
        ends = np.cumsum(np.array(self.lengths, np.int64), dtype=np.int64)
        none = np.zeros(0, np.bool_)
        marks = {kind: np.concatenate([none, *flags]) for kind, flags in self.marks.items()}
        return write_shard(target, name, tokens, ends, self.text_bytes, marks)


def _collect(target: Path, plan: Plan, tokenizer: Tokenizer) -> Manifest:
    """The manifest that the receipts add up to."""
    receipts = [
        json.loads(_receipt(target, n).read_text(encoding="utf-8"))
        for n in range(len(list_units(plan)))
    ]
    shards = {s: [Shard(**r["shards"][s]) for r in receipts] for s in SPLITS}
    bad = BadDocuments()
    for receipt in receipts:
        bad.merge(**receipt["bad"])
    if not any(shard.documents for split in SPLITS for shard in shards[split]):
        files = ", ".join(plan.files[:SHOWN]) + (" ..." if len(plan.files) > SHOWN else "")
        raise UserError(f"empty corpus: no document in {files}; {bad.summary()}")
    return Manifest(
        format=FORMAT,
        tokenizer=tokenizer.fingerprint,
        dtype="uint16" if tokenizer.size <= 2**16 else "uint32",
        round_trips=tokenizer.round_trips,
        plan=asdict(plan),
        bad_documents=bad.count,
        bad_places=bad.places,
        train=shards["train"],
        validation=shards["validation"],
        bad_kinds=bad.kinds,
    )
