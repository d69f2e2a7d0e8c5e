"""The prepared corpus on disk: what it looks like, reading and writing it; knows no text.

A directory with `manifest.json` and, per shard, plain `.npy` files anyone can open with numpy:
`train-00000.tokens.npy` (uint16, or uint32 when the vocabulary needs it),
`train-00000.ends.npy` (int64, where each document ends) and, where asked for,
`train-00000.words.npy` (for each token a bit, as numpy.packbits packs them, whether it begins a
word). Shards are written to a temporary name, synced and renamed, so a name that exists is a whole
file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ptft_lightning.errors import UserError

FORMAT = 1
SPLITS = ("train", "validation")
Ids = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Shard:
    """One shard of one split, as the manifest lists it."""

    name: str
    tokens: int
    documents: int
    text_bytes: int
    """UTF-8 bytes of the text, without control tokens: what bits-per-byte divides by."""
    checksum: str


@dataclass(frozen=True)
class Manifest:
    """What a token store holds; `manifest.json` is this dataclass."""

    format: int
    tokenizer: str
    """Fingerprint of the tokenizer that made the ids."""
    dtype: str
    round_trips: bool
    """Whether the tokenizer gives its text back, so that bits-per-byte means something."""
    plan: dict[str, Any]
    """Sources, seed, held-out share: everything that decided the bytes of the store."""
    bad_documents: int
    bad_places: list[str]
    train: list[Shard]
    validation: list[Shard]
    bad_kinds: dict[str, int] = field(default_factory=dict)
    """How many of the bad documents are of which kind."""

    @property
    def segmenter(self) -> str | None:
        """What found the words whose starts are noted; None where none are."""
        found: str | None = self.plan.get("segmenter")
        return found

    @property
    def arrays(self) -> tuple[str, ...]:
        """The kinds of files of each shard."""
        return ("tokens", "ends") if self.segmenter is None else ("tokens", "ends", "words")

    @property
    def fingerprint(self) -> str:
        """Hash of the content, the same on every machine."""
        shards = [s.checksum for s in (*self.train, *self.validation)]
        return hashlib.sha256(" ".join([self.tokenizer, *shards]).encode()).hexdigest()[:16]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync it, rename it, sync the directory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


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
    words: Flags | None = None,
) -> Shard:
    """Write one shard's files and return its entry in the manifest."""
    digest = hashlib.sha256()
    arrays = {"tokens": tokens, "ends": ends}
    if words is not None:
        arrays["words"] = np.packbits(words)
    for kind, array in arrays.items():
        content = _npy_bytes(array)
        digest.update(content)
        write_atomically(directory / f"{name}.{kind}.npy", content)
    return Shard(name, len(tokens), len(ends), text_bytes, digest.hexdigest()[:16])


def read_manifest(directory: str | Path) -> Manifest:
    """Read a store's manifest.

    Raises:
        UserError: there is none, or another version of the format wrote it.
    """
    file = Path(directory) / "manifest.json"
    if not file.is_file():
        raise UserError(f"no token store at '{directory}': make it with `ptft_lightning prepare`")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content.get("format")
    except (ValueError, AttributeError) as error:
        raise UserError(f"'{file}' is not the manifest of a token store: {error}") from error
    if version != FORMAT:
        raise UserError(
            f"token store '{directory}' has format {version}, this version reads "
            f"{FORMAT}: prepare it again into another directory"
        )
    try:
        for split in SPLITS:
            content[split] = [Shard(**shard) for shard in content[split]]
        return Manifest(**content)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"'{file}' is not whole ({error}): prepare the store again into another directory"
        ) from error


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest, last of all: a store with a manifest is complete."""
    text = json.dumps(asdict(manifest), indent=1, ensure_ascii=False)
    write_atomically(directory / "manifest.json", text.encode())


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

    Raises:
        UserError: the directory holds no store, or a shard is missing or has another length.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        self.directory = Path(directory)
        self.manifest = read_manifest(directory)
        listed: list[Shard] = getattr(self.manifest, split)
        self.split = split
        # A shard without documents of this split has nothing to place.
        self.shards = [shard for shard in listed if shard.tokens]

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path, str]]:
        """Pickled (for spawned workers) by name: a memory map would travel as its content."""
        return TokenStore, (self.directory, self.split)

    def tokens(self, shard: int) -> Ids:
        """Token ids of a shard, memory-mapped, in the store's dtype."""
        return self._open[shard][0]

    def ends(self, shard: int) -> Ids:
        """For each document of a shard, the index after its last token."""
        return self._open[shard][1]

    def words(self, shard: int) -> PackedBits:
        """For each token of a shard, whether it begins a word; only where the store has them."""
        return PackedBits(self._open[shard][2], self.shards[shard].tokens)

    @property
    def total_tokens(self) -> int:
        """Tokens in the split, control tokens included."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def predicted_per_byte(self) -> float:
        """Tokens a causal model predicts, all but the first of a document, over UTF-8 bytes."""
        predicted = sum(shard.tokens - shard.documents for shard in self.shards)
        return predicted / max(1, sum(shard.text_bytes for shard in self.shards))

    @cached_property
    def _open(self) -> list[list[Ids]]:
        return [self._map(shard) for shard in self.shards]

    def _map(self, shard: Shard) -> list[Ids]:
        arrays = []
        lengths = (shard.tokens, shard.documents, -(-shard.tokens // 8))
        for kind, length in zip(self.manifest.arrays, lengths, strict=False):
            file = self.directory / f"{shard.name}.{kind}.npy"
            try:
                array = np.load(file, mmap_mode="r", allow_pickle=False)
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
            self._map(shard)
            digest = hashlib.sha256()
            for kind in self.manifest.arrays:
                digest.update((self.directory / f"{shard.name}.{kind}.npy").read_bytes())
            if digest.hexdigest()[:16] != shard.checksum:
                raise UserError(
                    f"token store shard '{shard.name}' in '{self.directory}' does not match its "
                    "checksum: prepare the store again"
                )
