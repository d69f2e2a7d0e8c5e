"""How many rows a store makes in packed layouts, counted once and kept in its manifest.

Per shard and length T: `T` rows in layout `documents`, `sentence_pairs T` in that layout, and
`alone T` documents of one sentence, which that layout leaves out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ptft_lightning.data.manifest import Manifest, Shard, write_manifest
from ptft_lightning.data.packing import document_rows
from ptft_lightning.data.pair_packing import pack_pairs

PAIRS, ALONE = "sentence_pairs", "alone"


def count_rows(target: Path, manifest: Manifest, lengths: list[int]) -> Manifest:
    """The manifest with the rows of `lengths` tokens, kept in the store."""
    pairs = "sentences" in manifest.arrays

    def counted(shard: Shard) -> Shard:
        known = dict(shard.rows or {})
        ends = np.load(target / f"{shard.name}.ends.npy", allow_pickle=False)
        for n in lengths:
            if str(n) not in known:
                known[str(n)] = document_rows(ends, n)
            if pairs and f"{PAIRS} {n}" not in known:
                bits = np.load(target / f"{shard.name}.sentences.npy", allow_pickle=False)
                runs = pack_pairs(np.unpackbits(bits, count=shard.tokens) > 0, ends, n)
                known |= {f"{PAIRS} {n}": len(runs.rows) - 1, f"{ALONE} {n}": runs.alone}
        return replace(shard, rows=known)

    train = [counted(shard) for shard in manifest.train]
    whole = replace(manifest, train=train, validation=[counted(s) for s in manifest.validation])
    if whole != manifest:
        write_manifest(target, whole)
    return whole
