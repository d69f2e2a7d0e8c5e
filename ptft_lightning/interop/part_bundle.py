"""A bundle seen without what another layout has no place for."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.handoff.bundle import Bundle


class PartBundle(Bundle):
    """A bundle as if some of its tensors had never been there.

    Args:
        inner: The whole one.
        head: The name of the head that the rest is; None for a bare backbone.
        without: How the names of what is left out begin.
    """

    def __init__(self, inner: Bundle, head: str | None, without: tuple[str, ...]) -> None:
        config = {**inner.config, "head": {"name": head, "config": {}}}
        super().__init__(inner.path, config, "", inner.lineage)
        self.inner, self.without = inner, without

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """See `Bundle`."""
        return self.inner.tokenizer

    def names(self) -> list[str]:
        """See `Bundle`."""
        return [name for name in self.inner.names() if not name.startswith(self.without)]

    def tensor(self, name: str) -> Tensor:
        """See `Bundle`."""
        return self.inner.tensor(name)
