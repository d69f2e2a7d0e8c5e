"""Extractive question answering: which stretch of a context answers a question (Devlin et al.
2019, section 4.2 and 4.3)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.examples import Columns, Encoded, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.module import say
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.squad import Question, read_questions
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.words import stripped
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.answers import Language, best_threshold, compare, measures
from ptft_lightning.tasks.base import Arrays, Scored, Task, TaskHead
from ptft_lightning.tasks.pooling import spans_of
from ptft_lightning.tasks.question_windows import Windows, encode_questions
from ptft_lightning.terms import IGNORE, Output, Term

Monitor = Literal["f1", "exact_match", "best_f1", "loss"]


class ExtractiveQA(Task):
    """The stretch of a context that answers a question.

    Files hold SQuAD's JSON (.json) or flat lines (.jsonl), also compressed. A context longer than
    `data.max_length` is read in windows; a sample of a batch is a window. Each window's two heads
    say where the answer begins and ends, or, at the window's first place (its last in a causal
    model), that it is not there. The answer is the likeliest stretch over all windows.

    Args:
        unanswerable: Whether a context may lack the answer (SQuAD 2.0).
        language: How answers are compared: en as SQuAD does, zh as CMRC 2018 does.
        stride: Windows begin so many tokens after the one before; default: half of what a window
            holds of the context.
        longest_question: Tokens of a question; never more than half of a window.
        longest_answer: Tokens of an answer that may be given.
        without: What windows without the answer train towards, where every question has one: that
            it is not there, or nothing.
        n_best: Answers kept for each question.
        threshold: With `unanswerable`, how much likelier (as a difference of log-probabilities)
            no answer must be than the best one, to be given; default: what was best for F1 on
            the validation data of the bundle.
        squad_file: Whether `predict` also writes {id: answer}, as the official scripts read it,
            beside its output, with the ending .squad.json.
        monitor: The validation metric that decides which bundle is best.
    """

    name = "question_answering"
    shaping = ("unanswerable",)
    judged = True

    def __init__(
        self,
        unanswerable: bool = False,
        language: Language = "en",
        stride: int | None = None,
        longest_question: int = 64,
        longest_answer: int = 30,
        without: Literal["absent", "ignore"] = "absent",
        n_best: int = 5,
        threshold: float | None = None,
        squad_file: bool = False,
        monitor: Monitor = "f1",
    ) -> None:
        self.unanswerable, self.language, self.stride = unanswerable, language, stride
        self.longest_question, self.longest_answer = longest_question, longest_answer
        self.without, self.n_best = without, n_best
        self.threshold = threshold
        self.squad_file = squad_file
        self.watch(monitor)
        for name in ("longest_question", "longest_answer", "n_best", "stride"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"task.{name} is {value}: give 1 or more")
        if unanswerable and without == "ignore":
            raise UserError(
                "task.without ignore leaves out what task.unanswerable is learnt from: give one"
            )
        if not unanswerable and (threshold is not None or monitor == "best_f1"):
            raise UserError(
                "task.threshold and task.monitor best_f1 are for contexts that may lack the answer:"
                " set task.unanswerable true, or leave them out"
            )

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {
            "unanswerable": self.unanswerable,
            "language": self.language,
            "stride": self.stride,
            "longest_question": self.longest_question,
            "longest_answer": self.longest_answer,
            "without": self.without,
            "n_best": self.n_best,
            "threshold": self.threshold,
            "squad_file": self.squad_file,
            "monitor": self.monitor.removeprefix("val_"),
        }

    def read(self, path: str, columns: Columns, labelled: bool, bad: BadExamples) -> list[Example]:
        """Questions, see `read_questions`; the columns have the names of SQuAD's fields."""
        return [*read_questions(path, labelled, self.unanswerable, bad)]

    def typed(self, text: str, columns: Columns, place: str) -> Example:
        """`QUESTION<tab>CONTEXT`."""
        question, _, context = text.partition("\t")
        if not (question.strip() and context.strip()):
            raise UserError(f"{place}: give a question, a tab and the context that may answer it")
        return Question(context, question, None, place, id=place)

    def schema(self, examples: list[Example]) -> list[str]:
        """No labels."""
        return []

    def encode(
        self, examples: list[Example], labels: list[str], tokenizer: Tokenizer, max_length: int
    ) -> list[Encoded]:
        """Windows, see `encode_questions`."""
        train_without = self.without == "absent"
        how = Windows(self.stride, self.longest_question, train_without)
        return encode_questions(cast(list[Question], examples), tokenizer, max_length, how)

    def targets(self, packed: list[Encoded], rows: Ids, starts: Ids) -> Arrays:
        """Row, start and end of each window, the (N, W) places of its context's tokens in the row,
        -1 beyond the last, and its (N, 2) label."""
        none = np.zeros(2, np.int64)
        context = np.array([e.targets.get("context", none) for e in packed], np.int64)
        nothing = np.full(2, IGNORE)
        label = np.array([e.targets.get("label", nothing) for e in packed], np.int64)
        index = np.arange(max(1, int(context[:, 1].max())))
        places = np.where(index < context[:, 1:], (starts + context[:, 0])[:, None] + index, -1)
        return {**spans_of(packed, rows, starts), "places": places, "label": label}

    def build_head(self, backbone: Backbone, labels: list[str]) -> TaskHead:
        """Two outputs a token."""
        return SpanHead(backbone.dim, backbone.causal, self.longest_answer, self.n_best)

    def records(self, scored: Scored) -> dict[int, dict[str, Any]]:
        """The best answer over all windows of each question, and the next best."""
        return {
            number: self._combined(scored.examples[number].text, windows)
            for number, windows in scored.whole().items()
        }

    def _combined(self, context: str, windows: list[tuple[Encoded, Tensor]]) -> dict[str, Any]:
        found: dict[tuple[int, int], float] = {}
        none = math.inf
        for window, scores in windows:
            assert window.spans is not None, "encode_questions gives them"
            first = int(window.targets["context"][0])
            (_, _, absent), *spans = scores.tolist()
            none = min(none, absent)
            for start, end, score in spans:
                if score == -math.inf:
                    continue
                a, b = window.spans[first + int(start), 0], window.spans[first + int(end), 1]
                a, b = stripped(context, int(a), int(b))
                if a < b:
                    found[a, b] = max(found.get((a, b), -math.inf), score)
        best = sorted(found.items(), key=lambda item: (-item[1], item[0]))[: self.n_best]
        answers = [
            {"answer": context[a:b], "start": a, "end": b, "score": _probability(score)}
            for (a, b), score in best
        ]
        if not self.unanswerable:
            return {**(answers[0] if answers else self._nothing(none)), "n_best": answers}
        doubt = round(none - best[0][1], 6) if answers else math.inf
        tuned = self.found.get("threshold", 0.0)
        limit = tuned if self.threshold is None else self.threshold
        given = self._nothing(none) if doubt > limit else answers[0]
        return {**given, "doubt": doubt if answers else None, "n_best": answers}

    def _nothing(self, score: float) -> dict[str, Any]:
        return {"answer": "", "start": None, "end": None, "score": _probability(score)}

    def judge(
        self, examples: list[Example], records: dict[int, dict[str, Any]]
    ) -> dict[str, float]:
        """`exact_match` and `f1`; with `unanswerable` also those of its two kinds of questions,
        and the best F1 any threshold gives on these very answers."""
        seen = [(cast(Question, examples[n]), record) for n, record in records.items()]
        golds = [[a.text for a in question.answers or ()] for question, _ in seen]
        lines = [record for _, record in seen]
        answers = [line["answer"] for line in lines]
        found = measures(answers, golds, self.language, self.unanswerable)
        if not self.unanswerable:
            return found
        threshold, best_f1 = self._best(lines, golds)
        return found | {"best_f1": best_f1, "best_f1_threshold": threshold}

    def settle(self, examples: list[Example], records: dict[int, dict[str, Any]]) -> None:
        """The threshold that gives the best F1."""
        if self.unanswerable and self.threshold is None:
            questions = [cast(Question, examples[n]) for n in records]
            golds = [[a.text for a in question.answers or ()] for question in questions]
            self.found = {"threshold": self._best([*records.values()], golds)[0]}

    def _best(self, lines: list[dict[str, Any]], golds: list[list[str]]) -> tuple[float, float]:
        """The best threshold for these very answers, and the F1 it gives."""
        kind = self.language, True
        best = [line["n_best"][0]["answer"] if line["n_best"] else "" for line in lines]
        silent = [compare("", gold, *kind).f1 for gold in golds]
        gains = [
            compare(answer, gold, *kind).f1 - nothing
            for answer, gold, nothing in zip(best, golds, silent, strict=True)
        ]
        doubts = [math.inf if line["doubt"] is None else line["doubt"] for line in lines]
        threshold, gain = best_threshold(doubts, gains)
        return threshold, (sum(silent) + gain) / max(1, len(silent))

    def write_beside(
        self, output: Path, examples: list[Example], records: dict[int, dict[str, Any]]
    ) -> None:
        """`squad_file`: {id: answer}."""
        if self.squad_file:
            answers = {cast(Question, examples[n]).id: r["answer"] for n, r in records.items()}
            if lost := len(records) - len(answers):
                say(f"{lost} questions have another's id: squad_file has only the last's answer")
            text = json.dumps(answers, ensure_ascii=False, indent=1) + "\n"
            output.with_suffix(".squad.json").write_text(text, encoding="utf-8")


