"""The contamination guard on published sets: copies planted in Wikipedia. Needs PTFT_DATA."""

from __future__ import annotations

import gzip
import json
import os
import random
from itertools import islice
from pathlib import Path

import pytest

from ptft_lightning.data.overlap import Needles, look_in

# Corpus, its documents, test set, a strange unit, and least recall by how the copies were edited:
# one in the middle of a sentence of less than 17 words leaves no eight in a row at either side.
CASES = {
    "sst2": (
        *("en_wiki/train.jsonl.gz", 4000, "sst2/test.tsv", "zzzz"),
        {"exact": 0.97, "case": 0.97, "word": 0.6},
    ),
    "agnews": (
        *("en_wiki/train.jsonl.gz", 4000, "agnews_test/test.csv", "zzzz"),
        {"exact": 0.99, "case": 0.99, "word": 0.95, "third": 0.75},
    ),
    "thucnews": (
        *("zh_wiki_15mb/train.jsonl.gz", 3000, "thucnews_mini/test.tsv.gz", "囧"),
        {"exact": 0.97, "case": 0.97, "word": 0.75},
    ),
}
TEXTS, PLANTED = 1000, 200


def lines_of(file: Path) -> list[str]:
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as stream:
        return list(islice(stream, 15000))


def edited(text: str, kind: str, strange: str, rng: random.Random) -> str:
    glue = "" if strange == "囧" else " "
    units = text.split() if glue else list(text)
    if kind == "word":
        units[rng.randrange(len(units))] = strange
    if kind == "third":
        units = units[len(units) // 3 : 2 * len(units) // 3]
    text = glue.join(units)
    return text.upper().translate({ord(c): None for c in ",.，。'"}) if kind == "case" else text


@pytest.mark.real
@pytest.mark.parametrize("name", CASES)
def test_copies_planted_in_wikipedia(name: str) -> None:
    root = os.environ.get("PTFT_DATA")
    assert root, "PTFT_DATA is not set: name the directory of the data sets"
    corpus, count, tests, strange, least = CASES[name]
    documents = [json.loads(x)["text"] for x in lines_of(Path(root) / corpus)[:count]]
    texts = [line.strip().split("\t")[0] for line in lines_of(Path(root) / tests)][1 : TEXTS + 1]
    clean = Needles([[text] for text in texts])
    look_in(documents, 0, 0, clean)
    by_chance = {hit.example for hit in clean.hits(["train-00000"])}
    print(f"{name}: {len(by_chance)} of {TEXTS} flagged where nothing was planted")
    assert len(by_chance) <= TEXTS / 500
    for kind, recall in least.items():
        rng = random.Random(0)
        planted = rng.sample(range(TEXTS), PLANTED)
        copies = [edited(texts[i], kind, strange, rng) for i in planted]
        needles = Needles([[text] for text in texts])
        host = [f"{documents[n]}\n{copy}\n{documents[-n]}" for n, copy in enumerate(copies)]
        look_in(host, 0, 0, needles)
        found = {hit.example for hit in needles.hits(["train-00000"])} - by_chance
        right = found & set(planted)
        print(f"{name}, {kind}: recall {len(right) / PLANTED}, precision {len(right) / len(found)}")
        assert len(right) / PLANTED >= recall
        # Published sets hold some texts twice, or nearly so.
        assert len(right) / len(found) >= 0.93
