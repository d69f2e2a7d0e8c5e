"""Bytes to text: encodings, and what makes a text unfit to be a document; knows no file formats."""

from __future__ import annotations

from typing import Literal

from ptft_lightning.data.bad_documents import BAD_BYTES, NUL_BYTES, BadDocuments
from ptft_lightning.data.streams import Damaged, open_bytes
from ptft_lightning.errors import UserError

Encoding = Literal["utf-8", "utf-8-sig", "gb18030"]

# A byte order mark is dropped either way. In all of these a byte of an ASCII line end, comma, tab
# or quote is never part of another character (GB18030's second bytes: 0x30-0x39, 0x40-0xfe).
CODECS = {"utf-8": "utf-8", "utf-8-sig": "utf-8", "gb18030": "gb18030"}
SAMPLE = 2**20  # bytes looked at to tell whether a file is in the encoding at all
ENOUGH = 16  # characters beyond ASCII from which an encoding can be told


def decode(raw: bytes, encoding: Encoding, place: str, bad: BadDocuments) -> str | None:
    """The text of `raw`; None, counted in `bad`, where it is not in the encoding."""
    try:
        return raw.decode(CODECS[encoding]).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        bad.add(
            BAD_BYTES,
            place,
            f"not {CODECS[encoding].upper()} ({error.reason} after {error.start} B)",
        )
        return None


def fit_text(text: str, place: str, bad: BadDocuments) -> str | None:
    """The text if it can be a document; None if it is blank or, counted in `bad`, unfit."""
    if not text or text.isspace():  # an ideographic space alone is no document, either
        return None
    if "\0" in text:
        bad.add(NUL_BYTES, place, "NUL bytes in the text")
        return None
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            bad.add(BAD_BYTES, place, "half of a surrogate pair (not valid Unicode)")
            return None
    return text


def check_encoding(path: str, encoding: Encoding) -> None:
    """Look at the beginning of a text file.

    Raises:
        UserError: most of its lines are not in the encoding; the sentence names a better one.
    """
    with open_bytes(path) as stream:
        try:
            sample = stream.read(SAMPLE)
        except Damaged:
            return  # counted by who reads it
    lines = [line for line in sample.split(b"\n") if line.strip()]
    lines = lines[:-1] if len(sample) == SAMPLE else lines  # the last one is cut
    likely = _likely(lines, encoding)
    if likely or sum(_bad(line, encoding) for line in lines) > len(lines) / 2:
        hint = f"looks like {likely}" if likely else "it may be no text"
        raise UserError(
            f"'{path}' is not {CODECS[encoding].upper()}, {hint}: name its encoding with "
            f"--data.encoding (or --encoding), one of {', '.join(CODECS)}, or convert it"
        )


def _bad(line: bytes, encoding: Encoding) -> bool:
    try:
        return "\0" in line.decode(CODECS[encoding])
    except UnicodeDecodeError:
        return True


def _likely(lines: list[bytes], encoding: Encoding) -> str | None:
    """Which other encoding lines are in that are mostly bad, or, by chance, good in this one."""
    whole = b"\n".join(lines)
    if whole.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    if encoding == "gb18030":
        text = whole.decode("utf-8", errors="replace")
        beyond = [c for c in text if ord(c) > 127]
        # Chinese in UTF-8 is often valid GB18030, too; the reverse is as good as impossible.
        return (
            "UTF-8" if len(beyond) >= ENOUGH and beyond.count("\ufffd") * 50 < len(beyond) else None
        )
    if sum(_bad(line, encoding) for line in lines) <= len(lines) / 2:
        return None
    # Western text in Latin-1 is valid GB18030 as well, as rare characters: the common ones decide.
    beyond = [c for c in whole.decode("gb18030", errors="replace") if ord(c) > 127]
    common = "".join(beyond).encode("gb2312", errors="ignore")
    return "GB18030" if beyond and len(common) / 2 > 0.8 * len(beyond) else None
