"""N-gram models as ARPA files, which other tools read and write.

Words are the tokenizer's token names; `<s>` is the begin word, `</s>` what ends every document.
Logarithms are to base 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.ngrams.counts import Numbers, find
from ptft_lightning.ngrams.estimation import Level
from ptft_lightning.ngrams.model import NGramModel

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
NEVER = -99.0  # log10 p of what is never predicted
LINES = 100_000


def names_of(tokenizer: Tokenizer) -> list[str]:
    """One name without white space for each id, and `<s>` for the begin word."""
    names = []
    for i in range(tokenizer.size):
        name = tokenizer.raw.id_to_token(i)
        odd = not name or name in (BEGIN, END) or any(c.isspace() for c in name)
        names.append(f"<id:{i}>" if odd else str(name))
    if tokenizer.end is not None:
        names[tokenizer.end] = END
    return [*names, BEGIN]


def write_arpa(model: NGramModel, file: Path) -> None:
    """Write all k-grams, shortest first, as text."""
    names = np.array(names_of(model.tokenizer), dtype=object)
    words = model.begin + 1
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8") as out:
        out.write("\\data\\\n")
        unended = model.tokenizer.end is None  # other tools want the word all the same
        for k, level in enumerate(model.levels, start=1):
            out.write(f"ngram {k}={len(level.keys) + (unended and k == 1)}\n")
        for k, level in enumerate(model.levels, start=1):
            out.write(f"\n\\{k}-grams:\n")
            if unended and k == 1:
                out.write(f"{NEVER}\t{END}\t0\n")
            for first in range(0, len(level.keys), LINES):
                at = np.arange(first, min(first + LINES, len(level.keys)))
                _write_lines(out, model, k, at, names, words)
        out.write("\n\\end\\\n")


def _write_lines(
    out: IO[str], model: NGramModel, k: int, at: Numbers, names: np.ndarray, words: int
) -> None:
    level, parts, place = model.levels[k - 1], [], at
    for below in range(k - 1, 0, -1):
        keys = model.levels[below].keys[place]
        parts.append(names[keys % words])
        place = keys // words
    parts.append(names[place])
    texts = [" ".join(reversed(row)) for row in zip(*parts, strict=True)]
    logs = np.maximum(np.asarray(level.logs[at], np.float64) / math.log(10), NEVER)
    backoff = np.asarray(level.backoff[at], np.float64) / math.log(10)
    last = k == model.order
    for text, log, back in zip(texts, logs.tolist(), backoff.tolist(), strict=True):
        out.write(f"{log:.7g}\t{text}\n" if last else f"{log:.7g}\t{text}\t{back:.7g}\n")


def read_arpa(file: Path, tokenizer: Tokenizer) -> NGramModel:
    """Read a model whose words are the tokenizer's token names.

    Raises:
        UserError: no ARPA file, or words that the tokenizer does not have, with their place.
    """
    ids = {name: i for i, name in enumerate(names_of(tokenizer))}
    words = tokenizer.size + 1
    levels: list[Level] = []
    rows: list[tuple[list[int], float, float]] = []
    k = 0
    for number, line in _lines(file):
        if line.startswith("\\"):
            if k:
                levels.append(_level(levels, rows, words))
            rows, k = [], k + 1
            if line == "\\end\\":
                break
            continue
        fields = line.split("\t")
        if fields[1:2] in ([END], [UNKNOWN]) and fields[1] not in ids:
            continue  # other tools have words that the tokenizer may not have
        try:
            grams = [ids[name] for name in fields[1].split(" ")]
            rows.append((grams, float(fields[0]), float(fields[2]) if len(fields) > 2 else 0.0))
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(
                f"'{file}' line {number}: {str(error) or 'no n-gram'} is not of this tokenizer, or "
                "the line is no n-gram of an ARPA file"
            ) from error
    else:
        raise UserError(f"'{file}' is not a whole ARPA file: it has no \\end\\")
    return NGramModel(levels, tokenizer, {"arpa": str(file)})


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines from the first section on, blank ones left out."""
    began = False
    with open(file, encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            line = line.rstrip("\n")
            began = began or line.startswith("\\1-grams")
            if began and line:
                yield number, line


def _level(levels: list[Level], rows: list[tuple[list[int], float, float]], words: int) -> Level:
    grams = np.array([row[0] for row in rows], np.int64).reshape(len(rows), len(levels) + 1)
    logs, backoff = (np.array([row[i] for row in rows]) * math.log(10) for i in (1, 2))
    if not levels:
        whole = np.full((2, words), [[-np.inf], [0.0]])
        whole[0, grams[:, 0]], whole[1, grams[:, 0]] = logs, backoff
        whole[0, whole[0] <= NEVER * math.log(10)] = -np.inf
        return Level(np.arange(words), whole[0], whole[1])
    place = grams[:, 0]
    for below, level in enumerate(levels[1:], start=1):
        place = find(level.keys, place * words + grams[:, below])
    keys = place * words + grams[:, -1]
    order = np.argsort(keys)
    return Level(keys[order], logs[order], backoff[order])
