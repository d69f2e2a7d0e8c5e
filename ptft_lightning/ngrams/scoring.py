"""How likely an n-gram model finds texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.ngrams.counts import streams
from ptft_lightning.ngrams.estimation import Floats
from ptft_lightning.ngrams.model import NGramModel

TEXTS = 1000  # scored at once


@dataclass
class Likelihood:
    """Of some documents; the first token of each has no context and does not count."""

    documents: int = 0
    tokens: int = 0
    log_probability: float = 0.0
    """Natural logarithm."""
    text_bytes: int = 0
    measured: bool = True
    """Whether bits-per-byte means something."""

    def values(self) -> dict[str, Any]:
        """What `score` prints."""
        nats = -self.log_probability / max(self.tokens, 1)
        found: dict[str, Any] = {
            "texts": self.documents,
            "tokens": self.tokens,
            "log_probability": self.log_probability,
            "perplexity": math.exp(min(nats, 700)),
        }
        if self.measured:
            bits = -self.log_probability / math.log(2)
            found["bits_per_byte"] = bits / max(self.text_bytes, 1)
        return found


def of_store(model: NGramModel, store: TokenStore) -> Likelihood:
    """Of every document of a split."""
    found = Likelihood(measured=store.manifest.round_trips)
    for stream in streams(store, model.begin):
        counted = stream.depth > 1
        found.log_probability += float(model.logs(stream)[counted].sum())
        found.tokens += int(counted.sum())
    found.documents = sum(shard.documents for shard in store.shards)
    found.text_bytes = sum(shard.text_bytes for shard in store.shards)
    return found


def of_texts(model: NGramModel, texts: list[str]) -> tuple[Likelihood, list[Floats]]:
    """Of texts, with the logarithms of each one's tokens."""
    tokenizer, logs = model.tokenizer, []
    found = Likelihood(measured=tokenizer.round_trips)
    for first in range(0, len(texts), TEXTS):
        some = texts[first : first + TEXTS]
        logs += model.score([tokenizer.frame(ids) for ids in tokenizer.encode(some)])
    found.documents, found.tokens = len(texts), sum(len(own) - 1 for own in logs)
    found.log_probability = math.fsum(float(np.sum(own[1:])) for own in logs)
    found.text_bytes = sum(len(text.encode()) for text in texts)
    return found, logs
