"""Documents of a corpus that repeat an earlier one, letter for letter; knows no tokens.

Two documents are the same if their texts are, without the white space around them. Each text is
compared by a hash of 128 bits (BLAKE2b): the chance that any two of 10^12 different documents share
one is 10^-15. Hashes go to disk, sorted, a file for each unit of text, and are merged range by
range: memory holds RANGE of them at a time, and 32 bytes for each document that repeats one.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ptft_lightning.data.bad_documents import MAX_BAD_SHARE, BadDocuments, OnBadDocument
from ptft_lightning.data.documents import DocumentReader, Reading, Unit, check_file, split_units
from ptft_lightning.data.drop_list import write_drop_list
from ptft_lightning.data.lots import Lot, lots_of, text_sizes
from ptft_lightning.data.plan import UNIT_BYTES
from ptft_lightning.data.sources import HUB, expand_sources
from ptft_lightning.data.streams import stored_size
from ptft_lightning.data.workers import Advance, share_out
from ptft_lightning.errors import UserError
from ptft_lightning.progress import ByteProgress

RANGE = 2**22  # hashes that are compared at once
AT_ONCE = 1024  # documents between two signs of life
Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


@dataclass
class Found:
    """What a corpus repeats."""

    documents: int = 0
    bad: BadDocuments = field(default_factory=BadDocuments)
    repeated: Places = field(default_factory=lambda: np.zeros((4, 0), np.int64))
    """File, place; file and place of the first of its kind; ascending; (4, repeats)."""


@dataclass
class Hasher:
    """The hashes of units of text, sorted, into a directory."""

    folder: Path
    reading: Reading
    on_bad: OnBadDocument

    def __call__(self, lot: Lot, advance: Advance) -> list[tuple[int, BadDocuments]]:
        """How many documents each unit of a lot has, and what of it could not be read."""
        with DocumentReader(self.reading) as reader:
            return [self._hash(reader, number, unit, advance) for number, unit in lot]

    def name(self, lot: Lot) -> str:
        """What a lot is."""
        return f"'{lot[0][1].path}' from byte {lot[0][1].start} of its text on"

    def _hash(
        self, reader: DocumentReader, number: int, unit: Unit, advance: Advance
    ) -> tuple[int, BadDocuments]:
        bad = BadDocuments(on_bad=self.on_bad)
        digests, places, left, fresh = bytearray(), [], unit.end - unit.start, 0
        for at, text in reader.read_placed(unit, bad):
            raw = text.strip().encode()
            digests += hashlib.blake2b(raw, digest_size=16).digest()
            places.append(at)
            fresh += len(raw)
            if len(places) % AT_ONCE == 0:
                advance(min(fresh, left))
                left, fresh = left - min(fresh, left), 0
        hashes = np.frombuffer(bytes(digests), "<u8").reshape(-1, 2).T
        order = _by_hash(hashes)
        np.save(self.folder / f"{number}.hashes.npy", hashes[:, order])
        np.save(self.folder / f"{number}.places.npy", np.array(places, np.int64)[order])
        advance(left)
        return len(places), bad


def find_duplicates(
    files: list[str],
    output: str | Path,
    reading: Reading,
    on_bad: OnBadDocument = "skip",
    max_bad_share: float = MAX_BAD_SHARE,
    unit_bytes: int = UNIT_BYTES,
    workers: int = 1,
    cluster: str | None = None,
) -> Found:
    """Write to `output` which documents of `files` repeat an earlier one, in the files' order.

    Raises:
        UserError: a missing file, one without the column, no document in any, or too many that
            cannot be read.
    """
    share = partial(share_out, workers=workers, cluster=cluster)
    files = list(dict.fromkeys(expand_sources(files)))  # a file that is named twice is no copy
    if not files:
        raise UserError("no files to look at: name them with --files")
    for file in files:
        check_file(file, reading)
    sizes = text_sizes(files, reading.column, share)
    cut = (split_units(f, n, unit_bytes, reading.column) for f, n in zip(files, sizes, strict=True))
    units = [unit for parts in cut for unit in parts]
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".duplicates-", dir=target.parent) as folder:
        hasher, lots = Hasher(Path(folder).absolute(), reading, on_bad), lots_of(units)
        with ByteProgress("duplicates", sum(sizes)) as progress:
            told = share(hasher, lots, progress.advance, hasher.name)
        counts = [0] * len(units)
        found = Found()
        for lot, facts in zip(lots, told, strict=True):
            for (number, _), (count, bad) in zip(lot, facts, strict=True):
                counts[number] = count
                found.bad.merge(bad.kinds, bad.places)
        found.documents = sum(counts)
        if not found.documents:
            raise UserError(f"no document in {', '.join(files[:3])}; {found.bad.summary()}")
        of_unit = np.array([files.index(unit.path) for unit in units])
        found.bad.check_share(found.documents, max_bad_share)
        found.repeated = _merge(hasher.folder, of_unit, found.documents)
    about = {
        "column": reading.column,
        "encoding": reading.encoding,
        "documents": found.documents,
        "dropped": found.repeated.shape[1],
        "files": {file: 0 if file.startswith(HUB) else stored_size(file) for file in files},
    }
    write_drop_list(target, about, _entries(found.repeated, files))
    return found


def _by_hash(hashes: Hashes) -> Places:
    """The order that sorts hashes (2, n); those that are equal stay as they stand."""
    return np.lexsort((hashes[1], hashes[0]))


def _merge(folder: Path, of_unit: Places, documents: int) -> Places:
    """See `Found.repeated`; `of_unit` says which file each unit is a part of."""
    ranges = -(-documents // RANGE)
    found = [_repeats(folder, of_unit, i, ranges) for i in range(ranges)]
    repeated = np.concatenate(found, axis=1)
    return repeated[:, np.lexsort((repeated[1], repeated[0]))]


def _repeats(folder: Path, of_unit: Places, index: int, ranges: int) -> Places:
    """Those among the hashes of one range, of which every unit has a stretch."""
    first, last = (np.uint64((i * 2**64 // ranges) - (i == ranges)) for i in (index, index + 1))
    hashes, files, places = [], [], []
    for number, file in enumerate(of_unit.tolist()):
        sorted_hashes = np.load(folder / f"{number}.hashes.npy", mmap_mode="r")
        start = int(np.searchsorted(sorted_hashes[0], first))
        side = "right" if index + 1 == ranges else "left"
        stop = int(np.searchsorted(sorted_hashes[0], last, side=side))  # type: ignore[call-overload]
        hashes.append(np.array(sorted_hashes[:, start:stop]))
        places.append(np.load(folder / f"{number}.places.npy", mmap_mode="r")[start:stop])
        files.append(np.full(stop - start, file))
    together = np.concatenate(hashes, axis=1)
    order = _by_hash(together)  # of equal ones the first in the files' order stays the first
    together = together[:, order]
    where = np.stack([np.concatenate(files), np.concatenate(places)])[:, order]
    same = np.zeros(together.shape[1], np.bool_)
    same[1:] = (together[:, 1:] == together[:, :-1]).all(axis=0)
    first_of = np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))
    return np.concatenate([where[:, same], where[:, first_of[same]]])


def _entries(repeated: Places, files: list[str]) -> Iterator[dict[str, Any]]:
    for file, at, first_file, first_at in repeated.T.tolist():
        repeats = {"file": files[first_file], "at": first_at}
        yield {"file": files[file], "at": at, "repeats": repeats}
