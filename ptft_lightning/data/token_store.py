"""The prepared corpus on disk: what it looks like, reading and writing it; knows no text.

A directory with `manifest.json` and, per shard, plain `.npy` files anyone can open with numpy:
`train-00000.tokens.npy` (uint16, or uint32 when the vocabulary needs it),
`train-00000.ends.npy` (int64, where each document ends) and, where asked for,
`train-00000.words.npy` and `train-00000.sentences.npy` (for each token a bit, as numpy.packbits
packs them, whether it begins a word, a sentence). Shards are written to a temporary name, synced
and renamed, so a name that exists is a whole file.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ptft_lightning.data.cache_config import CacheConfig
from ptft_lightning.data.manifest import Manifest, Shard, read_manifest
from ptft_lightning.data.streams import is_url
from ptft_lightning.errors import UserError
from ptft_lightning.files import write_atomically

if TYPE_CHECKING:
    from ptft_lightning.data.shard_cache import ShardCache

# Shards that a process has mapped at once: each takes a few file descriptors, and the disk of one
# that was removed from a cache is free only when nobody maps it any more.
MAPPED = 128
Ids = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]
Marks = dict[str, Flags]  # what is noted of each token, by the name of its file


def _npy_bytes(array: Ids) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def write_shard(
    directory: Path,
    name: str,
    tokens: Ids,
    ends: Ids,
    text_bytes: int,
    marks: Marks | None = None,
) -> Shard:
    """Write one shard's files and return its entry in the manifest."""
    digest = hashlib.sha256()
    arrays = {"tokens": tokens, "ends": ends}
    arrays |= {kind: np.packbits(flags) for kind, flags in (marks or {}).items()}
    for kind, array in arrays.items():
        content = _npy_bytes(array)
        digest.update(content)
        write_atomically(directory / f"{name}.{kind}.npy", content)
    return Shard(name, len(tokens), len(ends), text_bytes, digest.hexdigest()[:16])


class PackedBits:
    """Slices of memory-mapped bits, as arrays of 0 and 1."""

    def __init__(self, packed: Ids, count: int) -> None:
        self.packed, self.count = packed, count

    def __getitem__(self, at: slice) -> Ids:
        first, stop = at.start // 8, min(at.stop, self.count)
        bits = np.unpackbits(np.asarray(self.packed[first : -(-stop // 8)], np.uint8))
        return bits[at.start - 8 * first : stop - 8 * first]


class TokenStore:
    """One split of a prepared corpus, memory-mapped.

    Args:
        place: Directory, or URL: its shards are then fetched when they are needed.
        split: `train` or `validation`.
        cache: Where and how many fetched shards are kept.
        manifest: Of the part that is to be read; default: the whole store.

    Raises:
        UserError: there is no store, or a shard of a directory is missing.
    """

    def __init__(
        self,
        place: str | Path,
        split: str,
        cache: CacheConfig | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        self.place, self.split, self.cache_config = str(place), split, cache
        self.part = manifest
        self.manifest = manifest or read_manifest(place)
        listed: list[Shard] = getattr(self.manifest, split)
        # A shard without documents of this split has nothing to place.
        self.shards = [shard for shard in listed if shard.tokens]
        self.cache: ShardCache | None = None
        if is_url(self.place):
            from ptft_lightning.data.shard_cache import open_cache

            self.cache = open_cache(self.place, self.manifest, cache)
        else:
            self._check_names()
        self._mapped: dict[int, list[Ids]] = {}  # the last one is the one used last

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled (for spawned workers) by name: a memory map would travel as its content."""
        return TokenStore, (self.place, self.split, self.cache_config, self.part)

    def tokens(self, shard: int) -> Ids:
        """Token ids of a shard, memory-mapped, in the store's dtype."""
        return self._open(shard)[0]

    def ends(self, shard: int) -> Ids:
        """For each document of a shard, the index after its last token."""
        return self._open(shard)[1]

    def words(self, shard: int) -> PackedBits:
        """For each token of a shard, whether it begins a word; only where the store has them."""
        return self.marks(shard, "words")

    def marks(self, shard: int, kind: str) -> PackedBits:
        """For each token of a shard, whether it begins one of `words` or `sentences`."""
        packed = self._open(shard)[self.manifest.arrays.index(kind)]
        return PackedBits(packed, self.shards[shard].tokens)

    def bring(self, shard: int) -> None:
        """Have a shard that is not here yet fetched, and keep one that is."""
        if self.cache is not None:
            self.cache.fetch(self.shards[shard])

    @property
    def total_tokens(self) -> int:
        """Tokens in the split, control tokens included."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def predicted_per_byte(self) -> float:
        """Tokens a causal model predicts, all but the first of a document, over UTF-8 bytes."""
        predicted = sum(shard.tokens - shard.documents for shard in self.shards)
        return predicted / max(1, sum(shard.text_bytes for shard in self.shards))

    def _check_names(self) -> None:
        there = set(os.listdir(self.place))
        kinds = self.manifest.arrays
        for file in (f"{shard.name}.{kind}.npy" for shard in self.shards for kind in kinds):
            if file not in there:
                raise UserError(
                    f"token store shard '{Path(self.place) / file}' cannot be read, it is missing: "
                    "copy it there, or prepare the store again"
                )

    def _open(self, number: int) -> list[Ids]:
        arrays = self._mapped.pop(number, None) or self._bring_and_map(self.shards[number])
        self._mapped[number] = arrays
        if len(self._mapped) > MAPPED:
            del self._mapped[next(iter(self._mapped))]
        return arrays

    def _bring_and_map(self, shard: Shard) -> list[Ids]:
        if self.cache is None:
            return self._map(shard, Path(self.place))
        folder = self.cache.fetch(shard)
        try:
            return self._map(shard, folder)
        except UserError:  # removed by another process just now, or not what it was
            self.cache.forget(shard)
            return self._map(shard, self.cache.fetch(shard))

    def _map(self, shard: Shard, folder: Path) -> list[Ids]:
        arrays = []
        lengths = {"tokens": shard.tokens, "ends": shard.documents}
        for kind in self.manifest.arrays:
            length = lengths.get(kind, -(-shard.tokens // 8))
            file = folder / f"{shard.name}.{kind}.npy"
            try:
                # As a plain array: a slice of numpy's class for maps costs more than its reading.
                array = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
            except (OSError, ValueError, EOFError) as error:
                raise UserError(f"token store shard '{file}' cannot be read: {error}") from error
            if len(array) != length:
                raise UserError(
                    f"token store shard '{file}' has {len(array)} entries, its manifest says "
                    f"{length}: the file was changed; prepare the store again"
                )
            arrays.append(array)
        return arrays

    def verify(self) -> None:
        """Read every shard and compare its checksum.

        Raises:
            UserError: naming the shard that differs or cannot be read.
        """
        for shard in self.shards:
            self._bring_and_map(shard)
            folder = Path(self.place) if self.cache is None else self.cache.fetch(shard)
            if shard_checksum(folder, shard, self.manifest.arrays) != shard.checksum:
                raise UserError(
                    f"token store shard '{shard.name}' in '{self.place}' does not match its "
                    "checksum: prepare the store again"
                )


def shard_checksum(folder: Path, shard: Shard, kinds: tuple[str, ...]) -> str:
    """Of a shard's files as they are."""
    digest = hashlib.sha256()
    for kind in kinds:
        digest.update((folder / f"{shard.name}.{kind}.npy").read_bytes())
    return digest.hexdigest()[:16]
