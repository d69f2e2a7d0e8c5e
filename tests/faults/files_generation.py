"""Made files of sources and answers: a source of letters, answered by the same letters reversed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

LETTERS = ("river", "sea", "hill", "stone", "winter", "letter")
SIZES = {"train": 60, "validation": 12, "test": 11}


def pairs(split: str) -> list[tuple[str, str]]:
    """Words, and the same words from the last to the first."""
    rng = random.Random(split)
    found = []
    for _ in range(SIZES[split]):
        said = rng.choices(LETTERS, k=rng.randint(1, 3))
        found.append((" ".join(said), " ".join(reversed(said))))
    return found


def record(source: str, target: str) -> dict[str, Any]:
    """One pair in every format at once."""
    roles = (("user", "human", source), ("assistant", "gpt", target))
    return {
        "text": source,
        "label": target,
        "instruction": source,
        "input": "",
        "output": target,
        "messages": [{"role": role, "content": text} for role, _, text in roles],
        "conversations": [{"from": by, "value": text} for _, by, text in roles],
        "turns": [source, target],
    }


def write_answers(directory: Path) -> dict[str, Any]:
    """Files in every format; the options that name those of `columns`, `alpaca` and the like."""
    options = {}
    for split in SIZES:
        some = pairs(split)
        lines = [json.dumps(record(*pair)) + "\n" for pair in some]
        (directory / f"{split}.jsonl").write_text("".join(lines))
        for ending, side in (("en", 0), ("de", 1)):
            text = "".join(f"{pair[side]}\n" for pair in some)
            (directory / f"{split}.{ending}").write_text(text)
        options[f"data.{split}"] = str(directory / f"{split}.jsonl")
    return options


def write_for_config(directory: Path) -> dict[str, Any]:
    """Options under which any shipped config of the task reads the made files."""
    columns = {"text": "text", "label": "label", "pair": None}
    more = {"model.task.format": "columns", "model.task.parallel": "null"}
    return write_answers(directory) | {"data.columns": columns} | more
