"""Documents to a token store, one unit one shard; knows no models.

Units are dealt in a seeded order, so that stored order is already mixed. Each finished shard leaves
a small `.json` beside it: killed at any moment, the next call continues after the last complete
shard and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptft_lightning.data.documents import BadDocuments, Unit, read_unit, split_units, text_size
from ptft_lightning.data.sample_order import keyed_permutation
from ptft_lightning.data.token_store import (
    FORMAT,
    SPLITS,
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


def list_units(plan: Plan) -> list[Unit]:
    """All units of the plan in their seeded order: unit i becomes shard i."""
    sized = zip(plan.files, plan.sizes, strict=True)
    units = [u for path, size in sized for u in split_units(path, size, plan.unit_bytes)]
    order = keyed_permutation(np.arange(len(units)), len(units), (plan.seed,))
    return [units[i] for i in order]


def documents_in_order(files: list[str], column: str, seed: int) -> Iterator[str]:
    """Every document of the files, in the seeded order of their units (for tokenizers)."""
    plan = Plan(files, column, "", 0.0, seed, UNIT_BYTES, [text_size(f) for f in files])
    bad = BadDocuments()
    for unit in list_units(plan):
        yield from read_unit(unit, column, bad)


def check_share(validation_share: float) -> None:
    """Refuse what is no share."""
    if not 0 <= validation_share <= 1:
        raise UserError(f"validation_share is {validation_share}: give a share from 0 to 1")


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
) -> Manifest:
    """Tokenize `files` into a token store at `directory`; continue where a killed call stopped.

    Raises:
        UserError: a missing or empty file, or a directory begun with other settings.
    """
    if not files:
        raise UserError("no files to prepare: name them with --data.files (or --files)")
    if unit_bytes < 1:
        raise UserError(f"--unit_bytes is {unit_bytes}: give 1 or more")
    check_share(validation_share)
    plan = Plan(
        files=list(files),
        column=column,
        tokenizer=tokenizer.fingerprint,
        held_out=validation_share,
        seed=seed,
        unit_bytes=unit_bytes,
        sizes=[text_size(file) for file in files],
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


def _claim(target: Path, plan: Plan) -> None:
    """Note the plan in the directory, or check that the same plan began it."""
    target.mkdir(parents=True, exist_ok=True)
    note = target / "plan.json"
    content = json.dumps(asdict(plan), indent=1, ensure_ascii=False)
    if not note.is_file():
        write_atomically(note, content.encode())
        return
    begun: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    changed = [k for k, v in json.loads(content).items() if begun.get(k) != v]
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
    parts = {split: _Part(tokenizer) for split in SPLITS}
    for batch in _batches(read_unit(unit, plan.column, bad)):
        for document, ids in zip(batch, tokenizer.encode(batch), strict=True):
            split = "validation" if held_out(document, plan.held_out) else "train"
            parts[split].add(tokenizer.frame(ids), len(document.encode()))
        progress.advance(sum(len(d.encode()) for d in batch))
    shards = {split: part.write(target, f"{split}-{number:05d}") for split, part in parts.items()}
    receipt = {
        "bad": asdict(bad),
        "shards": {split: asdict(shard) for split, shard in shards.items()},
    }
    write_atomically(_receipt(target, number), json.dumps(receipt).encode())


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
        self.text_bytes = 0

    def add(self, ids: list[int], text_bytes: int) -> None:
        self.pieces.append(np.array(ids, self.dtype))
        self.lengths.append(len(ids))
        self.text_bytes += text_bytes

    def write(self, target: Path, name: str) -> Shard:
        tokens: Ids = np.concatenate([np.zeros(0, self.dtype), *self.pieces])
        ends = np.cumsum(np.array(self.lengths, np.int64), dtype=np.int64)
        return write_shard(target, name, tokens, ends, self.text_bytes)


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
        plan=asdict(plan),
        bad_documents=sum(r["bad"]["count"] for r in receipts),
        bad_places=[p for r in receipts for p in r["bad"]["places"]][:10],
        train=shards["train"],
        validation=shards["validation"],
    )
    write_manifest(target, manifest)
    return manifest
