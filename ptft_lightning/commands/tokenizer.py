"""`tokenizer`: learn a vocabulary from text files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.documents import text_size
from ptft_lightning.data.prepare import sample_documents
from ptft_lightning.data.tokenizer_training import Kind, train_tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.progress import ByteProgress

# Peak memory: of the program, and per byte of text (with spaces between words; without), measured
# by benchmarks/tokenizer_memory.py on English and Chinese Wikipedia and rounded up.
BASE_BYTES = 100_000_000
MEMORY: dict[Kind, tuple[int, int]] = {
    "bpe": (25, 110),
    "wordpiece": (20, 20),
    "unigram": (40, 110),
}


def tokenizer(
    files: list[str],
    output: str,
    vocab_size: int = 16384,
    kind: Kind = "bpe",
    lowercase: bool = False,
    column: str = "text",
    max_mb: float = 200.0,
    seed: int = 0,
    normalize: list[str] | str | None = None,
) -> None:
    """Learn a tokenizer from text files and write tokenizer.json.

    Args:
        files: Text files (.txt, .jsonl, also .gz), paths or URLs.
        output: Directory for tokenizer.json.
        vocab_size: Number of ids, special tokens included.
        kind: Byte-level BPE (gives every text back), WordPiece (BERT's) or Unigram (as
            SentencePiece, slow to learn).
        lowercase: Lower the case of all text first.
        column: The text column of .jsonl files.
        max_mb: Learn from this much text at most, evenly from all files; bounds the memory, too.
        seed: Decides the order in which the text is read.
        normalize: Done to all text first, in this order: `nfkc` (Unicode's compatibility form),
            `t2s` (traditional to simplified Chinese, extra `zh`); one or a list.
    """
    target = Path(output) / "tokenizer.json"
    if target.exists():
        raise UserError(f"'{target}' is already there: remove it or give another --output")
    least = 400 if kind == "unigram" else 300
    if vocab_size < least:
        raise UserError(f"--vocab_size is {vocab_size}: give {least} or more (bytes take 256)")
    limit = min(sum(text_size(f) for f in files), int(max_mb * 1e6))
    spaced, unspaced = ((BASE_BYTES + each * limit) / 1e9 for each in MEMORY[kind])
    print(
        f"tokenizer: {limit / 1e6:.1f} MB of text, up to {spaced:.1f} GB of memory, without spaces "
        f"between words (Chinese) {unspaced:.1f} GB: --max_mb bounds both",
        file=sys.stderr,
    )
    counted = _Counted(sample_documents(files, column, seed, int(max_mb * 1e6)), limit)
    steps = [normalize] if isinstance(normalize, str) else normalize or []
    learned = train_tokenizer(iter(counted), kind, vocab_size, lowercase, steps)
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
