"""Compressed files (.gz, .zst) as streams of their text; knows no documents."""

from __future__ import annotations

import io
import zlib
from collections import deque
from typing import IO, Any

import zstandard

from ptft_lightning.data.streams import MAX_LINE, Damaged

PIECE = 4096  # compressed bytes at once: where a file is damaged, the text of one piece is lost
# Bytes of text a stream remembers, to go back without beginning again: a document may end as far
# behind its unit as a line may be long.
KEPT = MAX_LINE + 4 * 2**20


class Inflated(io.RawIOBase):
    """The text of a .gz or .zst file; members, or frames, one after another are one text.

    Ours, because fsspec's reader of .zst ends silently after the first frame and cannot go back,
    and Python's of .gz loses what it had read when it meets damage.
    """

    def __init__(self, source: IO[bytes], gzip: bool) -> None:
        self.source, self.gzip = source, gzip
        self._begin()

    def _begin(self) -> None:
        self.source.seek(0)
        self.at = self.end = self.kept = 0
        self.blocks: deque[bytes] = deque()  # the text of bytes [end - kept, end)
        self.member: Any = None
        self.rest = b""
        self.damage: Damaged | None = None

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be moved in."""
        return True

    def tell(self) -> int:
        """Where in the text the next byte is."""
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte of the text, but not from its end."""
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a compressed stream is not known")
        self.at = offset + (self.at if whence == io.SEEK_CUR else 0)
        if self.at < self.end - self.kept:
            target = self.at
            self._begin()
            self.at = target
        return self.at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as text is at hand; 0 at the end."""
        while self.at >= self.end:
            if not self._inflate():
                return 0
        start = self.end
        for block in reversed(self.blocks):
            start -= len(block)
            if start <= self.at:
                break
        room = memoryview(buffer).cast("B")
        piece = memoryview(block)[self.at - start : self.at - start + len(room)]
        room[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)

    def _inflate(self) -> bool:
        """Add a block of text; False at the end of the file."""
        if self.damage is not None:
            raise self.damage
        while data := self.rest or self.source.read(PIECE):
            self.rest = b""
            if self.member is None:
                data = data.lstrip(b"\0")  # padding between members
                if not data:
                    continue
                self.member = self._new_member()
            try:
                text = self.member.decompress(data)
            except (zlib.error, zstandard.ZstdError) as error:
                self._fail(str(error))
            if self.member.eof:
                self.rest, self.member = self.member.unused_data, None
            if text:
                self._keep(text)
                return True
        if self.member is not None:
            self._fail("it ends too early")
        return False

    def _new_member(self) -> Any:
        if self.gzip:
            return zlib.decompressobj(wbits=31)
        return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()

    def _fail(self, reason: str) -> None:
        self.damage = Damaged(self.end, reason)
        raise self.damage

    def _keep(self, text: bytes) -> None:
        self.blocks.append(text)
        self.end += len(text)
        self.kept += len(text)
        while self.kept - len(self.blocks[0]) >= KEPT:
            self.kept -= len(self.blocks.popleft())

    def close(self) -> None:
        """Close the compressed file."""
        self.source.close()
        super().close()
