"""`score`: how likely a model finds texts, token by token."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ptft_lightning.commands.predicted import refuse_over
from ptft_lightning.commands.texts import batches, read_documents, texts_in
from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.generation.continuing import shorten
from ptft_lightning.generation.filling import show_token
from ptft_lightning.generation.model import LanguageModel
from ptft_lightning.generation.scoring import Score, score_documents
from ptft_lightning.modules.loading import Precision, load_pretrained
from ptft_lightning.objectives.base import perplexity
from ptft_lightning.progress import ByteProgress

SORTED = 32  # batches of texts among which those of like length are read together


def score(
    init_from: str,
    text: str | None = None,
    files: list[str] | None = None,
    column: str = "text",
    output: str | None = None,
    stride: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: Precision = "32-true",
) -> None:
    """Log-probability, perplexity and bits-per-byte of texts.

    Causal models predict each token from those before it, but not the first of a document. Masked
    models predict each token from all others, itself masked (pseudo-log-likelihood).

    Args:
        init_from: A phase-one bundle, run or checkpoint.
        text: A text, or several as a JSON list.
        files: Text files (.txt, .jsonl, also .gz), paths or URLs.
        column: The text column of .jsonl files.
        output: File with one JSON line a text, each token with its log-probability.
        stride: Texts longer than max_length are read in windows, each begun so many tokens after
            the one before; default: half of max_length.
        batch_size: Rows computed at once.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: Of weights and activations.
    """
    if (text is None) == (files is None):
        raise UserError("what to score? give --text TEXT or --files [FILE, ...], one of them")
    if batch_size < 1:
        raise UserError(f"--batch_size is {batch_size}: give 1 or more")
    refuse_over(output, *(files or []))
    texts = texts_in(text, "text") if text is not None else [*read_documents(files or [], column)]
    if not texts:
        raise UserError(f"nothing to score: no documents in {files}")
    net, bundle = load_pretrained(init_from, device, precision)
    model = LanguageModel(net.backbone, net.head, bundle.tokenizer)
    step = model.max_length // 2 if stride is None else stride
    if not 1 <= step < model.max_length:
        raise UserError(
            f"--stride is {step}: give 1 or more, less than the model's max_length "
            f"{model.max_length}"
        )
    _report(model, texts, step, batch_size, output)


@dataclass
class Sums:
    """Of all texts so far."""

    measured: bool
    """Whether bits-per-byte means something."""
    texts: int = 0
    tokens: int = 0
    windowed: int = 0
    text_bytes: int = 0
    totals: list[float] = field(default_factory=list)

    def add(self, score: Score, text: str) -> dict[str, Any]:
        """Count a text; give its own figures."""
        text_bytes = len(text.encode())
        self.texts += 1
        self.tokens += score.tokens
        self.windowed += score.windows > 1
        self.text_bytes += text_bytes
        self.totals.append(score.total)
        return self._figures(score.tokens, score.total, text_bytes)

    def summary(self) -> dict[str, Any]:
        """Over all texts."""
        return {
            "texts": self.texts,
            **self._figures(self.tokens, math.fsum(self.totals), self.text_bytes),
        }

    def _figures(self, tokens: int, total: float, text_bytes: int) -> dict[str, Any]:
        return {
            "tokens": tokens,
            "log_probability": total,
            "perplexity": perplexity(-total / tokens) if tokens else None,
            "bits_per_byte": (
                -total / math.log(2) / text_bytes if self.measured and text_bytes else None
            ),
        }


def _report(
    model: LanguageModel, texts: list[str], stride: int, batch_size: int, output: str | None
) -> None:
    sums = Sums(model.backbone.causal and model.tokenizer.round_trips)
    total = sum(len(text.encode()) for text in texts)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(ByteProgress("score", total))
        file: IO[str] | None = None
        if output is not None:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(output, "w", encoding="utf-8"))
        else:
            print(_line("tokens", "log-prob", "perplexity", "bits/byte", "text"))
        for batch, scores in _scored(model, texts, stride, batch_size):
            for text, one in zip(batch, scores, strict=True):
                figures = sums.add(one, text)
                if file is not None:
                    file.write(_record(model, text, one, figures) + "\n")
                else:
                    print(_shown(figures, shorten(text)))
                progress.advance(len(text.encode()))
    _sum_up(model, sums, stride, output)


def _scored(
    model: LanguageModel, texts: list[str], stride: int, batch_size: int
) -> Iterator[tuple[list[str], list[Score]]]:
    for batch in batches(iter(texts), batch_size * SORTED):
        documents = [model.tokenizer.frame(ids) for ids in model.tokenizer.encode(batch)]
        yield batch, score_documents(model, documents, stride, batch_size)


def _record(model: LanguageModel, text: str, one: Score, figures: dict[str, Any]) -> str:
    tokens = [show_token(model.tokenizer, i) for i in one.ids]
    record = {
        **{"text": text, **figures, "windows": one.windows, "token": tokens},
        "token_log_probability": one.log_probabilities,
    }
    return json.dumps(record, ensure_ascii=False)


def _line(*cells: str) -> str:
    return " ".join(f"{cell:>11}" for cell in cells[:-1]) + f"  {cells[-1]}"


def _shown(figures: dict[str, Any], name: str) -> str:
    values = (figures[key] for key in ("log_probability", "perplexity", "bits_per_byte"))
    return _line(str(figures["tokens"]), *("-" if v is None else f"{v:.4f}" for v in values), name)


def _sum_up(model: LanguageModel, sums: Sums, stride: int, output: str | None) -> None:
    if output is not None:
        print(json.dumps(sums.summary()))
        say(f"score: {sums.texts} texts: {output}")
    else:
        print(_shown(sums.summary(), f"all {sums.texts} texts"))
    if model.backbone.causal:
        say("score: the first token of each document is given, not predicted")
    else:
        say("score: pseudo-log-likelihood: each token masked once, all others given")
    if sums.windowed:
        say(
            f"score: {sums.windowed} texts longer than max_length {model.max_length} were read in "
            f"windows, one every {stride} tokens"
        )
    if not sums.measured:
        why = "the tokenizer does not give the text back"
        if not model.backbone.causal:
            why = "a masked model gives no likelihood of the text"
        say(f"score: no bits-per-byte: {why}")


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, score, args, positional=False)
