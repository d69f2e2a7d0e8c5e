"""Files as streams of bytes: local or any fsspec URL, plain, .gz or .zst; knows no documents."""

from __future__ import annotations

import io
import zlib
from collections import deque
from collections.abc import Iterator
from typing import IO, Any, cast

import fsspec
import zstandard

from ptft_lightning.errors import UserError

COMPRESSED = (".gz", ".zst")
MAX_LINE = 50 * 2**20  # bytes of a line (or document) held in memory; a longer one is bad
PIECE = 4096  # compressed bytes at once: where a file is damaged, the text of one piece is lost
KEPT = 4 * 2**20  # bytes of text a compressed stream remembers, to go back without a new start


class Damaged(Exception):
    """A compressed file cannot be read on; `at` is how many bytes of text came before."""

    def __init__(self, at: int, reason: str) -> None:
        super().__init__(reason)
        self.at = at


def bare_name(path: str) -> str:
    """A file's name without the ending of its compression."""
    for ending in COMPRESSED:
        path = path.removesuffix(ending)
    return path


def open_bytes(path: str) -> IO[bytes]:
    """Open a local path or URL for reading, uncompressed and seekable.

    Reading a damaged file raises `Damaged` after the last byte that is whole.

    Raises:
        UserError: the file cannot be opened.
    """
    try:
        source = cast(IO[bytes], fsspec.open(path, "rb", compression=None).open())
    except FileNotFoundError as error:
        raise UserError(f"file not found: '{path}'") from error
    except IsADirectoryError as error:
        raise UserError(f"'{path}' is a directory: name the files in it") from error
    except (OSError, ValueError, ImportError) as error:  # no permission, unknown protocol, ...
        raise UserError(f"cannot open '{path}': {error}") from error
    if not path.endswith(COMPRESSED):
        return source
    return cast(IO[bytes], io.BufferedReader(_Inflated(source, path.endswith(".gz"))))


def stream_size(path: str) -> int:
    """Uncompressed bytes of `path`; a compressed file is read through, as far as it is whole."""
    with open_bytes(path) as stream:
        if not path.endswith(COMPRESSED):
            return stream.seek(0, 2)
        try:
            return sum(len(block) for block in iter(lambda: stream.read(1 << 17), b""))
        except Damaged as damage:
            return damage.at


class _Inflated(io.RawIOBase):
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
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a compressed stream is not known")
        self.at = offset + (self.at if whence == io.SEEK_CUR else 0)
        if self.at < self.end - self.kept:
            target = self.at
            self._begin()
            self.at = target
        return self.at

    def readinto(self, buffer: Any) -> int:
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
        self.source.close()
        super().close()


def bounded_lines(stream: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Lines and their lengths in bytes; of a line over `MAX_LINE` an empty one with its length."""
    while line := stream.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE:
            yield line, len(line)
        else:
            ended = line.endswith(b"\n")
            yield b"", len(line) + (0 if ended else skip_line(stream))


def skip_line(stream: IO[bytes]) -> int:
    """Read on to the end of a line of any length; returns how many bytes that were."""
    count = 0
    while piece := stream.readline(1 << 20):
        count += len(piece)
        if piece.endswith(b"\n"):
            break
    return count


def seek_line(stream: IO[bytes], start: int) -> int:
    """Move to the first line that starts at or after byte `start`; returns where that is."""
    stream.seek(max(start - 1, 0))
    return start - 1 + skip_line(stream) if start else 0
