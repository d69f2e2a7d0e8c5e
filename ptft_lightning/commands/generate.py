"""`generate`: go on with prompts (causal models) or fill their masks (masked models)."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from jsonargparse import set_parsing_settings

from ptft_lightning.commands.predicted import refuse_over
from ptft_lightning.commands.texts import batches, read_texts, texts_in
from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.generation.beams import search_beams
from ptft_lightning.generation.continuing import continue_prompts, encode_prompt
from ptft_lightning.generation.filling import encode_masked, fill_masks, mask_name, show_token
from ptft_lightning.generation.growth import Limits, TextStream
from ptft_lightning.generation.model import LanguageModel
from ptft_lightning.generation.sampling import Sampling, uniform_numbers
from ptft_lightning.modules.loading import Precision, load_pretrained

NEWS_EVERY_S = 10.0
Record = dict[str, Any]


class Prompt(NamedTuple):
    """A text to go on with."""

    number: int
    text: str
    ids: list[int]


@dataclass(frozen=True, kw_only=True)
class Generate(Sampling):
    """Go on with prompts (causal models), or fill the masks in them (masked models)."""

    init_from: str
    """A phase-one bundle, run or checkpoint."""
    prompt: str | None = None
    """A text, or several as a JSON list; for masked models with masks, such as [MASK]."""
    prompts: str | None = None
    """A file of prompts: .txt with one a line, or .jsonl."""
    column: str = "text"
    """The text column of a .jsonl file."""
    output: str | None = None
    """File for the results (.jsonl); default: they are printed."""
    max_new_tokens: int = 100
    """Where a continuation ends at the latest."""
    stop: str | None = None
    """End before this text; several as a JSON list."""
    num_samples: int = 1
    """Continuations of each prompt."""
    beams: int = 1
    """Above 1: search for the likeliest continuations, keeping so many at each token."""
    length_penalty: float = 1.0
    """Beams are ranked by log-probability / tokens ** this."""
    fills: int = 5
    """Tokens shown for each mask."""
    seed: int = 0
    """Decides the draws; those of a prompt depend on its number alone."""
    batch_size: int = 16
    """Prompts computed at once."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "32-true"
    """Of weights and activations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_new_tokens", "num_samples", "beams", "fills", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}: give 1 or more")
        if self.stop is not None and "" in texts_in(self.stop, "stop"):
            raise UserError("--stop is empty: give the text before which to end")
        if self.beams > 1:
            if self.temperature or self.stop is not None or self.repetition_penalty != 1:
                raise UserError(
                    "--beams searches for the likeliest text: leave out --temperature, --stop and "
                    "--repetition_penalty"
                )
            if self.num_samples > self.beams:
                raise UserError(
                    f"--num_samples is {self.num_samples}, more than --beams {self.beams}: raise "
                    "--beams"
                )
        elif self.num_samples > 1 and not self.temperature:
            raise UserError(
                f"--num_samples is {self.num_samples}, and all would be the likeliest text: give a "
                "--temperature"
            )


def prompts_of(options: Generate) -> list[str]:
    """The prompts, in order."""
    if (options.prompt is None) == (options.prompts is None):
        raise UserError("what to go on with? give --prompt TEXT or --prompts FILE, one of them")
    if options.prompt is not None:
        return texts_in(options.prompt, "prompt")
    file = str(options.prompts)
    if not (texts := [*read_texts(file, options.column)]):
        raise UserError(f"'{file}' holds no prompts")
    return texts


class Results:
    """Where records go: a .jsonl file, or standard output as text."""

    def __init__(self, file: IO[str] | None, several: bool) -> None:
        self.file, self.several = file, several
        self.cut = 0

    def write(self, record: Record, shown: str) -> None:
        """One result."""
        self.cut += record.get("finish") == "max_length"
        if self.file is not None:
            self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.file.flush()
            return
        if self.several:
            sample = f", sample {record['sample']}" if "sample" in record else ""
            print(f"--- prompt {record['number']}{sample}")
        print(shown)


def fill(model: LanguageModel, batch: list[Prompt], top: int, results: Results) -> None:
    """Masked models: the likeliest tokens of each mask."""
    tokenizer = model.tokenizer
    filled = fill_masks(model, [prompt.ids for prompt in batch], top)
    for prompt, found in zip(batch, filled, strict=True):
        masks = [
            [{"token": show_token(tokenizer, token), "probability": p} for token, p in fills]
            for fills in found.fills
        ]
        record = {"number": prompt.number, "prompt": prompt.text}
        lines = [
            f"{mask_name(tokenizer)} {i}: "
            + ", ".join(f"{f['token']!r} {f['probability']:.4f}" for f in fills)
            for i, fills in enumerate(masks, 1)
        ]
        shown = "\n".join([*lines, found.text])
        results.write(record | {"text": found.text, "masks": masks}, shown)


def search(model: LanguageModel, batch: list[Prompt], options: Generate, results: Results) -> None:
    """The likeliest continuations."""
    most = options.max_new_tokens
    found = search_beams(
        model, [prompt.ids for prompt in batch], options.beams, most, options.length_penalty
    )
    for prompt, best in zip(batch, found, strict=True):
        for sample, one in enumerate(best[: options.num_samples], 1):
            after = TextStream(model.tokenizer, prompt.ids).push(one.ids, last=True)
            cut = "max_new_tokens" if len(one.ids) == most else "max_length"
            record = {
                **{"number": prompt.number, "prompt": prompt.text, "sample": sample},
                **{"text": after, "tokens": len(one.ids), "finish": "end" if one.ended else cut},
                "score": one.score,
            }
            results.write(record, prompt.text + after)


def go_on(model: LanguageModel, batch: list[Prompt], options: Generate, results: Results) -> None:
    """Continuations token by token; a single one is printed as it comes."""
    stop = () if options.stop is None else tuple(texts_in(options.stop, "stop"))
    limits = Limits(options.max_new_tokens, stop)
    live = results.file is None and not results.several
    if live:
        say_now(batch[0].text)
    draws = [(prompt, i) for prompt in batch for i in range(1, options.num_samples + 1)]
    for some in batches(iter(draws), options.batch_size):
        numbers = [(prompt.number, sample) for prompt, sample in some]
        uniform = uniform_numbers(options.seed, numbers, limits.max_new_tokens)
        prompts = [prompt.ids for prompt, _ in some]
        listen = say_now if live else None
        found = continue_prompts(model, prompts, options, limits, uniform, listen)
        for (prompt, sample), one in zip(some, found, strict=True):
            record = {
                **{"number": prompt.number, "prompt": prompt.text, "sample": sample},
                **{"text": one.text, "tokens": len(one.ids), "finish": one.finish},
            }
            results.write(record, "" if live else prompt.text + one.text)


def say_now(text: str) -> None:
    """Print a part of a line at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def generate(options: Generate) -> None:
    """Load the model, look at all prompts, then work through them."""
    refuse_over(options.output, options.prompts)
    texts = prompts_of(options)
    net, bundle = load_pretrained(options.init_from, options.device, options.precision)
    model = LanguageModel(net.backbone, net.head, bundle.tokenizer)
    encode = encode_prompt if model.backbone.causal else encode_masked
    prompts = [Prompt(n, text, encode(model, text)) for n, text in enumerate(texts, 1)]
    if options.output is None:
        results = Results(None, len(prompts) * options.num_samples > 1)
        work(model, prompts, options, results)
    else:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        with open(options.output, "w", encoding="utf-8") as file:
            work(model, prompts, options, results := Results(file, True))
        say(f"generate: {len(prompts)} prompts: {options.output}")
    if results.cut:
        say(f"generate: {results.cut} stopped at the model's max_length {model.max_length}")


def work(model: LanguageModel, prompts: list[Prompt], options: Generate, results: Results) -> None:
    """All prompts in their order, a batch at a time; results come as batches are done."""
    spoken = time.monotonic()
    for batch in batches(iter(prompts), options.batch_size):
        if not model.backbone.causal:
            fill(model, batch, options.fills, results)
        elif options.beams > 1:
            search(model, batch, options, results)
        else:
            go_on(model, batch, options, results)
        if time.monotonic() - spoken > NEWS_EVERY_S:
            spoken = time.monotonic()
            say(f"generate: {batch[-1].number} of {len(prompts)} prompts")


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    generate(run_tool(command, Generate, args, positional=False))
