"""`extract`: plain text in, triples or events out, by two runs one after the other.

Each run predicts as `predict` does, the second on what the first has found.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

from ptft_lightning.commands.predicted import refuse_over
from ptft_lightning.commands.texts import ONE_PROCESS, read_texts, texts_in
from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.lines import json_records
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import open_bundle

Record = dict[str, Any]
SIGNS = 10  # tokens of a row that are for the signs around two entities
DIRECTED = re.compile(r"(.+)\((e[12]),e[12]\)")


def extract(
    entities: str | None = None,
    relations: str | None = None,
    triggers: str | None = None,
    arguments: str | None = None,
    text: str | None = None,
    texts: str | None = None,
    column: str = "text",
    output: str | None = None,
    distance: int = 200,
    threshold: float = 0.0,
    accelerator: str = "auto",
) -> None:
    """Triples of entities and their relation, or events with their arguments, from plain text.

    Args:
        entities: A run of Tagging that finds entities.
        relations: A run of RelationExtraction that is asked for every two of them; the label that
            means no relation is its task's `negative`.
        triggers: A run of EventTriggers.
        arguments: A run of EventArguments.
        text: A text, or several as a JSON list.
        texts: A file of texts: .txt with one a line, or .jsonl.
        column: The text column of a .jsonl file.
        output: File with one JSON line a text; default: they are printed.
        distance: Most characters between two entities that are asked for.
        threshold: Triples less likely than this are left out.
        accelerator: auto, cpu, cuda or mps.
    """
    if (entities is None, triggers is None) != (relations is None, arguments is None) or (
        (entities is None) == (triggers is None)
    ):
        raise UserError(
            "what to extract? give --entities RUN and --relations RUN, or --triggers RUN and "
            "--arguments RUN"
        )
    if distance < 0 or not 0 <= threshold <= 1:
        raise UserError(
            f"--distance is {distance} and --threshold {threshold}: give characters from 0, and a "
            "probability from 0 to 1"
        )
    refuse_over(output, texts)
    given = _texts(text, texts, column)
    with tempfile.TemporaryDirectory() as directory:
        steps = _Steps(Path(directory), accelerator)
        if entities is not None and relations is not None:
            lines = _triples(steps, given, entities, relations, distance, threshold)
        else:
            lines = _events(steps, given, str(triggers), str(arguments))
    written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if output is None:
        print(written, end="")
        return
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(written, encoding="utf-8")
    what = "events" if entities is None else "triples"
    found = sum(len(line[what]) for line in lines)
    say(f"extract: {found} {what} in {len(lines)} texts: {output}")


def _texts(text: str | None, texts: str | None, column: str) -> list[str]:
    if (text is None) == (texts is None):
        raise UserError("of what? give --text TEXT or --texts FILE, one of them")
    if text is not None:
        return texts_in(text, "text")
    file = str(texts)
    if not (found := [*read_texts(file, column)]):
        raise UserError(f"'{file}' holds no texts")
    return found


class _Steps:
    """Runs that predict files in a directory that is removed afterwards."""

    def __init__(self, directory: Path, accelerator: str) -> None:
        self.directory, self.accelerator, self.count = directory, accelerator, 0

    def predict(self, run_dir: str, records: list[Record], options: Record) -> list[Record]:
        """A line of predictions for each record."""
        from ptft_lightning.commands.train import run as train

        self.count += 1
        file, out = (self.directory / f"{self.count}{end}.jsonl" for end in ("", "-out"))
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        file.write_text("".join(lines), encoding="utf-8")
        words = ["--run_dir", run_dir, "--data.predict", str(file), "--output", str(out)]
        words += ["--trainer.accelerator", self.accelerator, *ONE_PROCESS]
        words += ["--data.columns", '{"text": "text"}']
        for name, value in options.items():
            words += [
                f"--model.task.{name}",
                value if isinstance(value, str) else json.dumps(value),
            ]
        train("predict", words)
        return [line for _, line in json_records(str(out))]


def _head_of(run_dir: str, task: str, option: str) -> Record:
    """The task of a run's bundle with its labels.

    Raises:
        UserError: it is another task's.
    """
    head: Record = open_bundle(run_dir).config["head"]
    if head["name"] != task:
        raise UserError(
            f"--{option} '{run_dir}' is a run of '{head['name']}': give one of '{task}'"
        )
    return head


def _triples(
    steps: _Steps, texts: list[str], tagger: str, relations: str, distance: int, threshold: float
) -> list[Record]:
    _head_of(tagger, "tagging", "entities")
    head = _head_of(relations, "relations", "relations")
    task, labels = head["config"], head["labels"]
    if task["negative"] is None:
        say(
            f"extract: '{relations}' was trained without a negative label: it finds a relation "
            "between any two entities; --threshold leaves out the least likely"
        )
    tagged = steps.predict(tagger, [{"text": text} for text in texts], {"format": "json"})
    directed = all(DIRECTED.fullmatch(label) for label in labels if label != task["negative"])
    longest = (int(open_bundle(relations).config["data"]["max_length"]) - SIGNS) // 2
    lines, pairs, owners = list[Record](), list[Record](), list[tuple[int, Record, Record]]()
    left_out = 0
    for number, answer in enumerate(tagged):
        lines.append({"text": answer["text"], "entities": answer["entities"], "triples": []})
        short = [e for e in answer["entities"] if e["end"] - e["start"] <= longest]
        left_out += len(answer["entities"]) - len(short)
        for one, other in _pairs(short, distance, directed):
            stretches = [[e["start"], e["end"]] for e in (one, other)]
            pair = {"text": answer["text"], "head": stretches[0], "tail": stretches[1]}
            kinds = zip(task["types"] or (), (one["type"], other["type"]), strict=False)
            pairs.append(pair | dict(kinds))
            owners.append((number, one, other))
    say(f"extract: {len(pairs)} pairs of entities to ask for")
    if left_out:
        say(
            f"extract: {left_out} entities of more than {longest} characters are in no pair: "
            f"'{relations}' could not read two of them"
        )
    options = {"marks": [], "head": "head", "tail": "tail", "last": False}
    answers = steps.predict(relations, pairs, options) if pairs else []
    for (number, one, other), answer in zip(owners, answers, strict=True):
        label, likely = answer["label"], answer["probabilities"][answer["label"]]
        if label == task["negative"] or likely < threshold:
            continue
        if directed and (match := DIRECTED.fullmatch(label)):
            label = match[1]
            one, other = (one, other) if match[2] == "e1" else (other, one)
        triple = {"head": one, "relation": label, "tail": other, "probability": likely}
        lines[number]["triples"].append(triple)
    return lines


def _pairs(
    entities: list[Record], distance: int, directed: bool
) -> Iterator[tuple[Record, Record]]:
    """Every two entities so near to each other, in both orders; labels that tell the direction want
    the one that comes first."""
    for one, other in permutations(entities, 2):
        first = one["start"] < other["start"]
        left, right = (one, other) if first else (other, one)
        if right["start"] - left["end"] <= distance and (first or not directed):
            yield one, other


def _events(steps: _Steps, texts: list[str], triggers: str, arguments: str) -> list[Record]:
    task = _head_of(triggers, "event_triggers", "triggers")["config"]
    _head_of(arguments, "event_arguments", "arguments")
    found = steps.predict(triggers, [{"text": text} for text in texts], {})
    names = {name: task[name] for name in ("events", "kind", "trigger")}
    documents = [{"text": line["text"], task["events"]: line[task["events"]]} for line in found]
    some = any(line[task["events"]] for line in found)
    answers = iter(steps.predict(arguments, documents, names) if some else [])
    return [
        {
            "text": line["text"],
            "events": [
                {
                    "type": event[task["kind"]],
                    "trigger": event[task["trigger"]],
                    "arguments": next(answers)["arguments"],
                }
                for event in line[task["events"]]
            ],
        }
        for line in found
    ]


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, extract, args, positional=False)
