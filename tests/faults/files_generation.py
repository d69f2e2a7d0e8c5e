"""Made files of sources and answers: a few words, answered by the same words reversed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = ("river", "sea", "hill", "stone", "winter", "letter")
STRINGS = 8
SIZES = {"train": 60, "validation": 12, "test": 11}


def pairs(split: str) -> list[tuple[str, str]]:
    """Words, and the same words from the last to the first; a few strings that all files share."""
    rng = random.Random(0)
    known = [rng.choices(WORDS, k=rng.randint(4, 5)) for _ in range(STRINGS)]
    said = random.Random(split).choices(known, k=SIZES[split])
    return [(" ".join(words), " ".join(reversed(words))) for words in said]


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
    """Files that any shipped config of the task reads: as records, or as lines that belong together
    in two files."""
    options: dict[str, Any] = {"data.columns": {"text": "text", "label": "label", "pair": None}}
    for split in SIZES:
        lines = "".join(json.dumps(record(*pair)) + "\n" for pair in pairs(split))
        for ending in ("en", "de"):
            (directory / f"{split}.{ending}.jsonl").write_text(lines)
        options[f"data.{split}"] = str(directory / f"{split}.en.jsonl")
    return options
