"""`ngram train|score`: n-gram language models of token stores."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np

from ptft_lightning.commands.texts import read_documents, texts_in
from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.module import say
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.ngrams.counts import streams
from ptft_lightning.ngrams.estimation import ORDERS, estimate
from ptft_lightning.ngrams.model import NGramModel, load_ngram
from ptft_lightning.ngrams.scoring import Likelihood, of_store, of_texts


def train(
    store: str,
    tokenizer: str,
    output: str,
    order: int = 3,
    max_tokens: int | None = None,
    arpa: str | None = None,
) -> None:
    """Estimate an n-gram model of a token store's training split (modified Kneser-Ney).

    Args:
        store: Directory or URL of the token store.
        tokenizer: The tokenizer.json it was made with, or its directory.
        output: Directory of the model.
        order: Tokens of the longest n-grams, 1 to 5.
        max_tokens: Of the first shards that hold so many tokens alone.
        arpa: Write the model to this ARPA file, too.
    """
    if order not in ORDERS:
        raise UserError(f"--order is {order}: give 1 to {ORDERS[-1]}")
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"--max_tokens is {max_tokens}: give 1 or more")
    if (Path(output) / "ngram.json").exists():
        raise UserError(f"--output '{output}' already holds an n-gram model: give another")
    known, opened = Tokenizer.load(tokenizer), TokenStore(store, "train")
    if opened.manifest.tokenizer != known.fingerprint:
        raise UserError(f"--tokenizer '{tokenizer}' is not the one that made '{store}'")
    if not opened.shards:
        raise UserError(f"the token store '{store}' holds no training documents")
    model = fit_ngram(opened, known, order, max_tokens)
    model.save(Path(output))
    for k, level in enumerate(model.levels, start=1):
        given = ", ".join(f"{d:.3f}" for d in model.facts["discounts"][k - 1])
        print(f"{k}-grams: {len(level.keys)}, discounts {given}")
    print(f"{output}: order {order}, {model.facts['tokens']} tokens")
    if arpa is not None:
        from ptft_lightning.ngrams.arpa import write_arpa

        write_arpa(model, Path(arpa))
        print(f"{arpa}")


def fit_ngram(
    store: TokenStore, tokenizer: Tokenizer, order: int, max_tokens: int | None
) -> NGramModel:
    """A model of the training documents, or of the first of them."""
    found = estimate(lambda: streams(store, tokenizer.size, max_tokens), tokenizer.size, order)
    if found.guessed:
        orders = ", ".join(map(str, found.guessed))
        say(f"too little text to find the discounts of order {orders}: usual ones are taken")
    facts = {
        "tokens": found.tokens,
        "discounts": [list(given) for given in found.discounts],
        "store": store.place,
        "fingerprint": store.manifest.fingerprint,
    }
    return NGramModel(found.levels, tokenizer, facts)


def score(
    model: str,
    store: str | None = None,
    split: str = "validation",
    text: str | None = None,
    files: list[str] | None = None,
    column: str = "text",
    tokenizer: str | None = None,
    output: str | None = None,
) -> None:
    """Log-probability, perplexity and bits-per-byte of texts or of a token store's split.

    As `score` does for neural models, the first token of a document is not counted.

    Args:
        model: An n-gram model's directory, or an ARPA file.
        store: A token store to score.
        split: train or validation, of the store.
        text: A text, or several as a JSON list.
        files: Text files (.txt, .jsonl, also .gz), paths or URLs.
        column: The text column of .jsonl files.
        tokenizer: For an ARPA file: the tokenizer whose tokens it names.
        output: File with one JSON line a text, each token with its log-probability.
    """
    if [store is None, text is None, files is None].count(False) != 1:
        raise UserError("what to score? give --store, --text or --files, one of them")
    loaded = load_ngram(model, tokenizer)
    if store is not None:
        if split not in ("train", "validation"):
            raise UserError(f"--split is '{split}': give train or validation")
        opened = TokenStore(store, split)
        if opened.manifest.tokenizer != loaded.tokenizer.fingerprint:
            raise UserError(f"the token store '{store}' was made with another tokenizer")
        if not any(shard.documents for shard in opened.shards):
            raise UserError(
                f"the token store '{store}' has no documents in its {split} split: give --split "
                "train, or prepare it with a --validation_share"
            )
        if output is not None:
            raise UserError("--output has a line a text, --store no texts: give --text or --files")
        _tell(of_store(loaded, opened))
        return
    texts = texts_in(text, "text") if text is not None else [*read_documents(files or [], column)]
    found, logs = of_texts(loaded, texts)
    if output is not None:
        _write(Path(output), loaded, texts, logs)
    _tell(found)


def _tell(found: Likelihood) -> None:
    print(json.dumps(found.values()))


def _write(file: Path, model: NGramModel, texts: list[str], logs: list[np.ndarray]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8") as out:
        for text, own in zip(texts, logs, strict=True):
            total = math.fsum(own[1:].tolist())
            line = {"text": text, "log_probability": total, "tokens": own.tolist()}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(f"{len(texts)} texts: {file}", file=sys.stderr)


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, [train, score], args, positional=False)
