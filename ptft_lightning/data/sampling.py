"""Some of the documents of many files, evenly from all of them: what a tokenizer learns from."""

from __future__ import annotations

from collections.abc import Iterator

from ptft_lightning.data.bad_documents import BadDocuments
from ptft_lightning.data.documents import (
    DocumentReader,
    Reading,
    check_file,
    split_units,
)
from ptft_lightning.data.plan import UNIT_BYTES


def sample_documents(
    sized: list[tuple[str, int]], reading: Reading, limit: int, bad: BadDocuments
) -> Iterator[str]:
    """Documents of `limit` bytes in all, as evenly from all units as their sizes allow, in the
    order of the files (for tokenizers); every document where there is no more text. `sized` are
    files and their bytes of text."""
    share = min(1.0, limit / max(1, sum(size for _, size in sized)))
    for file, _ in sized:
        check_file(file, reading)
    cut = (split_units(file, size, UNIT_BYTES, reading.column) for file, size in sized)
    passed = taken = 0
    with DocumentReader(reading) as reader:
        for unit in (unit for units in cut for unit in units):
            passed += unit.end - unit.start
            for document in reader.read(unit, bad):
                if share < 1 and taken >= share * passed:
                    break
                taken += len(document.encode())
                yield document
