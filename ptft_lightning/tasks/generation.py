"""Text generation: an answer to a source or a conversation, for translation, summaries, dialogue.

A causal model goes on from the prompt; the loss is that of what an assistant wrote.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from torch import Tensor

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.conversations import (
    USER,
    Conversation,
    Format,
    Layout,
    Turn,
    conversation,
    read_conversations,
)
from ptft_lightning.data.examples import Columns, Encoded, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.unusable import unusable
from ptft_lightning.errors import UserError
from ptft_lightning.generation.growth import TextStream
from ptft_lightning.generation.model import LanguageModel
from ptft_lightning.tasks.base import Arrays, Scored, Task, TaskHead
from ptft_lightning.tasks.chat_template import ChatTemplate, read_template
from ptft_lightning.tasks.decoding import Decoding, answer_prompts
from ptft_lightning.tasks.prompt_cuts import Cut, fit
from ptft_lightning.tasks.text_scores import (
    METRICS,
    NAMES,
    BleuTokenizer,
    Metric,
    check_libraries,
    text_scores,
)
from ptft_lightning.tasks.vocabulary_head import VocabularyHead
from ptft_lightning.terms import Output

TALKS: tuple[Format, ...] = ("sharegpt", "messages", "turns")  # with several answers each
NO_TOKEN, NO_ANSWER = -1, -2  # in scores: after an answer's last token; where none was written


class Generation(Task):
    """An answer to a text or a conversation, written by a causal model.

    Formats of files: `columns` (data.columns.text is the source, .pair or else .label the target;
    .jsonl, .csv, .tsv), `parallel` (line n of a file of targets belongs to line n of the file of
    sources), `alpaca` ({instruction, input, output}), `sharegpt` ({conversations: [{from,
    value}]}), `messages` ({messages: [{role, content}]}) and `turns` ({turns: [text, ...]}, two
    people of whom the last one is the assistant; in a file to predict, the other).

    The loss is the mean over the tokens of what assistants wrote, with what ends it.

    Args:
        format: How files hold examples.
        parallel: For `parallel`: what in the name of the file of sources, and what instead in that
            of targets, such as [.en, .de] for train.en.gz and train.de.gz.
        references: For `columns`: a column of further right answers, a text or a list.
        template: A file with a Jinja chat template (or a tokenizer_config.json with one), or the
            template itself; default: the user is quoted by `> `, an answer ends with the end token.
        loss_on: Every assistant's turn that answers someone, or only the last one.
        cut: What a prompt loses that is too long: its middle or its beginning.
        decoding: How an answer is written in validation, test and predict.
        validation_examples: For how many validation examples an answer is written, evenly spaced;
            with 0 validation gives the loss alone.
        metrics: Scores of the answers.
        bleu_tokenizer: sacrebleu's; `auto` is `zh` for Chinese references, else `13a`.
        monitor: The validation metric that decides which bundle is best.
    """

    name = "generation"
    shaping = ("template",)
    judged = True
    causal = True
    likelihood = True
    decodes = True
    goes_on_from = ("causal", "span_corruption")

    def __init__(
        self,
        format: Format = "columns",
        parallel: tuple[str, str] | None = None,
        references: str | None = None,
        template: str | None = None,
        loss_on: Literal["every", "last"] = "every",
        cut: Cut = "middle",
        decoding: Decoding = Decoding(),
        validation_examples: int = 0,
        metrics: list[Metric] | None = None,
        bleu_tokenizer: BleuTokenizer = "auto",
        monitor: Literal[
            "loss", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match"
        ] = "loss",
    ) -> None:
        self.format, self.parallel, self.references = format, parallel, references
        self.template = None if template is None else read_template(template)
        self.loss_on, self.cut, self.decoding = loss_on, cut, decoding
        self.validation_examples, self.bleu_tokenizer = validation_examples, bleu_tokenizer
        self.given_metrics: list[Metric] = [*METRICS] if metrics is None else metrics
        self.every = 1  # one in so many examples gets an answer in this pass; 0: none
        self.watch(monitor)
        self._check_settings(monitor)

    def _check_settings(self, monitor: str) -> None:
        if (self.format == "parallel") != (self.parallel is not None):
            raise UserError(
                "model.task.parallel says which files belong together in model.task.format "
                "parallel: give both or neither"
            )
        if self.parallel is not None and "" in self.parallel:
            raise UserError(f"model.task.parallel is {self.parallel}: give two such as [.en, .de]")
        if self.validation_examples < 0:
            raise UserError(
                f"model.task.validation_examples is {self.validation_examples}: give 0 or more"
            )
        if monitor == "loss":
            return
        if not any(monitor in NAMES[metric] for metric in self.given_metrics):
            raise UserError(
                f"model.task.monitor is {monitor}, which is none of model.task.metrics "
                f"{self.given_metrics}"
            )
        if not self.validation_examples:
            raise UserError(
                f"model.task.monitor {monitor} needs answers: give model.task.validation_examples"
            )

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """See `Task`; how answers are written is a group of settings."""
        return cls(**config | {"decoding": Decoding(**config["decoding"])})

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {
            "format": self.format,
            "parallel": None if self.parallel is None else [*self.parallel],
            "references": self.references,
            "template": self.template,
            "loss_on": self.loss_on,
            "cut": self.cut,
            "decoding": asdict(self.decoding),
            "validation_examples": self.validation_examples,
            "metrics": self.given_metrics,
            "bleu_tokenizer": self.bleu_tokenizer,
            "monitor": self.monitor.removeprefix("val_"),
        }

    def check(self, tokenizer: Tokenizer, causal: bool) -> None:
        """See `Task`."""
        if not causal:
            raise UserError(
                "model.task 'Generation' writes each token from those before it, and this backbone "
                "also sees those after it: give model.init_from a causal model (of CausalLM), or "
                "model.backbone.causal true"
            )
        check_libraries(self.given_metrics)
        self._template(tokenizer).end  # noqa: B018 - it refuses

    def _template(self, tokenizer: Tokenizer) -> ChatTemplate:
        return ChatTemplate(self.template, tokenizer, self.loss_on == "every")

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Example]:
        """See `Task`."""
        layout = Layout(self.format, columns, self.references, self.parallel)
        return [*read_conversations(path, layout, labelled, bad)]

    def typed(self, text: str, columns: Columns, place: str) -> Example:
        """A user's turn."""
        return conversation([Turn(USER, text)], [], place)

    def schema(self, examples: list[Example]) -> list[str]:
        """No labels."""
        return []

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """Prompt and answer by the template, the prompt cut to what the answer leaves."""
        template, encoded = self._template(tokenizer), []
        new = self.decoding.max_new_tokens
        for number, example in enumerate(cast(list[Conversation], examples)):
            try:
                written = template.write(example.turns, example.label, example.place)
                kept, cut = fit(written, max_length, new, self.cut, example.place)
            except UserError as error:
                encoded.append(unusable(number, example.place, error))
                continue
            item = Encoded(kept.ids, [0] * len(kept.ids), cut, place=example.place, example=number)
            item.targets["counted"] = np.array(kept.counted, np.int64)
            item.targets["prompt"] = np.array(kept.prompt)
            item.count = len(kept.counted)
            encoded.append(item)
        return encoded

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> Arrays:
        """Row, place and next token of each of K targets; row, start and prompt of each example."""
        places = [e.targets.get("counted", np.zeros(0, np.int64)) for e in packed]
        tokens = [np.array(e.tokens, np.int64)[at] for e, at in zip(packed, places, strict=True)]
        counts = [len(at) for at in places]
        return {
            "row": np.repeat(rows, counts),
            "at": np.concatenate(places) + np.repeat(starts, counts) - 1,
            "labels": np.concatenate(tokens),
            "prompt_row": rows,
            "prompt_start": starts,
            "prompt": np.array([e.targets.get("prompt", 0) for e in packed], np.int64),
        }

    def build_head(self, backbone: Backbone, labels: list[str]) -> TaskHead:
        """The projection to the vocabulary, as phase one has it."""
        if backbone.prefix_lm and self.loss_on == "every" and self.format in TALKS:
            raise UserError(
                "the backbone is a prefix-LM, which reads a whole prompt in both directions, "
                "earlier answers included: set model.task.loss_on last"
            )
        return VocabularyHead(backbone)

    def begin(self, split: str, count: int) -> None:
        """In validation only some get an answer."""
        self.every = 1
        if split == "validation":
            some = self.validation_examples
            self.every = -(-count // some) if some else 0

    def predict(
        self, backbone: Backbone, head: TaskHead, batch: Batch, output: Output, tokenizer: Tokenizer
    ) -> Tensor | None:
        """(N, max_new_tokens) ids of answers; NO_TOKEN after their ends, NO_ANSWER where none."""
        if not self.every:
            return None
        numbers = batch.samples.tolist()
        chosen = [i for i, n in enumerate(numbers) if n >= 0 and n % self.every == 0]
        scores = torch.full((len(numbers), self.decoding.max_new_tokens), NO_ANSWER)
        if not chosen:
            return scores
        model = LanguageModel(
            backbone, cast(VocabularyHead, head), tokenizer, self._template(tokenizer).end
        )
        prompts = [_prompt(batch, i) for i in chosen]
        answers = answer_prompts(model, prompts, [numbers[i] for i in chosen], self.decoding)
        for i, ids in zip(chosen, answers, strict=True):
            scores[i] = NO_TOKEN
            scores[i, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        return scores

    def records(self, scored: Scored) -> dict[int, dict[str, Any]]:
        """The text of each answer, beside its reference if there is one."""
        found = {}
        for number, scores in scored.scores.items():
            window = scored.windows[number]
            ids = [token for token in scores.long().tolist() if token >= 0]
            if scores[0] == NO_ANSWER:
                continue
            prompt = window.tokens[: int(window.targets["prompt"])]
            text = TextStream(scored.tokenizer, prompt).push(ids, last=True).strip()
            gold = scored.examples[window.example].gold
            found[window.example] = {"prediction": text} | ({"reference": gold} if gold else {})
        return found

    def judge(
        self, examples: list[Example], records: dict[int, dict[str, Any]]
    ) -> dict[str, float]:
        """The chosen scores of the answers that have references."""
        references = {n: cast(Conversation, examples[n]).references for n in records}
        known = [n for n in records if references[n]]
        if not known:
            return {}
        texts = [records[n]["prediction"] for n in known]
        wanted = [references[n] for n in known]
        return text_scores(self.given_metrics, texts, wanted, self.bleu_tokenizer)


def _prompt(batch: Batch, sample: int) -> list[int]:
    """The tokens of a sample's prompt, with the places that a tuning keeps in front of it."""
    row, start, length = (
        int(batch.targets[name][sample]) for name in ("prompt_row", "prompt_start", "prompt")
    )
    reserved = start if batch.positions is None else int(batch.positions[row, start])
    tokens: list[int] = batch.tokens[row, start - reserved : start + length].tolist()
    return tokens
