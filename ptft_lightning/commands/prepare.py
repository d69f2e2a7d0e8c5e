"""`prepare`: text files to a token store."""

from __future__ import annotations

import sys

from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.prepare import UNIT_BYTES, prepare_store
from ptft_lightning.data.tokenizer import Tokenizer


def prepare(
    files: list[str],
    tokenizer: str,
    output: str,
    column: str = "text",
    validation_share: float = 0.01,
    seed: int = 0,
    unit_bytes: int = UNIT_BYTES,
    word_starts: bool = False,
) -> None:
    """Tokenize text files into a token store. A call that was killed goes on where it stopped.

    Args:
        files: Text files (.txt, .jsonl, also .gz), paths or URLs.
        tokenizer: A tokenizer.json or its directory.
        output: Directory of the token store.
        column: The text column of .jsonl files.
        validation_share: Share of documents held out, chosen by hash of their text.
        seed: Decides the stored order.
        unit_bytes: Bytes of text per shard.
        word_starts: Note where words start, for MaskedLM's whole_words (extra `zh`).
    """
    manifest = prepare_store(
        files,
        Tokenizer.load(tokenizer),
        output,
        column,
        validation_share,
        seed,
        unit_bytes,
        word_starts,
    )
    for split in ("train", "validation"):
        shards = getattr(manifest, split)
        documents, tokens = sum(s.documents for s in shards), sum(s.tokens for s in shards)
        print(f"{split}: {documents} documents, {tokens} tokens in {len(shards)} shards")
    if manifest.bad_documents:
        print(f"{manifest.bad_documents} documents could not be read:", file=sys.stderr)
        for place in manifest.bad_places:
            print(f"  {place}", file=sys.stderr)
    print(f"{output}: fingerprint {manifest.fingerprint}")


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, prepare, args, positional=False)
