"""Documents to a token store, one unit one shard; knows no models.

Units are dealt in a seeded order, so that stored order is already mixed. Each finished shard leaves
a small `.json` beside it: killed at any moment, the next call continues after the last complete
shard and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptft_lightning.data.documents import BadDocuments, Unit, read_unit, split_units, text_size
from ptft_lightning.data.sample_order import keyed_permutation
from ptft_lightning.data.token_store import (
    FORMAT,
    SPLITS,
    Flags,
    Ids,
    Manifest,
    Shard,
    read_manifest,
    write_atomically,
    write_manifest,
    write_shard,
)
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.progress import ByteProgress

UNIT_BYTES = 32 * 2**20
BATCH_DOCUMENTS = 512  # documents encoded at once: enough for every core


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a store."""

    files: list[str]
    column: str
    tokenizer: str
    held_out: float
    seed: int
    unit_bytes: int
    sizes: list[int]
    segmenter: str | None = None
    """What finds the words whose starts are noted; None where none are."""

    def content(self) -> dict[str, Any]:
        """Plain values; without word starts as if there were no such thing."""
        values = asdict(self)
        if self.segmenter is None:
            del values["segmenter"]
        return values


def list_units(plan: Plan) -> list[Unit]:
    """All units of the plan in their seeded order: unit i becomes shard i."""
    sized = zip(plan.files, plan.sizes, strict=True)
    units = [u for path, size in sized for u in split_units(path, size, plan.unit_bytes)]
    order = keyed_permutation(np.arange(len(units)), len(units), (plan.seed,))
    return [units[i] for i in order]


def sample_documents(files: list[str], column: str, seed: int, limit: int) -> Iterator[str]:
    """Documents of `limit` bytes in all, as evenly from all units as their sizes allow, in the
    seeded order of the units (for tokenizers); every document where there is no more text."""
    plan = Plan(files, column, "", 0.0, seed, UNIT_BYTES, [text_size(f) for f in files])
    share = min(1.0, limit / max(1, sum(plan.sizes)))
    passed = taken = 0
    for unit in list_units(plan):
        passed += unit.end - unit.start
        for document in read_unit(unit, column, BadDocuments()):
            if share < 1 and taken >= share * passed:
                break
            taken += len(document.encode())
            yield document


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
    word_starts: bool = False,
) -> Manifest:
    """Tokenize `files` into a token store at `directory`; continue where a killed call stopped.

    Raises:
        UserError: a missing or empty file, or a directory begun with other settings.
    """
    if not files:
        raise UserError("no files to prepare: name them with --data.files (or --files)")
    if unit_bytes < 1:
        raise UserError(f"--unit_bytes is {unit_bytes}: give 1 or more")
    if not 0 <= validation_share <= 1:
        raise UserError(f"validation_share is {validation_share}: give a share from 0 to 1")
    plan = Plan(
        files=list(files),
        column=column,
        tokenizer=tokenizer.fingerprint,
        held_out=validation_share,
        seed=seed,
        unit_bytes=unit_bytes,
        sizes=[text_size(file) for file in files],
        segmenter=_segmenter() if word_starts else None,
    )
    for file in files:  # a wrong column is said before the directory belongs to this plan
        next(read_unit(Unit(file, 0, 1), column, BadDocuments()), None)
    target = Path(directory)
    _claim(target, plan)
    if (target / "manifest.json").is_file():
        return read_manifest(target)
    units = list_units(plan)
    done = 0
    with ByteProgress("prepare", sum(plan.sizes)) as progress:
        for number, unit in enumerate(units):
            if not _receipt(target, number).is_file():
                _make_shard(target, number, unit, plan, tokenizer, progress)
            done += unit.end - unit.start
            progress.advance_to(done)
    return _finish(target, plan, tokenizer, len(units))


def _segmenter() -> str:
    from ptft_lightning.data.word_starts import segmenter

    return segmenter()


