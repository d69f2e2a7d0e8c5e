"""`prompt`: zero- and few-shot classification with a causal model; nothing is trained."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ptft_lightning.commands.predicted import refuse_over
from ptft_lightning.commands.texts import batches
from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.examples import Columns, Example, read_examples
from ptft_lightning.data.label_names import read_label_names
from ptft_lightning.data.module import say
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.generation.answers import (
    Layout,
    Prompt,
    build_prompt,
    choose_shots,
    score_answers,
)
from ptft_lightning.generation.model import LanguageModel
from ptft_lightning.modules.loading import Precision, load_pretrained
from ptft_lightning.progress import ByteProgress
from ptft_lightning.tasks.base import labels_in_order
from ptft_lightning.tasks.matching_scores import decisions

TOGETHER = 256  # examples among which rows of like length are read together
Normalise = Literal["none", "length", "prior"]
Questions = list[tuple[list[int], list[int]]]


@dataclass
class Prompter:
    """Asks a model for the label of one text after another."""

    model: LanguageModel
    layout: Layout
    shots: list[str]
    answers: dict[str, list[int]]
    """Label -> the ids of its text."""
    normalise: Normalise
    batch_size: int

    def prompt(self, text: str) -> Prompt:
        """With as many shots as leave room for the longest answer."""
        room = self.model.max_length - max(map(len, self.answers.values()))
        return build_prompt(self.layout, self.shots, text, self.model.tokenizer, room)

    def score(self, prompts: list[Prompt]) -> list[list[float]]:
        """For each prompt the score of each label."""
        values = self._likelihoods([prompt.ids for prompt in prompts])
        if self.normalise == "length":
            lengths = [len(ids) for ids in self.answers.values()]
            return [[v / n for v, n in zip(row, lengths, strict=True)] for row in values]
        if self.normalise == "none":
            return values
        kinds = sorted({prompt.shots for prompt in prompts})
        empty = [self._without_text(shots) for shots in kinds]
        priors = dict(zip(kinds, self._likelihoods(empty), strict=True))
        return [
            [v - p for v, p in zip(row, priors[prompt.shots], strict=True)]
            for row, prompt in zip(values, prompts, strict=True)
        ]

    def _without_text(self, shots: int) -> list[int]:
        kept = self.shots[len(self.shots) - shots :]
        room = self.model.max_length
        return build_prompt(self.layout, kept, "", self.model.tokenizer, room).ids

    def _likelihoods(self, prompts: list[list[int]]) -> list[list[float]]:
        questions: Questions = [
            (ids, answer) for ids in prompts for answer in self.answers.values()
        ]
        found = score_answers(self.model, questions, self.batch_size)
        return [[next(found) for _ in self.answers] for _ in prompts]


def prompt(
    init_from: str,
    test: str,
    template: str = "{text} {label}",
    train: str | None = None,
    shots: int = 0,
    names: dict[str, str] | str | None = None,
    text: str = "text",
    label: str = "label",
    header: list[str] | None = None,
    separator: str = r"\n\n",
    normalise: Normalise = "length",
    seed: int = 0,
    output: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: Precision = "32-true",
) -> None:
    """Classify texts by what a causal model finds likely to follow them (Brown et al. 2020).

    Args:
        init_from: A phase-one bundle, run, checkpoint or Hugging Face folder of a causal model.
        test: Labelled file (.jsonl, .csv, .tsv, also .gz) to classify.
        template: What the model reads, {text} and at its end {label}; \\n is a new line.
        train: Labelled file of the examples that are shown.
        shots: How many are shown, as many of each label as can be, by chance and seed.
        names: What the template says for a label: a mapping, or a file whose line n (from 0) is for
            label n; default: the label itself.
        text: The column of texts.
        label: The column of labels.
        header: Names of the columns of a csv or tsv file without a header line.
        separator: What stands between the examples shown.
        normalise: A label's score is its log-probability (none), that by the number of its tokens
            (length), or less that without the text (prior: Holtzman et al. 2021).
        seed: Decides which examples are shown, and in which order.
        output: File with one JSON line a text.
        batch_size: Rows computed at once.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: Of weights and activations.
    """
    layout, columns = _layout(template, separator), Columns(text=text, label=label, names=header)
    if batch_size < 1 or shots < 0:
        raise UserError(f"--batch_size is {batch_size}, --shots {shots}: give 1 and 0 or more")
    if (train is None) != (shots == 0):
        raise UserError("--train and --shots go together: give the file and how many, or neither")
    refuse_over(output, test, train)
    examples = _read(test, columns)
    shown = _read(train, columns) if train is not None else []
    if shots > len(shown):
        raise UserError(f"--shots is {shots}, '{train}' has {len(shown)} examples: give fewer")
    said = {} if names is None else read_label_names(names)
    labels = labels_in_order({e.label or "" for e in [*examples, *shown]} | {*said})
    said = {label: said.get(label, label) for label in labels}
    model = _load(init_from, device, precision)
    chosen = [shown[i] for i in choose_shots([e.label or "" for e in shown], shots, seed)]
    texts = [layout.shot(e.text, said[e.label or ""]) for e in chosen]
    answers = _answers(said, layout, model.tokenizer)
    _report(Prompter(model, layout, texts, answers, normalise, batch_size), examples, output)


def _load(init_from: str, device: str, precision: Precision) -> LanguageModel:
    net, bundle = load_pretrained(init_from, device, precision)
    if not net.backbone.causal:
        raise UserError(
            f"'{init_from}' is no causal model, and says nothing of what follows a text: fill a gap"
            " with model.task Cloze instead"
        )
    return LanguageModel(net.backbone, net.head, bundle.tokenizer)


def _answers(said: dict[str, str], layout: Layout, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """The ids of each label's text; the space before it is its own."""
    space = " " * layout.between.endswith(" ")
    ids = dict(zip(said, tokenizer.encode([space + name for name in said.values()]), strict=True))
    if empty := [label for label, answer in ids.items() if not answer]:
        raise UserError(f"--names: label '{empty[0]}' is said by nothing: give it a text")
    return ids


