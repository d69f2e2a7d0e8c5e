"""Made documents of events: who feeds what and who builds what, in words and in characters."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from faults.kit import LAND, OTHER, WATER

COUNTS = {"train": 40, "validation": 15, "test": 15}
TRIGGERS = {"sees": "Look", "builds": "Make"}


def event_rows(count: int, seed: int, joiner: str = " ") -> list[dict[str, Any]]:
    """Documents of one to three sentences, each with an event of two arguments."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        text, events = "", []
        for number in range(rng.randint(1, 3)):
            trigger = rng.choice(list(TRIGGERS))
            before = rng.choices(OTHER[:4], k=rng.randint(0, 3))
            words = [*before, rng.choice(WATER), trigger, rng.choice(LAND), "under"]
            spans = []
            for word in words:
                text += joiner if text else ""
                spans.append({"start": len(text), "end": len(text) + len(word), "text": word})
                text += word
            at = len(before)
            roles = {"Who": spans[at], "What": spans[at + 2]}
            arguments = [{"role": role, **span} for role, span in roles.items()]
            event = {"id": number, "type": "Any", "subtype": TRIGGERS[trigger]}
            events.append({**event, "nugget": spans[at + 1], "arguments": arguments})
        rows.append({"text": text, "events": events})
    return rows


def write_events(directory: Path) -> dict[str, Any]:
    """A .jsonl file a split, and the options that name them."""
    given: dict[str, Any] = {"data.columns": {"text": "text"}}
    for seed, (split, count) in enumerate(COUNTS.items()):
        lines = [json.dumps(row) + "\n" for row in event_rows(count, seed)]
        (directory / f"{split}.jsonl").write_text("".join(lines))
        given[f"data.{split}"] = str(directory / f"{split}.jsonl")
    return given
