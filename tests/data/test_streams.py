"""Compressed streams against Python's own readers, wherever one seeks, and with damage."""

from __future__ import annotations

import gzip
import random
from functools import cache
from pathlib import Path

import fsspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.data import streams
from ptft_lightning.data.streams import Damaged, bounded_lines, open_bytes, stream_size
from ptft_lightning.errors import UserError


def packed(suffix: str, *parts: bytes) -> bytes:
    """One gzip member or zstd frame for each part."""
    if suffix == ".gz":
        return b"".join(gzip.compress(part, 1) for part in parts)
    return b"".join(zstandard.ZstdCompressor(level=1).compress(part) for part in parts)


@cache
def noise(count: int, seed: int = 0) -> bytes:
    """Text that hardly compresses."""
    rng = random.Random(seed)
    return bytes(rng.choice(b"abcdefghijklmnopqrstuvwxyz \n") for _ in range(count))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@given(
    jumps=st.lists(st.tuples(st.integers(0, 66_000), st.integers(0, 20_000)), max_size=8),
    cut=st.integers(0, 60_000),
)
def test_seek_and_read(tmp_path: Path, suffix: str, jumps: list[tuple[int, int]], cut: int) -> None:
    """Any jump gives what the whole text has there, over members, and back beyond what is kept."""
    text = noise(60_000)
    path = tmp_path / f"t{suffix}"
    path.write_bytes(packed(suffix, text[:cut], text[cut:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "KEPT", 9_000)
        with open_bytes(str(path)) as stream:
            for start, count in jumps:
                stream.seek(start)
                assert stream.read(count) == text[start : start + count]
                assert stream.tell() == max(start, min(start + count, len(text)))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_members_and_frames_are_one_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0note" if suffix == ".zst" else b""
    path.write_bytes(packed(suffix, b"one\n", b"", b"two\n") + skippable + packed(suffix, b"three"))
    with open_bytes(str(path)) as stream:
        assert stream.read() == b"one\ntwo\nthree"
    assert stream_size(str(path)) == len(b"one\ntwo\nthree")


def test_padding_after_gzip_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.gz"
    path.write_bytes(packed(".gz", b"text") + b"\0" * 10_000)
    assert stream_size(str(path)) == 4


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_units_in_order_are_one_pass(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on from a little before where one stopped reads no compressed byte twice."""
    text = noise(300_000)
    path = tmp_path / f"t{suffix}"
    path.write_bytes(packed(suffix, text))
    stream = open_bytes(str(path))
    starts = 0
    begin = streams._Inflated._begin

    def counted(self: streams._Inflated) -> None:
        nonlocal starts
        starts += 1
        begin(self)

    monkeypatch.setattr(streams._Inflated, "_begin", counted)
    for start in range(0, 300_000, 10_000):
        stream.seek(max(0, start - 3000))
        stream.read(15_000)
    assert starts == 0
    stream.seek(0)
    assert stream.read() == text


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("harm", ["cut", "not packed", "flipped", "garbage after"])
def test_damage_comes_after_what_is_whole(tmp_path: Path, suffix: str, harm: str) -> None:
    text = noise(300_000)
    whole = packed(suffix, text)
    middle = len(whole) // 2
    path = tmp_path / f"t{suffix}"
    path.write_bytes(
        {
            "cut": whole[:middle],
            "not packed": text,
            "flipped": whole[:middle] + bytes(b ^ 255 for b in whole[middle:]),
            "garbage after": whole + b"garbage" * 10,
        }[harm]
    )
    size = stream_size(str(path))
    least, most = {
        "cut": (0.2, 0.6),
        "not packed": (0, 0),
        "flipped": (0.2, 0.6),
        "garbage after": (1, 1),
    }[harm]
    assert least * len(text) <= size <= most * len(text)
    with open_bytes(str(path)) as stream:
        read = stream.read(size)
        true = size // 3 if harm == "flipped" else size  # some wrong bytes go unnoticed for a while
        assert (len(read), read[:true]) == (size, text[:true])
        for _ in range(2):  # it does not go away
            with pytest.raises(Damaged) as damage:
                stream.read(1)
            assert damage.value.at == size
        stream.seek(0)
        assert stream.read(min(size, 99)) == text[: min(size, 99)]


def test_a_line_without_end_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_LINE", 10)
    path = tmp_path / "t.txt"
    path.write_bytes(b"short\n" + b"x" * 3_000_000 + b"\n123456789\n1234567890\n" + b"y" * 11)
    with open_bytes(str(path)) as stream:
        assert list(bounded_lines(stream)) == [
            (b"short\n", 6),
            (b"", 3_000_001),
            (b"123456789\n", 10),
            (b"", 11),
            (b"", 11),
        ]


def test_urls(tmp_path: Path) -> None:
    for name, content in (("t.txt", b"plain"), ("t.txt.zst", packed(".zst", b"packed"))):
        with fsspec.open(f"memory://streams/{name}", "wb") as file:
            file.write(content)
    assert stream_size("memory://streams/t.txt") == 5
    with open_bytes("memory://streams/t.txt.zst") as stream:
        assert stream.read() == b"packed"
    with pytest.raises(UserError, match=r"cannot open 'nosuch://x/t\.txt'"):
        open_bytes("nosuch://x/t.txt")
