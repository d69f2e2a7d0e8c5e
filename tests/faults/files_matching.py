"""Made files for matching and cloze; a tokenizer of the tests knows their words."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FIRST = ("river", "stone", "bread", "letter", "house", "north", "winter", "music", "paper")
GRADES = (1.0, 3.0, 5.0)


def write_pairs(directory: Path, rows: int = 24) -> dict[str, Any]:
    """A query, a passage that names the query's words, one that does not, a score and a label."""
    rng = random.Random(0)
    made: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        lines = []
        for i in range(rows):
            words, others = rng.sample(FIRST, 2), rng.sample(FIRST, 2)
            grade = GRADES[i % 3]
            shown = words if grade == 5 else [words[0], others[0]] if grade == 3 else others
            line = {
                "query": f"the {' '.join(words)}",
                "passage": f"{' '.join(shown)} of the data model",
                "wrong": f"garden of silver {i}",
                "score": grade,
                "label": {1.0: "none", 3.0: "half", 5.0: "all"}[grade],
            }
            lines.append(json.dumps(line) + "\n")
        file = directory / f"pairs_{split}.jsonl"
        file.write_text("".join(lines))
        made[f"data.{split}"] = str(file)
    return made


def write_gaps(directory: Path, rows: int = 12) -> dict[str, Any]:
    """Texts of two labels, 0 and 1, and the words of a template that the tests' tokenizers know."""
    rng = random.Random(0)
    made: dict[str, Any] = {
        "model.task.template": "{text} the river is {mask} water",
        "model.task.verbalizer": {"0": ["small"], "1": ["large", "green"]},
    }
    for split in ("train", "validation", "test"):
        lines = ["sentence\tlabel\ttext"]
        for i in range(rows):
            text = " ".join([*rng.choices(FIRST, k=5), "mountain" if i % 2 else "light"])
            lines.append(f"{text}\t{i % 2}\t{text}")
        file = directory / f"gaps_{split}.tsv"
        file.write_text("\n".join(lines) + "\n")
        made[f"data.{split}"] = str(file)
    return made
