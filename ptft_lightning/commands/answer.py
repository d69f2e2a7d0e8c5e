"""`answer`: questions to whole documents: BM25 finds passages, a tuned reader finds the answer.

The reading is that of `predict` on a file of questions and passages, so that whatever a run was
tuned with is used.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptft_lightning.commands import train
from ptft_lightning.commands.predicted import refuse_over
from ptft_lightning.commands.runs import bundle_of
from ptft_lightning.commands.texts import ONE_PROCESS, read_documents, read_texts, texts_in
from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.lines import json_records
from ptft_lightning.data.module import say
from ptft_lightning.data.passages import Bm25, Passage, cut_passages
from ptft_lightning.data.sources import expand_sources
from ptft_lightning.data.squad import visible
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import open_bundle

Found = list[list[tuple[int, float]]]
Line = dict[str, Any]


def answer(
    run_dir: str,
    files: list[str],
    question: str | None = None,
    questions: str | None = None,
    column: str = "text",
    question_column: str = "question",
    output: str | None = None,
    passages: int = 5,
    passage_characters: int = 1000,
    n_best: int = 5,
) -> None:
    """Answer questions from documents that may be many and long, with the places of the answers.

    Of each question the passages that BM25 ranks highest are read, as `predict` reads them; the
    answers of all of them are ranked by the reader's probability.

    Args:
        run_dir: A run tuned with the task ExtractiveQA.
        files: Documents: .txt, .jsonl, .csv, .tsv, .parquet, also compressed; folders and globs.
        question: A question, or several as a JSON list.
        questions: A file of questions: .txt with one a line, or .jsonl.
        column: The text column of the documents.
        question_column: The question column of a .jsonl file of questions.
        output: File for the answers (.jsonl); default: they are printed.
        passages: Passages read for each question.
        passage_characters: Documents are cut into passages of whole sentences up to this long.
        n_best: Answers told for each question.
    """
    for name, value in (
        *(("passages", passages), ("passage_characters", passage_characters)),
        ("n_best", n_best),
    ):
        if value < 1:
            raise UserError(f"--{name} is {value}: give 1 or more")
    refuse_over(output, questions, *files)
    _check_reader(run_dir)
    asked = _questions(question, questions, question_column)
    known = _passages(files, column, passage_characters)
    found = Bm25([passage.text for passage in known]).rank(asked, passages)
    lines = _read(run_dir, asked, known, found)
    texts = [
        json.dumps(_answered(text, known, ranked, lines, number, n_best), ensure_ascii=False)
        for number, (text, ranked) in enumerate(zip(asked, found, strict=True))
    ]
    if output is None:
        print("\n".join(texts))
        return
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text("\n".join(texts) + "\n", encoding="utf-8")
    say(f"answer: {len(texts)} questions: {output}")


def _check_reader(run_dir: str) -> None:
    head = open_bundle(bundle_of(None, Path(run_dir))).config["head"]
    if head["name"] != "question_answering":
        raise UserError(
            f"the run '{run_dir}' is of '{head['name']}': give one tuned with the task ExtractiveQA"
        )


def _questions(text: str | None, file: str | None, column: str) -> list[str]:
    if (text is None) == (file is None):
        raise UserError("what to answer? give --question TEXT or --questions FILE, one of them")
    if text is not None:
        asked = texts_in(text, "question")
    else:
        file = str(file)
        asked = [*read_texts(file, column)]
    if blank := [number for number, one in enumerate(asked, 1) if not visible(one)]:
        raise UserError(f"question {blank[0]} is empty: give a text")
    if not asked:
        raise UserError(f"'{file}' holds no questions")
    return asked


def _passages(files: list[str], column: str, characters: int) -> list[Passage]:
    known: list[Passage] = []
    documents = 0
    for file in expand_sources(files):
        for number, document in enumerate(read_documents([file], column), start=1):
            known += cut_passages(file, number, document, characters)
            documents += 1
    say(f"answer: {documents} documents in {len(known)} passages")
    return known


def _read(
    run_dir: str, asked: Sequence[str], known: Sequence[Passage], found: Found
) -> dict[str, Line]:
    """What `predict` says of each pair of a question and a passage, by `QUESTION-PASSAGE`."""
    pairs = [
        {"id": f"{number}-{i}", "question": asked[number], "context": known[i].text}
        for number, ranked in enumerate(found)
        for i, _ in ranked
    ]
    if not pairs:
        return {}
    with tempfile.TemporaryDirectory() as place:
        read, said = Path(place) / "pairs.jsonl", Path(place) / "answers.jsonl"
        read.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        files = ("--data.predict", str(read), "--output", str(said))
        train.run("predict", ["--run_dir", run_dir, *files, *ONE_PROCESS])
        return {line["id"]: line for _, line in json_records(str(said))}


def _answered(
    question: str,
    known: Sequence[Passage],
    ranked: list[tuple[int, float]],
    lines: dict[str, Line],
    number: int,
    n_best: int,
) -> Line:
    """The best answers of all passages of a question, with their places in the documents."""
    answers = []
    for i, bm25 in ranked:
        line, passage = lines[f"{number}-{i}"], known[i]
        for one in line["n_best"] if line["answer"] else []:
            place = {"file": passage.file, "document": passage.document}
            place |= {name: passage.start + one[name] for name in ("start", "end")}
            answers.append({**one, **place, "passage": passage.text, "bm25": round(bm25, 4)})
    answers.sort(key=lambda one: -one["score"])  # stable: the better passage comes first
    best = answers[0] if answers else {"answer": "", "score": 0.0}
    return {"question": question, **best, "n_best": answers[:n_best]}


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, answer, args, positional=False)
