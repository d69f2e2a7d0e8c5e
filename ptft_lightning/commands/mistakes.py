"""Parser messages in one line, with a suggestion for a misspelt key."""

from __future__ import annotations


def one_line(message: str) -> str:
    """Fold a parser's message."""
    return " ".join(message.split())
