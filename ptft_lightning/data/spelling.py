"""The bytes that each token of a vocabulary is written with; knows no models."""

from __future__ import annotations

from functools import cache

from ptft_lightning.data.tokenizer import Tokenizer


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """UTF-8 of each id's name as the vocabulary has it (`##ing`, `\u2581the`), or, in byte-level
    BPE, the bytes it stands for; none where ids have a hole."""
    added = tokenizer.raw.get_added_tokens_decoder()
    level = type(tokenizer.raw.decoder).__name__ == "ByteLevel"
    found = []
    for i in range(tokenizer.size):
        name = tokenizer.raw.id_to_token(i) or ""
        found.append(bytes(printed(name)) if level and i not in added else name.encode())
    return found


def printed(name: str) -> list[int]:
    """The bytes that byte-level BPE writes as printable characters."""
    byte_of = _alphabet()
    return [byte_of[c] for c in name if c in byte_of]


@cache
def _alphabet() -> dict[str, int]:
    """Radford et al. 2019."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
