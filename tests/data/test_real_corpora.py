"""Published corpora: every document is read once, whatever the units. Needs PTFT_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ptft_lightning.data.bad_documents import BadDocuments
from ptft_lightning.data.documents import (
    DocumentReader,
    Reading,
    check_file,
    split_units,
    text_size,
)

# Rows as their publishers count them.
COUNTS = {
    "zh_wiki_15mb/train.jsonl.gz": ("text", 13_232),
    "en_wiki/train.jsonl.gz": ("text", 34_145),
    "code_python/train.jsonl.gz": ("text", 608),
    "banking77/train.csv.gz": ("text", 10_003),
    "banking77/test.csv": ("text", 3_080),
    "sst2/train.tsv.gz": ("sentence", 6_920),
}


@pytest.mark.real
@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    root = os.environ.get("PTFT_DATA")
    assert root, "PTFT_DATA is not set: name the directory of the data sets"
    path, (column, count) = str(Path(root) / name), COUNTS[name]
    reading = Reading(column)
    check_file(path, reading)
    seen = []
    for unit_bytes in (1 << 30, 1 << 17):
        bad = BadDocuments()
        units = split_units(path, text_size(path, column), unit_bytes, column)
        with DocumentReader(reading) as reader:
            seen.append([hash(text) for unit in units for text in reader.read(unit, bad)])
        assert (len(seen[-1]), bad.kinds) == (count, {})
    assert seen[0] == seen[1]
