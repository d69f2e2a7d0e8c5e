"""What a token store holds (`manifest.json`), here or behind any fsspec URL; knows no tokens."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ptft_lightning.data.streams import is_url
from ptft_lightning.errors import UserError
from ptft_lightning.files import write_atomically

FORMAT = 1
SPLITS = ("train", "validation")
NAME = "manifest.json"


@dataclass(frozen=True, slots=True)  # there may be 100,000
class Shard:
    """One shard of one split, as the manifest lists it."""

    name: str
    tokens: int
    documents: int
    text_bytes: int
    """UTF-8 bytes of the text, without control tokens: what bits-per-byte divides by."""
    checksum: str
    rows: dict[str, int] | None = None
    """Where they were counted: rows in layout `documents` by their length and, for layout
    `sentence_pairs`, what `row_counts` notes."""


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
    dropped: int = 0
    """Documents that a drop list named, and that were left out."""

    @property
    def segmenter(self) -> str | None:
        """What found the words whose starts are noted; None where none are."""
        found: str | None = self.plan.get("segmenter")
        return found

    @property
    def arrays(self) -> tuple[str, ...]:
        """The kinds of files of each shard."""
        words = () if self.segmenter is None else ("words",)
        return ("tokens", "ends", *words, *(("sentences",) if self.plan.get("splitter") else ()))

    def first_window(self, window: int) -> Manifest:
        """The first `window` shards that hold training text, and those between, alone."""
        filled = [n for n, shard in enumerate(self.train, 1) if shard.tokens]
        stop = filled[window - 1] if len(filled) >= window else len(self.train)
        return replace(self, train=self.train[:stop], validation=self.validation[:stop])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content, the same on every machine."""
        shards = [s.checksum for s in (*self.train, *self.validation)]
        return hashlib.sha256(" ".join([self.tokenizer, *shards]).encode()).hexdigest()[:16]


def read_manifest(store: str | Path) -> Manifest:
    """Read a store's manifest.

    Raises:
        UserError: there is none, or another version of the format wrote it.
    """
    if is_url(str(store)):
        return _read_remote(str(store))
    file = Path(store) / NAME
    if not file.is_file():
        raise UserError(f"no token store at '{store}': make it with `ptft_lightning prepare`")
    stat = file.stat()
    return _read_local(str(store), stat.st_mtime_ns, stat.st_size)


def has_manifest(store: str) -> bool:
    """Whether a store is there, and whole."""
    return is_url(store) or (Path(store) / NAME).is_file()


@lru_cache(maxsize=8)  # a large one takes a second, and several parts of a run ask for it
def _read_local(store: str, changed: int, size: int) -> Manifest:
    return _parse(store, (Path(store) / NAME).read_bytes())


@lru_cache(maxsize=8)
def _read_remote(store: str) -> Manifest:
    from ptft_lightning.data.remote import read_remote

    return _parse(store, read_remote(f"{store.rstrip('/')}/{NAME}"))


def _parse(store: str, text: bytes) -> Manifest:
    file = f"{store.rstrip('/')}/{NAME}"
    try:
        content = json.loads(text)
        version = content.get("format")
    except (ValueError, AttributeError) as error:
        raise UserError(f"'{file}' is not the manifest of a token store: {error}") from error
    if version != FORMAT:
        raise UserError(
            f"token store '{store}' has format {version}, this version reads "
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
    write_atomically(directory / NAME, text.encode())
