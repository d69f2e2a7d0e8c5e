"""An n-gram model: what it says of texts, and as a directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.files import write_atomically
from ptft_lightning.ngrams.counts import NONE, Stream, frame, places
from ptft_lightning.ngrams.estimation import Floats, Level

FORMAT = 1
PARTS = ("keys", "logs", "backoff")


@dataclass
class NGramModel:
    """Levels of k-grams over a tokenizer's ids; the begin word is the id after its last."""

    levels: list[Level]
    tokenizer: Tokenizer
    facts: dict[str, Any]
    """Where it comes from: tokens, discounts, store."""

    @property
    def order(self) -> int:
        """Words of the longest k-grams."""
        return len(self.levels)

    @property
    def begin(self) -> int:
        """The word before every document."""
        return self.tokenizer.size

    def logs(self, stream: Stream) -> Floats:
        """ln p of each word of a stream; 0 for the begin words.

        Where the k-gram is unknown: that of the shorter one, and the context's backoff weight.
        """
        words = self.begin + 1
        keys = [level.keys for level in self.levels[1:]]
        found: Floats = np.zeros(len(stream.words))
        before = np.full(len(stream.words), NONE)
        for k, place in enumerate(places(keys, stream, words)):
            level = self.levels[k]
            if k:
                context, known = before >= 0, place >= 0
                found[context] += self.levels[k - 1].backoff[before[context]]
                found[known] = level.logs[place[known]]
            else:
                found = np.asarray(level.logs[place], np.float64)
            before = np.concatenate([[NONE], place[:-1]])
            before[stream.depth == 0] = NONE
        return np.where(stream.depth > 0, found, 0.0)

    def score(self, documents: list[list[int]]) -> list[Floats]:
        """ln p of each token of each document (framed ids), its first included."""
        ends = np.cumsum([len(ids) for ids in documents], dtype=np.int64)
        if not len(ends):
            return []
        flat = np.concatenate([np.asarray(ids, np.int64) for ids in documents])
        stream = frame(flat, ends, self.begin)
        return np.split(self.logs(stream)[stream.depth > 0], ends[:-1])

    def save(self, directory: Path) -> None:
        """Write `ngram.json`, `tokenizer.json` and one array a level and part."""
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(directory)
        for k, level in enumerate(self.levels, start=1):
            for part in PARTS:
                array = getattr(level, part)
                array = array if part == "keys" else array.astype(np.float32)
                np.save(directory / f"{k}.{part}.npy", array)
        facts = {"format": FORMAT, "order": self.order, **self.facts}
        write_atomically(directory / "ngram.json", json.dumps(facts, indent=1).encode())


def load_ngram(place: str, tokenizer: str | None = None) -> NGramModel:
    """A model's directory, or an ARPA file with the tokenizer whose tokens it names.

    Raises:
        UserError: it is not there, or something else.
    """
    path = Path(place)
    if path.is_file():
        from ptft_lightning.ngrams.arpa import read_arpa

        if tokenizer is None:
            raise UserError(f"'{place}' names tokens: give the --tokenizer that has them")
        return read_arpa(path, Tokenizer.load(tokenizer))
    if not (path / "ngram.json").is_file():
        raise UserError(f"no n-gram model in '{place}': make one with `ngram train`")
    facts = json.loads((path / "ngram.json").read_text())
    if facts.pop("format") != FORMAT:
        raise UserError(f"'{place}' is an n-gram model of a newer format: update ptft_lightning")
    levels = [
        Level(*(np.load(path / f"{k}.{part}.npy", mmap_mode="r") for part in PARTS))
        for k in range(1, facts.pop("order") + 1)
    ]
    return NGramModel(levels, Tokenizer.load(path), facts)
