"""BLiMP (Warstadt et al. 2020): how often a model finds the grammatical one of a pair likelier.

67 sets of 1,000 pairs; chance is 50 %. Prints one JSON line a phenomenon with its sets, then all.
The sum of the log-probabilities decides (causal), or of the pseudo-log-likelihoods (masked).

    python benchmarks/blimp.py --init_from RUN --data blimp.tar.gz [--pairs 1000]
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptft_lightning.generation.model import LanguageModel
from ptft_lightning.generation.scoring import score_documents
from ptft_lightning.modules.loading import load_pretrained


def read_sets(place: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Name and pairs of each .jsonl file in a folder or .tar.gz."""
    if place.is_dir():
        for file in sorted(place.rglob("*.jsonl")):
            yield file.stem, [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        return
    with tarfile.open(place) as archive:
        for member in archive.getmembers():
            stream = archive.extractfile(member) if member.name.endswith(".jsonl") else None
            if stream is not None:
                yield Path(member.name).stem, [json.loads(line) for line in stream]


def right_answers(model: LanguageModel, pairs: list[dict[str, Any]], batch_size: int) -> int:
    """Pairs whose grammatical sentence is the likelier one; a tie is half right, rounded down."""
    texts = [pair[f"sentence_{kind}"] for kind in ("good", "bad") for pair in pairs]
    documents = [model.tokenizer.frame(ids) for ids in model.tokenizer.encode(texts)]
    scores = score_documents(model, documents, model.max_length // 2, batch_size)
    totals = [score.total for score in scores]
    good, bad = totals[: len(pairs)], totals[len(pairs) :]
    twice = sum(2 * (g > b) + (g == b) for g, b in zip(good, bad, strict=True))
    return twice // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init_from", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=1000, help="of each set, the first ones")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    net, bundle = load_pretrained(args.init_from, args.device)
    model = LanguageModel(net.backbone, net.head, bundle.tokenizer)
    sets: dict[str, dict[str, float]] = {}
    right = pairs = 0
    for name, found in read_sets(args.data):
        chosen = found[: args.pairs]
        correct = right_answers(model, chosen, args.batch_size)
        sets.setdefault(chosen[0]["linguistics_term"], {})[name] = correct / len(chosen)
        right, pairs = right + correct, pairs + len(chosen)
        print(f"{name}: {correct / len(chosen):.3f}", file=sys.stderr, flush=True)
    for term, own in sorted(sets.items()):
        mean = sum(own.values()) / len(own)
        print(json.dumps({"phenomenon": term, "accuracy": round(mean, 4), "sets": own}))
    count = sum(map(len, sets.values()))
    print(json.dumps({"accuracy": round(right / pairs, 4), "pairs": pairs, "sets": count}))


if __name__ == "__main__":
    main()
