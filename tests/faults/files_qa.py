"""Made questions: contexts of facts `the NAME sees the THING`, asked for the thing.

The thing asked for stands after the name that the question holds. Some questions of the second
version name what the context does not.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

NAMES = ("river", "sea", "light", "water", "stone", "bread", "letter", "house", "garden", "wood")
THINGS = ("music", "paper", "winter", "silver", "morning", "evening", "number", "answer", "token")
SPLITS = {"train": 40, "validation": 12, "test": 12}


def paragraph(rng: random.Random, number: str, facts: int, unanswerable: bool) -> dict[str, Any]:
    """A context with two questions, the second one perhaps without an answer."""
    names = rng.sample(NAMES, facts + 1)
    pairs = [(name, rng.choice(THINGS)) for name in names[:-1]]
    context, places = "", {}
    for name, thing in pairs:
        context += f"The {name} sees the "
        places[name] = (thing, len(context))
        context += f"{thing} slowly. "
    asked = rng.sample(names[:-1], 2)
    if unanswerable:
        asked[1] = names[-1]
    questions = []
    for i, name in enumerate(asked):
        answers = [dict(zip(("text", "answer_start"), places[name], strict=True))]
        answers = answers if name in places else []
        one: dict[str, Any] = {"id": f"{number}-{i}", "question": f"What sees the {name}?"}
        one["answers"] = answers * rng.choice((1, 2)) if answers else []
        if unanswerable:
            one["is_impossible"] = not answers
        questions.append(one)
    return {"context": context, "qas": questions}


def write_squad(at: Path, unanswerable: bool = False, facts: int = 3) -> Path:
    """train.json, validation.json and test.json in SQuAD's layout, and each as flat .jsonl."""
    rng = random.Random(facts)
    at.mkdir(parents=True, exist_ok=True)
    for split, count in SPLITS.items():
        made = [paragraph(rng, f"{split}{i}", facts, unanswerable) for i in range(count)]
        data = [{"title": str(i), "paragraphs": made[i : i + 5]} for i in range(0, count, 5)]
        (at / f"{split}.json").write_text(json.dumps({"version": "x", "data": data}))
        (at / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in flat(made)))
    return at


def flat(paragraphs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The questions of paragraphs as records of one line each."""
    return [
        {
            **{"id": asked["id"], "question": asked["question"], "context": one["context"]},
            "answers": {k: [a[k] for a in asked["answers"]] for k in ("text", "answer_start")},
        }
        for one in paragraphs
        for asked in one["qas"]
    ]


def write_qa(at: Path) -> dict[str, Any]:
    """The options that name files for the shipped configs."""
    write_squad(at)
    return {f"data.{split}": str(at / f"{split}.json") for split in SPLITS}
