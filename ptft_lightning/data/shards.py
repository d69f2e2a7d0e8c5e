"""Units of text to shards, each with a receipt; knows nothing of the rest of the corpus."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ptft_lightning.data.bad_documents import BadDocuments, OnBadDocument
from ptft_lightning.data.documents import DocumentReader, Placed, Unit
from ptft_lightning.data.manifest import FORMAT, SPLITS, Manifest, Shard
from ptft_lightning.data.plan import Plan, held_out
from ptft_lightning.data.token_store import Flags, Ids, Marks, write_shard
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.files import write_atomically

BATCH_DOCUMENTS = 1024  # documents encoded at once: enough for every core,
BATCH_CHARACTERS = 2**18  # or so much text: encodings are a hundred times as large as ids


def receipt_of(target: Path, number: int) -> Path:
    """The file that says that a shard is complete."""
    return target / f"shard-{number:05d}.json"


def collect(receipts: list[dict[str, Any]], plan: dict[str, Any], tokenizer: Tokenizer) -> Manifest:
    """The manifest that receipts add up to."""
    shards = {s: [Shard(**r["shards"][s]) for r in receipts] for s in SPLITS}
    bad = BadDocuments()
    for receipt in receipts:
        bad.merge(**receipt["bad"])
    return Manifest(
        format=FORMAT,
        tokenizer=plan["tokenizer"],
        dtype="uint16" if tokenizer.size <= 2**16 else "uint32",
        round_trips=tokenizer.round_trips,
        plan=plan,
        bad_documents=bad.count,
        bad_places=bad.places,
        train=shards["train"],
        validation=shards["validation"],
        bad_kinds=bad.kinds,
        dropped=sum(receipt.get("dropped", 0) for receipt in receipts),
    )


@dataclass
class ShardMaker:
    """Makes shards of a plan in a directory; may be sent to any process that sees the files."""

    target: Path
    plan: Plan
    tokenizer: Tokenizer
    on_bad: OnBadDocument
    dropped: dict[str, Ids] = field(default_factory=dict)
    """Of each file, where the documents start that are left out, ascending."""

    def __call__(self, lot: list[tuple[int, Unit]], advance: Callable[[int], None]) -> None:
        """Make those shards of numbered units that are not there, one after another, each written
        while the next is made; `advance` hears of bytes that are done."""
        from ptft_lightning.data.ahead import ahead  # a leaf

        missing = [(n, unit) for n, unit in lot if not receipt_of(self.target, n).is_file()]
        with DocumentReader(self.plan.reading) as reader:
            made = (self._make(number, unit, reader, advance) for number, unit in missing)
            for shard, _ in ahead(self._write, made):
                advance(shard.left)

    def _make(
        self, number: int, unit: Unit, reader: DocumentReader, advance: Callable[[int], None]
    ) -> _Made:
        from ptft_lightning.data.ahead import ahead  # a leaf

        bad, encode = BadDocuments(on_bad=self.on_bad), _encoder(self.tokenizer, self.plan)
        parts = {split: _Part(self.tokenizer, self.plan.marks) for split in SPLITS}
        made = _Made(number, parts, bad, left=unit.end - unit.start)
        read = _batches(reader.read_placed(unit, bad))
        for texts, encoded in ahead(encode, (self._kept(unit.path, b, made) for b in read)):
            raw = [text.encode() for text in texts]
            held = [held_out(text, self.plan.held_out) for text in raw]
            for split, part in parts.items():
                chosen = [i for i, h in enumerate(held) if h == (split == "validation")]
                part.add([encoded[i] for i in chosen], sum(len(raw[i]) for i in chosen))
            done = min(made.left, sum(map(len, raw)))  # the file's bytes are more, or other ones
            advance(done)
            made.left -= done
        return made

    def _write(self, made: _Made) -> None:
        """The shard, and last its receipt."""
        shards = {s: p.write(self.target, f"{s}-{made.number:05d}") for s, p in made.parts.items()}
        receipt = {
            "bad": {"kinds": made.bad.kinds, "places": made.bad.places},
            "dropped": made.dropped,
            "shards": {split: asdict(shard) for split, shard in shards.items()},
        }
        write_atomically(receipt_of(self.target, made.number), json.dumps(receipt).encode())

    def _kept(self, path: str, batch: list[Placed], made: _Made) -> list[str]:
        """The texts that are not left out; the others are counted."""
        dropped = self.dropped.get(path)
        if dropped is None:
            return [text for _, text in batch]
        at = np.array([at for at, _ in batch])
        found = dropped[np.minimum(np.searchsorted(dropped, at), len(dropped) - 1)] == at
        made.dropped += int(found.sum())
        return [text for (_, text), drop in zip(batch, found.tolist(), strict=True) if not drop]


def _encoder(
    tokenizer: Tokenizer, plan: Plan
) -> Callable[[list[str]], list[tuple[list[int], Marks]]]:
    """Texts to ids and, where the plan asks for them, marks of the framed document's tokens."""
    if not plan.marks:
        return lambda texts: [(ids, {}) for ids in tokenizer.encode(texts)]
    from ptft_lightning.data.marks import encode_marked

    return lambda texts: encode_marked(tokenizer, texts, plan.marks)


def _batches(documents: Iterator[Placed]) -> Iterator[list[Placed]]:
    batch: list[Placed] = []
    room = BATCH_CHARACTERS
    for document in documents:
        batch.append(document)
        room -= len(document[1])
        if len(batch) == BATCH_DOCUMENTS or room <= 0:
            yield batch
            batch, room = [], BATCH_CHARACTERS
    if batch:
        yield batch


class _Part:
    """One split's share of a shard while it grows."""

    def __init__(self, tokenizer: Tokenizer, marks: tuple[str, ...]) -> None:
        self.tokenizer = tokenizer
        self.dtype = np.uint16 if tokenizer.size <= 2**16 else np.uint32
        self.pieces: list[np.ndarray[Any, Any]] = []
        self.lengths: list[int] = []
        self.marks: dict[str, list[Flags]] = {kind: [] for kind in marks}
        self.text_bytes = 0

    def add(self, encoded: list[tuple[list[int], Marks]], text_bytes: int) -> None:
        ids = self.tokenizer.join(ids for ids, _ in encoded)
        around = len(self.tokenizer.frame([]))
        # Through an `array`: twice as fast as from the list.
        self.pieces.append(np.array(array("I", ids), self.dtype))
        self.lengths += [len(ids) + around for ids, _ in encoded]
        self.text_bytes += text_bytes
        for kind, flags in self.marks.items():
            flags += [marks[kind] for _, marks in encoded]

    def write(self, target: Path, name: str) -> Shard:
        tokens: Ids = np.concatenate([np.zeros(0, self.dtype), *self.pieces])
        ends = np.cumsum(np.array(self.lengths, np.int64), dtype=np.int64)
        none = np.zeros(0, np.bool_)
        marks = {kind: np.concatenate([none, *flags]) for kind, flags in self.marks.items()}
        return write_shard(target, name, tokens, ends, self.text_bytes, marks)


@dataclass
class _Made:
    """What is to be written of one unit."""

    number: int
    parts: dict[str, _Part]
    bad: BadDocuments
    left: int
    """Bytes of which `advance` did not hear yet."""
    dropped: int = 0
