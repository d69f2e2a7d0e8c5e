"""`tokenizer`: learn a vocabulary from text files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.bad_documents import (
    MAX_BAD_SHARE,
    BadDocuments,
    OnBadDocument,
    check_limit,
)
from ptft_lightning.data.decoding import Encoding
from ptft_lightning.data.documents import Reading, text_size
from ptft_lightning.data.sampling import sample_documents
from ptft_lightning.data.sources import expand_sources
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
    normalize: list[str] | str | None = None,
    sentinels: int = 0,
    encoding: Encoding = "utf-8",
    on_bad_document: OnBadDocument = "skip",
    max_bad_share: float = MAX_BAD_SHARE,
) -> None:
    """Learn a tokenizer from text files and write tokenizer.json.

    Args:
        files: Paths, globs, folders or URLs of text (.txt, .jsonl, .csv, .tsv, also .gz or .zst;
            .parquet), or hub:owner/name?config=NAME&split=NAME.
        output: Directory for tokenizer.json.
        vocab_size: Number of ids, special tokens included.
        kind: Byte-level BPE (gives every text back), WordPiece (BERT's) or Unigram (as
            SentencePiece, slow to learn).
        lowercase: Lower the case of all text first.
        column: The text column, of all files but .txt.
        max_mb: Learn from this much text at most, evenly from all files; bounds the memory, too.
        normalize: Done to all text first, in this order: `nfkc` (Unicode's compatibility form),
            `t2s` (traditional to simplified Chinese, extra `zh`); one or a list.
        sentinels: Special tokens <extra_id_0>, <extra_id_1>, ... among them, which SpanCorruption
            needs; 100 are enough for rows of 2,048 tokens.
        encoding: Of text files; a byte order mark is dropped.
        on_bad_document: Count documents that cannot be read and leave them out, or stop at one.
        max_bad_share: Refuse a corpus of which a larger share cannot be read.
    """
    target = Path(output) / "tokenizer.json"
    if target.exists():
        raise UserError(f"'{target}' is already there: remove it or give another --output")
    _check_size(vocab_size, kind, sentinels)
    check_limit(max_bad_share)
    files = expand_sources(files)
    sized = [(file, text_size(file, column)) for file in files]
    limit, size = bytes_of(max_mb), sum(size for _, size in sized)
    print(memory_estimate(kind, min(limit, size)), file=sys.stderr)
    bad = BadDocuments(on_bad=on_bad_document)
    counted = Counted(sample_documents(sized, Reading(column, encoding), limit, bad), limit, size)
    steps = [normalize] if isinstance(normalize, str) else normalize or []
    if (first := next(documents := iter(counted), None)) is None:
        raise UserError(f"empty corpus: no document in {', '.join(files[:3])}; {bad.summary()}")
    text = chain([first], documents)
    learned = train_tokenizer(text, kind, vocab_size, lowercase, steps, sentinels)
    bad.check_share(counted.documents, max_bad_share)
    if bad.count:
        print(bad.summary(), file=sys.stderr)
    learned.save(output)
    print(
        f"{target}: {learned.size} ids from {counted.documents} documents, "
        f"fingerprint {learned.fingerprint}"
    )
    if learned.size < vocab_size:
        print(f"the text gave only {learned.size} of {vocab_size} ids", file=sys.stderr)


def _check_size(vocab_size: int, kind: Kind, sentinels: int) -> None:
    if sentinels < 0:
        raise UserError(f"--sentinels is {sentinels}: give 0 or more")
    least = (400 if kind == "unigram" else 300) + sentinels
    if vocab_size < least:
        taken = f", sentinels {sentinels}" if sentinels else ""
        raise UserError(
            f"--vocab_size is {vocab_size}: give {least} or more (bytes take 256{taken})"
        )


def bytes_of(max_mb: float) -> int:
    """Bytes of --max_mb, if there are any."""
    if max_mb <= 0:
        raise UserError(f"--max_mb is {max_mb:g}: give more than 0")
    return int(max_mb * 1e6)


def memory_estimate(kind: Kind, sample: int) -> str:
    """What learning from `sample` bytes will take."""
    spaced, unspaced = ((BASE_BYTES + each * sample) / 1e9 for each in MEMORY[kind])
    return (
        f"tokenizer: {sample / 1e6:.1f} MB of text, up to {spaced:.1f} GB of memory, without "
        f"spaces between words (Chinese) {unspaced:.1f} GB: --max_mb bounds both"
    )


class Counted:
    """Documents up to a number of bytes, with progress."""

    def __init__(self, documents: Iterator[str], limit: int, size: int) -> None:
        self.source, self.limit, self.size, self.documents = documents, limit, size, 0

    def __iter__(self) -> Iterator[str]:
        done = 0
        with ByteProgress("tokenizer", min(self.limit, self.size)) as progress:
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
