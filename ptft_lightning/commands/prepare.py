"""`prepare`: text files to a token store."""

from __future__ import annotations

import sys

from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.bad_documents import MAX_BAD_SHARE, OnBadDocument, by_kind
from ptft_lightning.data.decoding import Encoding
from ptft_lightning.data.drop_list import read_drop_list
from ptft_lightning.data.manifest import Manifest
from ptft_lightning.data.plan import UNIT_BYTES
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.workers import available_cores, check_workers

THREADS = 4  # of a process that tokenizes: a guess, as only two cores were measured


def prepare(
    files: list[str],
    tokenizer: str,
    output: str,
    column: str = "text",
    validation_share: float = 0.01,
    seed: int = 0,
    unit_bytes: int = UNIT_BYTES,
    encoding: Encoding = "utf-8",
    on_bad_document: OnBadDocument = "skip",
    max_bad_share: float = MAX_BAD_SHARE,
    word_starts: bool = False,
    sentences: bool = False,
    lengths: list[int] | None = None,
    drop: str | None = None,
    workers: int | None = None,
    cluster: str | None = None,
) -> None:
    """Tokenize text files into a token store. A call that was killed goes on where it stopped.

    Args:
        files: Paths, globs, folders or URLs of text (.txt, .jsonl, .csv, .tsv, also .gz or .zst;
            .parquet), or hub:owner/name?config=NAME&split=NAME.
        tokenizer: A tokenizer.json or its directory.
        output: Directory of the token store.
        column: The text column, of all files but .txt.
        validation_share: Share of documents held out, chosen by hash of their text.
        seed: Decides the stored order.
        unit_bytes: Bytes of text per shard.
        encoding: Of text files; a byte order mark is dropped.
        on_bad_document: Count documents that cannot be read and leave them out, or stop at one.
        max_bad_share: Refuse a corpus of which a larger share cannot be read.
        word_starts: Note where words start, for MaskedLM's whole_words (extra `zh`).
        sentences: Note where sentences start, for layout `sentence_pairs` (extra `sentences`).
        lengths: Count the rows of so many tokens; stores read from URLs need it, but for `blocks`.
        drop: Leave out the documents of this list, which `duplicates` wrote.
        workers: Processes; default: one for 4 cores, or for each to find words or sentences.
        cluster: Or the nodes of this Ray cluster (extra `cluster`), which must see the same paths:
            ray://host:10001, host:6379, or auto for the one this machine belongs to.
    """
    check_workers(workers, cluster, unit_bytes)
    manifest = prepare_store(
        files,
        Tokenizer.load(tokenizer),
        output,
        column=column,
        validation_share=validation_share,
        seed=seed,
        unit_bytes=unit_bytes,
        encoding=encoding,
        on_bad_document=on_bad_document,
        max_bad_share=max_bad_share,
        word_starts=word_starts,
        sentences=sentences,
        lengths=lengths,
        dropped=read_drop_list(drop) if drop else None,
        workers=workers or _processes(word_starts or sentences),
        cluster=cluster,
    )
    _report(manifest, output, drop, (lengths or []) if sentences else [])


def _processes(marked: bool) -> int:
    """Threads of one process tokenize faster than processes, which know nothing of each other's
    words, until reading for them is too much for one; marks are found by Python, a core each."""
    cores = available_cores()
    return cores if marked else max(1, cores // THREADS)


def _report(manifest: Manifest, output: str, drop: str | None, pair_lengths: list[int]) -> None:
    for split in ("train", "validation"):
        shards = getattr(manifest, split)
        documents, tokens = sum(s.documents for s in shards), sum(s.tokens for s in shards)
        print(f"{split}: {documents} documents, {tokens} tokens in {len(shards)} shards")
        for n in pair_lengths:
            alone = sum(s.rows[f"alone {n}"] for s in shards)
            print(f"  {alone} of one sentence make no pair in rows of {n} tokens")
    if manifest.bad_documents:
        kinds = by_kind(manifest.bad_kinds)
        print(f"{manifest.bad_documents} documents could not be read: {kinds}", file=sys.stderr)
        for place in manifest.bad_places:
            print(f"  {place}", file=sys.stderr)
    if manifest.dropped:
        print(f"{manifest.dropped} documents were left out, as '{drop}' says")
    print(f"{output}: fingerprint {manifest.fingerprint}")


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, prepare, args, positional=False)
