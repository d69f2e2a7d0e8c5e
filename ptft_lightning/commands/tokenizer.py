"""`tokenizer`: learn a vocabulary from text files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.documents import text_size
from ptft_lightning.data.prepare import documents_in_order
from ptft_lightning.data.tokenizer import Kind, train_tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.progress import ByteProgress


def tokenizer(
    files: list[str],
    output: str,
    vocab_size: int = 16384,
    kind: Kind = "bpe",
    lowercase: bool = False,
    column: str = "text",
    max_mb: float = 200.0,
    seed: int = 0,
) -> None:
    """Learn a tokenizer from text files and write tokenizer.json.

    Args:
        files: Text files (.txt, .jsonl, also .gz), paths or URLs.
        output: Directory for tokenizer.json.
        vocab_size: Number of ids, special tokens included.
        kind: Byte-level BPE (gives every text back) or WordPiece (BERT's).
        lowercase: Lower the case of all text first.
        column: The text column of .jsonl files.
        max_mb: Learn from this much text at most, files mixed.
        seed: Decides which text is taken when there is more.
    """
    target = Path(output) / "tokenizer.json"
    if target.exists():
        raise UserError(f"'{target}' is already there: remove it or give another --output")
    if vocab_size < 300:
        raise UserError(f"--vocab_size is {vocab_size}: give 300 or more (bytes alone take 256)")
    limit = min(sum(text_size(f) for f in files), int(max_mb * 1e6))
    counted = _Counted(documents_in_order(files, column, seed), limit)
    learned = train_tokenizer(iter(counted), kind, vocab_size, lowercase)
    if not counted.documents:
        raise UserError(f"empty corpus: no document in {', '.join(files)}")
    learned.save(output)
    print(
        f"{target}: {learned.size} ids from {counted.documents} documents, "
        f"fingerprint {learned.fingerprint}"
    )
    if learned.size < vocab_size:
        print(f"the text gave only {learned.size} of {vocab_size} ids", file=sys.stderr)


class _Counted:
    """Documents up to a number of bytes, with progress."""

    def __init__(self, documents: Iterator[str], limit: int) -> None:
        self.source, self.limit, self.documents = documents, limit, 0

    def __iter__(self) -> Iterator[str]:
        done = 0
        with ByteProgress("tokenizer", self.limit) as progress:
            for document in self.source:
                size = len(document.encode())
                self.documents += 1
                done += size
                progress.advance(size)
                yield document
                if done >= self.limit:
                    return


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, tokenizer, args, positional=False)
