"""Made files of relations: which of two entities feeds the other, said by the word between them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from faults.kit import LAND, OTHER, WATER

COUNTS = {"train": 60, "validation": 23, "test": 23}
LABELS = ("Feeds(e1,e2)", "Feeds(e2,e1)", "Other")
MARKS = ["<e1>", "</e1>", "<e2>", "</e2>"]
VERBS = dict(zip(LABELS, ("sees", "builds", "under"), strict=True))


def relation_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Words, stretches of words for head and tail, and a label."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        label = rng.choice(LABELS)
        first = rng.choices(WATER, k=rng.randint(1, 2))
        second = rng.choices(LAND, k=rng.randint(1, 2))
        before = rng.choices(OTHER[:4], k=rng.randint(0, 4))
        words = [*before, *first, VERBS[label], *second, *rng.choices(OTHER[:4], k=2)]
        at = len(before)
        head = [at, at + len(first)]
        tail = [head[1] + 1, head[1] + 1 + len(second)]
        rows.append({"text": words, "head": head, "tail": tail, "label": label})
    return rows


def with_marks(row: dict[str, Any]) -> str:
    """The text with marks around head and tail."""
    words = list(row["text"])
    for name, number in (("head", 1), ("tail", 2)):
        start, end = row[name]
        words[start] = f"<e{number}>{words[start]}"
        words[end - 1] += f"</e{number}>"
    return " ".join(words)


def write_relations(directory: Path) -> dict[str, Any]:
    """Marked texts (.jsonl), the same as the SemEval files have them (.txt), with stretches of
    words (_spans.jsonl) and with names (.tsv); the options that name the marked ones."""
    columns = {"text": "text", "label": "label", "names": None}
    given: dict[str, Any] = {"data.columns": columns, "model.task.marks": MARKS}
    given["model.task.negative"] = "Other"
    for seed, (split, count) in enumerate(COUNTS.items()):
        rows = relation_rows(count, seed)
        marked = [{"text": with_marks(row), "label": row["label"]} for row in rows]
        texts = {
            f"{split}.jsonl": [json.dumps(row) for row in marked],
            f"{split}_spans.jsonl": [json.dumps(row) for row in rows],
            f"{split}.txt": [
                f'{n}\t"{row["text"]}"\n{row["label"]}\nComment: none\n'
                for n, row in enumerate(marked, 1)
            ],
            f"{split}.tsv": [
                "\t".join(
                    [
                        *(" ".join(r["text"][slice(*r[n])]) for n in ("head", "tail")),
                        r["label"],
                        " ".join(r["text"]),
                    ]
                )
                for r in rows
            ],
        }
        for name, lines in texts.items():
            (directory / name).write_text("\n".join(lines) + "\n")
        given[f"data.{split}"] = str(directory / f"{split}.jsonl")
    return given