def _claim(target: Path, plan: Plan) -> None:
    """Note the plan in the directory, or check that the same plan began it."""
    target.mkdir(parents=True, exist_ok=True)
    note = target / "plan.json"
    content = json.dumps(plan.content(), indent=1, ensure_ascii=False)
    if not note.is_file():
        write_atomically(note, content.encode())
        return
    begun: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    changed = [k for k, v in asdict(plan).items() if begun.get(k) != v]
    if changed:
        was = ", ".join(f"{k} {begun.get(k)!r} -> {getattr(plan, k)!r}" for k in changed)
        raise UserError(
            f"token store '{target}' was begun with other settings ({was}): "
            "use another directory, or remove this one"
        )


def _receipt(target: Path, number: int) -> Path:
    return target / f"shard-{number:05d}.json"


def _make_shard(
    target: Path,
    number: int,
    unit: Unit,
    plan: Plan,
    tokenizer: Tokenizer,
    progress: ByteProgress,
) -> None:
    bad = BadDocuments()
    encode = _encoder(tokenizer, plan)
    parts = {split: _Part(tokenizer) for split in SPLITS}
    for batch in _batches(read_unit(unit, plan.column, bad)):
        for document, (ids, starts) in zip(batch, encode(batch), strict=True):
            split = "validation" if held_out(document, plan.held_out) else "train"
            parts[split].add(tokenizer.frame(ids), len(document.encode()), starts)
        progress.advance(sum(len(d.encode()) for d in batch))
    with_words = plan.segmenter is not None
    shards = {s: part.write(target, f"{s}-{number:05d}", with_words) for s, part in parts.items()}
    receipt = {
        "bad": asdict(bad),
        "shards": {split: asdict(shard) for split, shard in shards.items()},
    }
    write_atomically(_receipt(target, number), json.dumps(receipt).encode())


def _encoder(
    tokenizer: Tokenizer, plan: Plan
) -> Callable[[list[str]], list[tuple[list[int], Flags | None]]]:
    """Texts to ids and, where the plan asks for them, flags of the framed document's words."""
    if plan.segmenter is None:
        return lambda texts: [(ids, None) for ids in tokenizer.encode(texts)]
    from ptft_lightning.data.word_starts import encode_words

    return lambda texts: [*encode_words(tokenizer, texts)]


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

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.dtype = np.uint16 if tokenizer.size <= 2**16 else np.uint32
        self.pieces: list[np.ndarray[Any, Any]] = []
        self.lengths: list[int] = []
        self.words: list[Flags] = []  # none, or one for each document
        self.text_bytes = 0

    def add(self, ids: list[int], text_bytes: int, starts: Flags | None) -> None:
        self.pieces.append(np.array(ids, self.dtype))
        self.lengths.append(len(ids))
        self.text_bytes += text_bytes
        if starts is not None:
            self.words.append(starts)

    def write(self, target: Path, name: str, with_words: bool) -> Shard:
        tokens: Ids = np.concatenate([np.zeros(0, self.dtype), *self.pieces])
        ends = np.cumsum(np.array(self.lengths, np.int64), dtype=np.int64)
        words = np.concatenate([np.zeros(0, np.bool_), *self.words]) if with_words else None
        return write_shard(target, name, tokens, ends, self.text_bytes, words)


def _finish(target: Path, plan: Plan, tokenizer: Tokenizer, units: int) -> Manifest:
    receipts = [json.loads(_receipt(target, n).read_text()) for n in range(units)]
    shards = {s: [Shard(**r["shards"][s]) for r in receipts] for s in SPLITS}
    if not any(shard.documents for split in SPLITS for shard in shards[split]):
        raise UserError(
            f"empty corpus: no document in {', '.join(plan.files)} "
            f"({sum(r['bad']['count'] for r in receipts)} could not be read)"
        )
    manifest = Manifest(
        format=FORMAT,
        tokenizer=tokenizer.fingerprint,
        dtype="uint16" if tokenizer.size <= 2**16 else "uint32",
        round_trips=tokenizer.round_trips,
        plan=plan.content(),
        bad_documents=sum(r["bad"]["count"] for r in receipts),
        bad_places=[p for r in receipts for p in r["bad"]["places"]][:10],
        train=shards["train"],
        validation=shards["validation"],
    )
    write_manifest(target, manifest)
    return manifest
