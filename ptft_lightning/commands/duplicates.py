"""`duplicates`: which documents repeat an earlier one, for `prepare --drop`."""

from __future__ import annotations

import sys

from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.bad_documents import MAX_BAD_SHARE, OnBadDocument, check_limit
from ptft_lightning.data.decoding import Encoding
from ptft_lightning.data.documents import Reading
from ptft_lightning.data.duplicates import find_duplicates
from ptft_lightning.data.plan import UNIT_BYTES
from ptft_lightning.data.workers import available_cores, check_workers


def duplicates(
    files: list[str],
    output: str,
    column: str = "text",
    encoding: Encoding = "utf-8",
    on_bad_document: OnBadDocument = "skip",
    max_bad_share: float = MAX_BAD_SHARE,
    unit_bytes: int = UNIT_BYTES,
    workers: int | None = None,
    cluster: str | None = None,
) -> None:
    """List the documents that repeat an earlier one, for `prepare --drop`. The first one, in the
    order of the files, is kept; white space around a text does not count.

    Args:
        files: Paths, globs, folders or URLs of text, or hub data sets, as `prepare` takes them.
        output: The list, a .jsonl file: each line names a document and the one it repeats.
        column: The text column, of all files but .txt.
        encoding: Of text files; a byte order mark is dropped.
        on_bad_document: Count documents that cannot be read and leave them out, or stop at one.
        max_bad_share: Refuse a corpus of which a larger share cannot be read.
        unit_bytes: Bytes of text that a process reads at a time.
        workers: Processes; default: one for each core.
        cluster: Work on the nodes of this Ray cluster instead (see `prepare`).
    """
    check_limit(max_bad_share)
    check_workers(workers, cluster, unit_bytes)
    found = find_duplicates(
        files,
        output,
        Reading(column, encoding),
        on_bad_document,
        max_bad_share,
        unit_bytes,
        workers or available_cores(),
        cluster,
    )
    repeats = found.repeated.shape[1]
    print(f"{found.documents} documents, {repeats} repeat an earlier one: {output}")
    if found.bad.count:
        print(found.bad.summary(), file=sys.stderr)


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, duplicates, args, positional=False)
