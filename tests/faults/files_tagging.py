"""Made files of tagged words: names in English and Chinese, parts of speech, semantic roles."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults.kit import LAND, OTHER, WATER

COUNTS = {"train": 60, "validation": 23, "test": 23}
LONG = 50  # words of one sentence of each file, more than a window has

Sentence = tuple[list[str], list[str]]


def sentences(split: str, words: tuple[tuple[str, ...], ...], glue: str = "") -> Iterator[Sentence]:
    """Words and tags: waters and lands of one to three words among others."""
    rng = random.Random(f"tagging {split}")
    for number in range(COUNTS[split]):
        tokens, tags = list[str](), list[str]()
        most = LONG if number == 5 else rng.randint(2, 9)
        while len(tokens) < most:
            kind = rng.choice((None, None, "WATER", "LAND"))
            if kind is None:
                tokens, tags = [*tokens, rng.choice(words[2])], [*tags, "O"]
                continue
            length = rng.randint(1, 3)
            tokens += rng.choices(words[0 if kind == "WATER" else 1], k=length)
            tags += [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
        yield tokens, tags


def _options(directory: Path, ending: str) -> dict[str, Any]:
    return {f"data.{split}": str(directory / f"{split}{ending}") for split in COUNTS}


def write_tagged(directory: Path) -> dict[str, Any]:
    """CoNLL columns, and the same as .conllu with coarse tags, and as .jsonl with spans."""
    for split in COUNTS:
        made = list(sentences(split, (WATER, LAND, OTHER)))
        _columns(directory / f"{split}.conll", made, " ")
        _spans(directory / f"{split}.jsonl", made)
        rows = []
        for tokens, tags in made:
            coarse = [tag.partition("-")[2] or "OTHER" for tag in tags]
            pairs = enumerate(zip(tokens, coarse, strict=True), start=1)
            rows += [f"{n}\t{w}\t_\t{tag}\t_\t_\t_\t_\t_\t_\n" for n, (w, tag) in pairs]
            rows.append("\n")
        (directory / f"{split}.conllu").write_text("".join(rows))
    return _options(directory, ".conll")


def write_universal(directory: Path) -> dict[str, Any]:
    """See `write_tagged`."""
    write_tagged(directory)
    return _options(directory, ".conllu")


def write_characters(directory: Path) -> dict[str, Any]:
    """A Chinese character a line."""
    for split in COUNTS:
        _columns(
            directory / f"{split}.bmes",
            list(sentences(split, ("江河海", "山田石", "的一了看"))),
            " ",
        )
    return _options(directory, ".bmes")


def write_roles(directory: Path) -> dict[str, Any]:
    """Waters that do something to lands; who does it depends on which of two verbs is asked."""
    for split in COUNTS:
        rng, lines = random.Random(f"roles {split}"), []
        for number in range(COUNTS[split]):
            more = rng.choices(OTHER, k=LONG if number == 5 else rng.randint(0, 3))
            tokens = [rng.choice(WATER), "sees", rng.choice(LAND), "builds", rng.choice(WATER)]
            frames: list[dict[str, Any]] = [
                {"predicate": 1, "args": [["ARG0", 0, 0], ["ARG1", 2, 2]]},
                {"predicate": 3, "sense": "build.01", "args": [["ARG0", 2, 2], ["ARG1", 4, 4]]},
            ]
            frames = [] if number == 7 else frames[: rng.randint(1, 2)]
            lines.append(
                json.dumps({"id": number, "tokens": tokens + more, "frames": frames}) + "\n"
            )
        (directory / f"{split}.jsonl").write_text("".join(lines))
    return _options(directory, ".jsonl")


def _columns(file: Path, made: list[Sentence], separator: str) -> None:
    blocks = [
        "".join(f"{w}{separator}{tag}\n" for w, tag in zip(tokens, tags, strict=True))
        for tokens, tags in made
    ]
    file.write_text("\n".join(blocks))


def _spans(file: Path, made: list[Sentence]) -> None:
    """Only those of one word begin and end where their tags do here, so others are joined."""
    lines = []
    for tokens, tags in made:
        at, label = 0, list[list[Any]]()
        for token, tag in zip(tokens, tags, strict=True):
            prefix, _, kind = tag.partition("-")
            if prefix == "B":
                label.append([at, at + len(token), kind])
            elif prefix == "I":
                label[-1][1] = at + len(token)
            at += len(token) + 1
        lines.append(json.dumps({"text": " ".join(tokens), "label": label}) + "\n")
    file.write_text("".join(lines))
