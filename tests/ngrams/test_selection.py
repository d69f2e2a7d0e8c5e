"""Choosing text that is like another: against the formulas, and from a heap that is known."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from faults.kit import call, done, words

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.ngrams.selection import BUCKETS, HashedImportance, MooreLewis, gumbel, hashed

RIVER = ["river", "water", "blue", "silver", "mountain", "stone", "green", "winter"]
PAPER = ["paper", "letter", "reads", "writes", "question", "answer", "number", "text"]


def sentences(own: list[str], count: int, seed: int) -> list[str]:
    """Mostly of one field's words, some of the other's."""
    rng = random.Random(seed)
    every = RIVER + PAPER
    return [
        " ".join(rng.choice(own if rng.random() < 0.8 else every) for _ in range(12))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A heap of 300 documents, 100 of them of the target's field."""
    at = tmp_path_factory.mktemp("heap")
    heap = [(t, "river") for t in sentences(RIVER, 100, 1)]
    heap += [(t, "paper") for t in sentences(PAPER, 200, 2)]
    random.Random(0).shuffle(heap)
    texts = {"heap": [t for t, _ in heap], "target": sentences(RIVER, 60, 3)}
    for name, some in texts.items():
        lines = [json.dumps({"text": t}) for t in some]
        (at / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (at / "field.json").write_text(json.dumps(dict(heap)))
    return {name: at / f"{name}.jsonl" for name in texts} | {"field": at / "field.json"}


def choose(heap: dict[str, Path], tokenizer: Path, output: Path, **more) -> list[dict]:
    given = {"files": [str(heap["heap"])], "tokenizer": str(tokenizer), "output": str(output)}
    if more.get("method") != "random":
        given["target"] = [str(heap["target"])]
    done(words("select", given | {"documents": 100} | more))
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.parametrize(
    ("method", "least"), [("moore_lewis", 95), ("dsir", 80), ("random", 20)], ids=str
)
def test_the_target_s_field_is_found(heap, bpe_path, tmp_path, method, least):
    chosen = choose(heap, bpe_path, tmp_path / "out.jsonl", method=method)
    field = json.loads(heap["field"].read_text())
    right = sum(field[line["text"]] == "river" for line in chosen)
    assert len(chosen) == 100
    assert right >= least
    assert method != "random" or right <= 50
    texts = [json.loads(line)["text"] for line in heap["heap"].read_text().splitlines()]
    places = [texts.index(line["text"]) for line in chosen]
    assert places == sorted(places)


def test_the_same_again_and_another_with_another_seed(heap, bpe_path, tmp_path):
    runs = [
        choose(heap, bpe_path, tmp_path / f"{i}.jsonl", method="dsir", seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    (tmp_path / "3").mkdir()
    third = {"documents": None, "share": 1 / 3}
    chosen = choose(heap, bpe_path, tmp_path / "3" / "out.jsonl", **third)
    lengths = [len(line["text"]) for line in chosen]
    every = [len(json.loads(line)["text"]) for line in heap["heap"].read_text().splitlines()]
    assert 0 <= sum(lengths) - sum(every) / 3 < max(lengths)


def test_a_seed_may_be_long(heap, bpe_path, tmp_path):
    found = choose(heap, bpe_path, tmp_path / "a.jsonl", method="dsir", seed=2**63 - 1)
    assert len(found) == 100


def test_a_file_without_documents_is_told_and_passed_over(heap, bpe_path, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    files = [str(tmp_path / "empty.jsonl"), str(heap["heap"])]
    chosen = choose(heap, bpe_path, tmp_path / "out.jsonl", files=files)
    assert chosen == choose(heap, bpe_path, tmp_path / "again.jsonl")
    given_ = {"files": files, "tokenizer": str(bpe_path), "method": "random", "share": 0.1}
    said = done(words("select", given_ | {"output": str(tmp_path / "random.jsonl")})).err
    assert said.count(f"1 of 2 files hold no documents: '{files[0]}'") == 1
    run = call(words("select", given_ | {"files": files[:1], "output": str(tmp_path / "none")}))
    assert f"no documents in '{files[0]}'" in run.errors[-1]


def test_moore_lewis_is_the_mean_difference_of_two_models(bpe: Tokenizer):
    target, general, heap = (
        [bpe.frame(ids) for ids in bpe.encode(sentences(own, 40, seed))]
        for seed, own in enumerate((RIVER, PAPER, RIVER))
    )
    weigher = MooreLewis(target, general, bpe, order=2)
    found = weigher.weigh(heap)
    for weight, document in zip(found, heap, strict=True):
        (one,), (other,) = (model.score([document]) for model in weigher.models)
        assert weight == pytest.approx((one.sum() - other.sum()) / len(document))
    assert (found > 0).mean() > 0.9


def test_importance_is_the_sum_over_buckets(bpe: Tokenizer):
    target, general = (
        [bpe.frame(ids) for ids in bpe.encode(sentences(own, 40, 5))] for own in (RIVER, PAPER)
    )
    weigher = HashedImportance(target, general)
    shares = []
    for text in (target, general):
        counts = Counter(b for document in text for b in hashed(document).tolist())
        total = sum(counts.values()) + BUCKETS
        shares.append({b: (counts[b] + 1) / total for b in range(BUCKETS)})
    document = general[0]
    assert len(hashed(document)) == 2 * len(document) - 1
    buckets = hashed(document).tolist()
    expected = math.fsum(math.log(shares[0][b] / shares[1][b]) for b in buckets)
    assert weigher.weigh([document])[0] == pytest.approx(expected)


def test_noise_makes_a_sample_in_proportion_to_the_weights():
    weights = np.log([0.6, 0.3, 0.1])
    first = Counter(int(np.argmax(weights + gumbel(seed, ["a", "b", "c"]))) for seed in range(4000))
    assert [first[i] / 4000 for i in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"documents": 301}, "there are 300"),
        ({"share": 0.5}, "one of them"),
        ({"documents": 0}, "--documents 0"),
        ({"target": None}, "give --target"),
        ({"method": "random"}, "--method random: leave --target out"),
        ({"order": 9}, "--order is 9: give 1 to 5"),
        ({"files": ["nowhere.jsonl"]}, "nowhere.jsonl"),
        ({"output": "HEAP"}, "is there already"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_mistakes_are_one_line(change, said, heap, bpe_path, tmp_path):
    given = {"files": [str(heap["heap"])], "target": [str(heap["target"])], "documents": 10}
    given |= {"tokenizer": str(bpe_path), "output": str(tmp_path / "out.jsonl")} | change
    given["output"] = given["output"].replace("HEAP", str(heap["heap"]))
    run = call(words("select", given))
    assert run.code == 2
    assert said in run.err
    assert len(run.errors) == 1
