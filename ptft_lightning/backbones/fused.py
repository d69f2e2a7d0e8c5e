"""Which linear layers compute several things at once; knows names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# A fused layer's last name, the layer that reads what its first part writes, and its parts: all
# but the first are equally large.
FUSED = {"qkv": ("out", ("query", "key", "value")), "up": ("down", ("gate", "up"))}


def part_rows(name: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Rows of each part of the layer `name`; one that is not fused is its only part.

    Args:
        name: such as `layers.0.attention.qkv`.
        shapes: (outputs, inputs) of the linear layers by name, its own and its readers' among them.
    """
    stem, dot, last = name.rpartition(".")
    rows = shapes[name][0]
    reader, parts = FUSED.get(last, ("", ()))
    read = shapes.get(f"{stem}{dot}{reader}")
    if read is None or rows == read[1]:  # a feed-forward part without a gate
        return {last: rows}
    each = (rows - read[1]) // (len(parts) - 1)
    return dict(zip(parts, (read[1], *[each] * (len(parts) - 1)), strict=True))
