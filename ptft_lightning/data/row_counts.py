"""How many rows the documents of a store make, counted once and kept in its manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ptft_lightning.data.manifest import Manifest, Shard, write_manifest
from ptft_lightning.data.packing import document_rows


def count_rows(target: Path, manifest: Manifest, lengths: list[int]) -> Manifest:
    """The manifest with the rows of `lengths` tokens in layout `documents`, kept in the store."""

    def counted(shard: Shard) -> Shard:
        known = shard.rows or {}
        ends = np.load(target / f"{shard.name}.ends.npy", allow_pickle=False)
        more = {str(n): document_rows(ends, n) for n in lengths if str(n) not in known}
        return replace(shard, rows=known | more)

    train = [counted(shard) for shard in manifest.train]
    whole = replace(manifest, train=train, validation=[counted(s) for s in manifest.validation])
    if whole != manifest:
        write_manifest(target, whole)
    return whole