def _probability(score: float) -> float:
    return round(math.exp(score), 6)


class SpanHead(TaskHead):
    """Where an answer begins and where it ends, each one softmax over a window."""

    def __init__(self, dim: int, causal: bool, longest: int, n_best: int) -> None:
        super().__init__()
        self.outputs = nn.Linear(dim, 2)
        self.causal, self.longest, self.n_best = causal, longest, n_best

    def forward(self, hidden: Tensor, batch: Batch) -> Output:
        """(B, T, dim) hidden states -> the `answer` term, the mean of both cross-entropies, and
        (N, 1 + n_best, 3) scores: first and last token in the window's part of the context and
        log-probability, first that of no answer, then the best spans."""
        at = batch.targets
        none = at["end"] - 1 if self.causal else at["start"]  # causal models know all at the end
        held = F.pad(at["places"] >= 0, (1, 0), value=True)
        places = torch.cat([none[:, None], at["places"].clamp(min=0)], 1)
        logits = self.outputs(hidden)[at["row"][:, None], places].float()
        chances = logits.masked_fill(~held[..., None], -math.inf).log_softmax(1)
        losses = F.nll_loss(chances, at["label"], ignore_index=IGNORE, reduction="none")
        known = at["label"][:, 0] != IGNORE
        term = Term(losses.sum() / 2, known.sum())
        absent = F.pad(chances[:, 0].sum(-1)[:, None, None], (2, 0))
        with torch.no_grad():
            best = best_spans(chances[:, 1:, 0], chances[:, 1:, 1], self.longest, self.n_best)
        return Output({"answer": term}, scores=torch.cat([absent, best], 1))


def best_spans(starts: Tensor, ends: Tensor, longest: int, count: int) -> Tensor:
    """(N, W) scores of places to begin and to end -> (N, count, 3): first place, last place and
    the sum of their scores, of the best spans of up to `longest` places; -inf where there are
    fewer."""
    longest = min(longest, starts.shape[1])
    reach = F.pad(ends, (0, longest - 1), value=-math.inf).unfold(1, longest, 1)
    sums = (starts[..., None] + reach).flatten(1)
    scores, at = sums.topk(min(count, sums.shape[1]))
    first = at // longest
    best = torch.stack([first, first + at % longest, scores], -1)
    return F.pad(best, (0, 0, 0, count - best.shape[1]), value=-math.inf)
