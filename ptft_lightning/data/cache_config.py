"""Settings of the cache for stores behind URLs."""

from __future__ import annotations

from dataclasses import dataclass

from ptft_lightning.errors import UserError

DEFAULT = "~/.cache/ptft_lightning/shards"


@dataclass(frozen=True)
class CacheConfig:
    """Where shards of stores behind URLs are kept, and how many."""

    directory: str = DEFAULT
    """On a disk of the host itself; shared by all stores and all processes there."""
    gigabytes: float = 20.0
    """Of each store; at least what two windows of its shards take."""

    def __post_init__(self) -> None:
        if self.gigabytes <= 0:
            raise UserError(f"data.cache.gigabytes is {self.gigabytes}: give more than 0")
