"""What a model in training makes of fixed prompts; knows no trainer and no files."""

from __future__ import annotations

import numpy as np

from ptft_lightning.data.row_batches import RowMaker
from ptft_lightning.data.rows import Rows
from ptft_lightning.generation.continuing import continue_prompts, encode_prompt
from ptft_lightning.generation.filling import fill_masks, show_masked
from ptft_lightning.generation.growth import Limits
from ptft_lightning.generation.model import LanguageModel
from ptft_lightning.generation.sampling import Sampling

PROMPT_TOKENS = 16
Line = dict[str, str]


def continued(
    model: LanguageModel, rows: Rows, count: int, texts: list[str] | None, new_tokens: int
) -> list[Line]:
    """Likeliest continuations of texts, or of the beginnings of the documents of `rows`."""
    if texts is None:
        prompts = beginnings(rows, count, model.max_length)
    else:
        prompts = [encode_prompt(model, text) for text in texts]
    if not prompts:
        return []
    found = continue_prompts(model, prompts, Sampling(), Limits(new_tokens))
    return [
        {"kind": "continuation", "prompt": model.tokenizer.decode(prompt), "text": one.text}
        for prompt, one in zip(prompts, found, strict=True)
    ]


def filled(
    model: LanguageModel, rows: Rows, count: int, objective: RowMaker, seed: int
) -> list[Line]:
    """The first rows, masked as for validation, their masks filled.

    A row may pack several documents: its first one is shown (of pairs, without its segments).
    """
    numbers = np.arange(min(count, len(rows)), dtype=np.int64)
    stream, documents = rows.read(numbers)
    tokens, _ = objective.make(stream, documents, numbers, seed, model.tokenizer)
    prompts = [row[own == 1].tolist() for row, own in zip(tokens, documents[:, :-1], strict=True)]
    if not prompts:
        return []
    return [
        {"kind": "filled", "prompt": show_masked(model.tokenizer, prompt), "text": one.text}
        for prompt, one in zip(prompts, fill_masks(model, prompts, 1), strict=True)
    ]


def beginnings(rows: Rows, count: int, max_length: int) -> list[list[int]]:
    """The first tokens of the first documents, not more than half of a document."""
    store = rows.store
    prompts: list[list[int]] = []
    for shard in range(len(store.shards)):
        tokens, ends = store.tokens(shard), np.asarray(store.ends(shard))
        for start, stop in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            if len(prompts) == count:
                return prompts
            length = min(PROMPT_TOKENS, max(1, (stop - start) // 2), max_length - 1)
            prompts.append(tokens[start : start + length].tolist())
    return prompts
