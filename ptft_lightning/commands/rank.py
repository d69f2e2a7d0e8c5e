"""`rank`: the passages whose vectors are nearest to those of queries."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ptft_lightning.commands.predicted import refuse_over
from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.examples import Columns, read_records
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError

ROWS = 1024  # queries compared with all passages at once
Vectors = npt.NDArray[np.float32]


def nearest(queries: Vectors, passages: Vectors, top: int) -> tuple[npt.NDArray[np.int64], Vectors]:
    """(Q, top) numbers of passages by falling cosine, the first of equals first, and the cosines.

    Args:
        queries: (Q, dim).
        passages: (P, dim).
        top: At most P.
    """
    queries, passages = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, passages))
    numbers, cosines = [], []
    for start in range(0, len(queries), ROWS):
        similar = queries[start : start + ROWS] @ passages.T
        best = np.argsort(-similar, axis=1, kind="stable")[:, :top]
        numbers.append(best)
        cosines.append(np.take_along_axis(similar, best, 1))
    return np.concatenate(numbers), np.concatenate(cosines)


def rank(queries: str, passages: str, top: int = 10, output: str | None = None) -> None:
    """For each query the passages whose vectors point most nearly its way.

    Both files hold what `predict` wrote for single texts with a run of Matching: lines of {"text":
    .., "embedding": [..]}.

    Args:
        queries: File of queries (.jsonl).
        passages: File of passages (.jsonl).
        top: How many passages a query gets.
        output: File with one JSON line a query; default: they are printed.
    """
    refuse_over(output, queries, passages)
    (asked, at), (found, places) = _read(queries), _read(passages)
    if top < 1:
        raise UserError(f"--top is {top}: give 1 or more")
    if at.shape[1] != places.shape[1]:
        raise UserError(
            f"vectors of '{queries}' have {at.shape[1]} numbers, those of '{passages}' "
            f"{places.shape[1]}: predict both with the same model"
        )
    numbers, cosines = nearest(at, places, min(top, len(found)))
    if output is None:
        _write(sys.stdout, asked, found, numbers, cosines)
        return
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w", encoding="utf-8") as stream:
        _write(stream, asked, found, numbers, cosines)
    say(f"rank: {len(asked)} queries among {len(found)} passages: {output}")


def _read(path: str) -> tuple[list[str], Vectors]:
    texts, vectors = [], list[Any]()
    for place, record in read_records(path, Columns()):
        vector = record.get("embedding")
        numbers = isinstance(vector, list) and all(isinstance(x, int | float) for x in vector)
        if not vector or not numbers or "text" not in record:
            raise UserError(
                f"{place}: no text with an embedding; give what `predict` wrote for single texts "
                "with a run of Matching"
            )
        if vectors and len(vector) != len(vectors[0]):
            raise UserError(f"{place}: {len(vector)} numbers, those before had {len(vectors[0])}")
        texts.append(str(record["text"]))
        vectors.append(vector)
    if not texts:
        raise UserError(f"'{path}' holds no texts")
    return texts, np.array(vectors, np.float32)


def _write(
    stream: IO[str], asked: list[str], found: list[str], numbers: Any, cosines: Vectors
) -> None:
    for query, best, values in zip(asked, numbers.tolist(), cosines.tolist(), strict=True):
        ranked = [
            {"number": n, "cosine": round(value, 6), "text": found[n]}
            for n, value in zip(best, values, strict=True)
        ]
        stream.write(json.dumps({"query": query, "passages": ranked}, ensure_ascii=False) + "\n")


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, rank, args, positional=False)
