"""What of a corpus can be worked on side by side; knows no tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from ptft_lightning.data.documents import Unit, text_size
from ptft_lightning.data.shards import ShardMaker, receipt_of
from ptft_lightning.data.streams import COMPRESSED
from ptft_lightning.progress import ByteProgress

Lot = list[tuple[int, Unit]]  # numbered units that one process works on, one after another
Share = Callable[..., list[Any]]  # `share_out`, told where


def lots_of(units: list[Unit]) -> list[Lot]:
    """What can be made at the same time, in the order of the shards: single units, but of a
    compressed file all, in their order, so that it is read through once."""

    def where(numbered: tuple[int, Unit]) -> tuple[str, int]:
        number, unit = numbered
        return unit.path, 0 if unit.path.endswith(COMPRESSED) else number

    apart = groupby(sorted(enumerate(units), key=where), where)
    lots = [sorted(lot, key=lambda numbered: numbered[1].start) for _, lot in apart]
    return sorted(lots, key=lambda lot: min(number for number, _ in lot))


def make_shards(maker: ShardMaker, units: list[Unit], share: Share) -> None:
    """Make the shards of all units that are not there; shows progress."""
    lots, total = lots_of(units), sum(unit.end - unit.start for unit in units)
    left = [[n for n in lot if not receipt_of(maker.target, n[0]).is_file()] for lot in lots]
    with ByteProgress("prepare", total) as progress:
        fresh = sum(unit.end - unit.start for lot in left for _, unit in lot)
        progress.advance_to(total - fresh)
        share(maker, [lot for lot in left if lot], progress.advance, partial(_name, maker.target))


def _name(target: Path, lot: Lot) -> str:
    """The shard of a lot that is being made."""
    missing = [(n, unit) for n, unit in lot if not receipt_of(target, n).is_file()]
    number, unit = (missing or lot[-1:])[0]
    return f"shard {number} (bytes {unit.start} to {unit.end} of the text of '{unit.path}')"


def text_sizes(files: list[str], column: str, share: Share) -> list[int]:
    """Bytes of text of each file; compressed ones are read through, all at the same time."""
    packed = [file for file in files if file.endswith(COMPRESSED)]
    found = share(partial(_size, column), packed, lambda _: None, "the size of '{}'".format)
    sizes = dict(zip(packed, found, strict=True))
    return [sizes[f] if f in sizes else text_size(f, column) for f in files]


def _size(column: str, file: str, advance: Callable[[int], None]) -> int:
    return text_size(file, column)
