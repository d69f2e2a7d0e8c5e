"""`select`: the documents of a large text that are most like a small one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from ptft_lightning.commands.texts import batches, read_documents
from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.documents import text_size
from ptft_lightning.data.module import say
from ptft_lightning.data.sources import expand_sources
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.ngrams.estimation import ORDERS, Floats
from ptft_lightning.ngrams.selection import HashedImportance, MooreLewis, Weigher, gumbel
from ptft_lightning.progress import ByteProgress

Method = Literal["moore_lewis", "dsir", "random"]
BATCH = 512  # documents weighed at once
TARGET_BYTES = 64 * 2**20  # of the target and of the general text that models are made of
LEAST = 100  # documents that stand for the general text where the target is very small
SHOWN = 3


def select(
    files: list[str],
    tokenizer: str,
    output: str,
    target: list[str] | None = None,
    method: Method = "moore_lewis",
    documents: int | None = None,
    share: float | None = None,
    column: str = "text",
    target_column: str | None = None,
    order: int = 2,
    seed: int = 0,
) -> None:
    """Write the documents most like a target, in the order of the files, as .jsonl.

    Args:
        files: The large text: paths, globs, folders or URLs, as for prepare.
        tokenizer: A tokenizer.json or its directory; documents are compared by its tokens.
        output: The .jsonl file: text and weight of each chosen document.
        target: The small text to be like; not for random.
        method: moore_lewis takes the highest differences of cross-entropy under n-gram models;
            dsir samples by importance weights of hashed n-grams; random is the baseline.
        documents: How many to take.
        share: Or which share of all text, in bytes.
        column: The text column, of all files but .txt.
        target_column: That of the target; default: the same.
        order: Of the n-gram models of moore_lewis.
        seed: Of what is random.
    """
    if (documents is None) == (share is None):
        raise UserError("how much to select? give --documents N or --share S, one of them")
    if (documents is not None and documents < 1) or (share is not None and not 0 < share <= 1):
        raise UserError(f"--documents {documents}, --share {share}: give 1 or more, or up to 1")
    if (target is None) != (method == "random"):
        needs = "leave --target out" if method == "random" else "give --target"
        raise UserError(f"--method {method}: {needs}")
    if order not in ORDERS:
        raise UserError(f"--order is {order}: give 1 to {ORDERS[-1]}")
    if Path(output).exists():
        raise UserError(f"--output '{output}' is there already: give another file, or remove it")
    known, sources = Tokenizer.load(tokenizer), expand_sources(files)
    sizes = [text_size(file, column) for file in sources]
    weigher = None
    if target is not None:
        own = list(_documents(expand_sources(target), target_column or column))
        most = TARGET_BYTES if method == "dsir" else sum(len(text.encode()) for text in own)
        general = list(_sample(sources, most / max(sum(sizes), 1), column, seed))
        if not general:  # a target much smaller than a document
            general = list(islice(_sample(sources, 1.0, column, seed), LEAST))
        weigher = _weigher(method, known, own, general, order)
    weights, lengths = _weigh_all(weigher, known, sources, sizes, column, method, seed)
    best = np.argsort(-weights, kind="stable")
    count = documents or 0
    if share is not None:
        count = 1 + int(np.searchsorted(np.cumsum(lengths[best]), share * lengths.sum()))
    if documents is not None and documents > len(weights):
        raise UserError(f"--documents is {documents}: there are {len(weights)}")
    chosen = np.zeros(len(weights), np.bool_)
    chosen[best[:count]] = True
    _write(Path(output), sources, column, weights, chosen)


def _weigher(
    method: Method, tokenizer: Tokenizer, target: list[str], general: list[str], order: int
) -> Weigher:
    own, other = (_encode(tokenizer, iter(texts)) for texts in (target, general))
    return (
        HashedImportance(own, other)
        if method == "dsir"
        else MooreLewis(own, other, tokenizer, order)
    )


def _documents(files: list[str], column: str) -> Iterator[str]:
    """The first documents, up to `TARGET_BYTES`."""
    taken = 0
    for text in read_documents(files, column):
        yield text
        taken += len(text.encode())
        if taken >= TARGET_BYTES:
            say(f"the first {taken / 1e6:.0f} MB stand for all of {', '.join(files[:SHOWN])}")
            return


def _sample(files: list[str], share: float, column: str, seed: int) -> Iterator[str]:
    """About a share of the documents, from all over the files, by hash of their text."""
    for text in read_documents(files, column, told=False):
        digest = hashlib.blake2b(text.encode(), digest_size=8, salt=str(seed).encode()[:16])
        if int.from_bytes(digest.digest(), "big") < share * 2**64:
            yield text


def _encode(tokenizer: Tokenizer, texts: Iterator[str]) -> list[list[int]]:
    return [
        tokenizer.frame(ids) for some in batches(texts, BATCH) for ids in tokenizer.encode(some)
    ]


def _weigh_all(
    weigher: Weigher | None,
    tokenizer: Tokenizer,
    files: list[str],
    sizes: list[int],
    column: str,
    method: Method,
    seed: int,
) -> tuple[Floats, Floats]:
    """Weight and bytes of each document, in the order of the files."""
    found: list[Floats] = []
    lengths: list[int] = []
    with ByteProgress("select", sum(sizes)) as progress:
        for some in batches(read_documents(files, column), BATCH):
            weights = np.zeros(len(some))
            if weigher is not None:
                weights = weigher.weigh(_encode(tokenizer, iter(some)))
            if method != "moore_lewis":
                weights = weights + gumbel(seed, some)
            found.append(weights)
            lengths += [len(text.encode()) for text in some]
            progress.advance(sum(lengths[-len(some) :]))
    return np.concatenate([np.zeros(0), *found]), np.array(lengths, np.float64)


def _write(
    output: Path, files: list[str], column: str, weights: Floats, chosen: np.ndarray
) -> None:
    """The chosen documents, whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.tmp")
    every = read_documents(files, column, told=False)
    with open(temporary, "w", encoding="utf-8") as out:
        for text, weight, take in zip(every, weights.tolist(), chosen.tolist(), strict=True):
            if take:
                line = {"text": text, "weight": round(weight, 4)}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
    temporary.replace(output)
    least = float(weights[chosen].min())
    print(f"{output}: {int(chosen.sum())} of {len(weights)} documents, weights from {least:.3f}")


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, select, args, positional=False)
