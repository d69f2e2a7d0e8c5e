"""Files as streams of bytes: local or any fsspec URL, plain, .gz or .zst; knows no documents."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, cast

import fsspec

from ptft_lightning.errors import UserError

COMPRESSED = (".gz", ".zst")
MAX_LINE = 50 * 2**20  # bytes of a line (or document) held in memory; a longer one is bad


class Damaged(Exception):
    """A compressed file cannot be read on; `at` is how many bytes of text came before."""

    def __init__(self, at: int, reason: str) -> None:
        super().__init__(reason)
        self.at = at


def is_url(path: str) -> bool:
    """Whether a path names something that fsspec has to fetch."""
    return "://" in path


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
    source = _open_source(path)
    if not path.endswith(COMPRESSED):
        return source
    from ptft_lightning.data.formats.compressed import Inflated

    return cast(IO[bytes], io.BufferedReader(Inflated(source, path.endswith(".gz"))))


def _open_source(path: str) -> IO[bytes]:
    try:
        return cast(IO[bytes], fsspec.open(path, "rb", compression=None).open())
    except FileNotFoundError as error:
        raise UserError(f"file not found: '{path}'") from error
    except IsADirectoryError as error:
        raise UserError(f"'{path}' is a directory: name the files in it") from error
    except (OSError, ValueError, ImportError) as error:  # no permission, unknown protocol, ...
        raise UserError(f"cannot open '{path}': {error}") from error


def _length(stream: IO[bytes], path: str) -> int:
    try:
        return stream.seek(0, 2)
    except (ValueError, OSError) as error:  # a server that tells no length
        raise UserError(f"cannot move about in '{path}' ({error}): download it first") from error


def stored_size(path: str) -> int:
    """Bytes of a file as it lies there, compressed or not.

    Raises:
        UserError: the file cannot be opened, or tells no length.
    """
    with _open_source(path) as source:
        return _length(source, path)


def stream_size(path: str) -> int:
    """Uncompressed bytes of `path`; a compressed file is read through, as far as it is whole."""
    with open_bytes(path) as stream:
        if not path.endswith(COMPRESSED):
            return _length(stream, path)
        try:
            return sum(len(block) for block in iter(lambda: stream.read(1 << 17), b""))
        except Damaged as damage:
            return damage.at


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