def _layout(template: str, separator: str) -> Layout:
    template, separator = (s.replace("\\n", "\n") for s in (template, separator))
    before, found, rest = template.partition("{text}")
    between, last, after = rest.partition("{label}")
    if not found or not last or after or "{text}" in between:
        raise UserError(
            f"--template is '{template}': give {{text}} once and {{label}} at its end, as in "
            r"'Review: {text}\nSentiment: {label}'"
        )
    return Layout(before, between, separator)


def _read(path: str, columns: Columns) -> list[Example]:
    examples = read_examples(path, columns, labelled=True)
    if several := next((e for e in examples if e.labels is not None), None):
        raise UserError(f"{several.place}: a list of labels, `prompt` tells one a text")
    return examples


def _report(prompter: Prompter, examples: list[Example], output: str | None) -> None:
    labels, lines, shots = [*prompter.answers], [], len(prompter.shots)
    fewer = cut = 0
    with ByteProgress("prompt", sum(len(e.text.encode()) for e in examples)) as progress:
        for some in batches(iter(examples), TOGETHER):
            prompts = [prompter.prompt(e.text) for e in some]
            fewer += sum(p.shots < shots for p in prompts)
            cut += sum(p.cut > 0 for p in prompts)
            for example, scores in zip(some, prompter.score(prompts), strict=True):
                lines.append(_line(example, labels, scores))
                progress.advance(len(example.text.encode()))
    if fewer:
        say(f"prompt: {fewer} of {len(examples)} texts left no room for all {shots} shots")
    if cut:
        say(f"prompt: {cut} of {len(examples)} texts were cut to fit into the model's length")
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text("".join(_dumped(lines)), encoding="utf-8")
        say(f"prompt: {len(lines)} predictions: {output}")
    gold = [example.label for example in examples]
    common = Counter(gold).most_common(1)[0][1] / len(gold)
    values = decisions(gold, [line["label"] for line in lines])
    counts = {"examples": len(lines), "shots": shots, "fewer_shots": fewer, "cut": cut}
    print(json.dumps({**values, "most_common_label": common, **counts}))


def _line(example: Example, labels: list[str], scores: list[float]) -> dict[str, Any]:
    best = labels[max(range(len(labels)), key=scores.__getitem__)]
    listed = {label: round(score, 6) for label, score in zip(labels, scores, strict=True)}
    return {"text": example.text, "gold": example.label, "label": best, "scores": listed}


def _dumped(lines: list[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, prompt, args, positional=False)
