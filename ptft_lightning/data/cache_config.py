"""Settings of the cache for stores behind URLs."""

from __future__ import annotations

from dataclasses import dataclass

from ptft_lightning.errors import UserError

DEFAULT = "~/.cache/ptft_lightning/shards"


@dataclass(frozen=True)
class CacheConfig:
    """Where shards of stores behind URLs are kept, and how many."""

    directory: str = DEFAULT
    """Shared by all stores and all processes of a host."""
    gigabytes: float = 20.0
    """Of one store; at least what two windows of shards take."""

    def __post_init__(self) -> None:
        if self.gigabytes <= 0:
            raise UserError(f"data.cache.gigabytes is {self.gigabytes}: give more than 0")
