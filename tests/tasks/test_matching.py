"""Matching: losses equal their formulas, what is no negative is none, scores are scikit-learn's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.data.batch import build_batch
from ptft_lightning.data.example_rows import pack_examples
from ptft_lightning.data.examples import Columns, Encoded, Example, documents_of
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.contrast import contrast
from ptft_lightning.tasks.matching import Matching
from ptft_lightning.tasks.matching_scores import (
    agreement,
    best_cutoff,
    decisions,
    detection,
    places,
    retrieval,
)
from ptft_lightning.tasks.pairs import Pair, read_pairs

LENGTH = 24


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def by_hand(u: np.ndarray, candidates: list[np.ndarray], own: int, t: float) -> float:
    """-log of the share of the right candidate, in float64."""
    shares = np.exp(np.array([u.astype(float) @ c.astype(float) for c in candidates]) / t)
    return -math.log(shares[own] / shares.sum())


def test_contrast_is_the_formula_with_hard_negatives() -> None:
    u, v = unit(4, 8), unit(4, 3, 8, seed=1)
    keys = torch.arange(1, 17).view(4, 4)
    term = contrast(u, v, keys, torch.ones(4, dtype=torch.bool), 0.1, False, gather=False)
    every = [*v[:, 0].numpy(), *v[:, 1:].reshape(-1, 8).numpy()]
    wanted = sum(by_hand(u[i].numpy(), every, i, 0.1) for i in range(4))
    assert float(term.total) == pytest.approx(wanted, rel=1e-5)
    assert int(term.count) == 4
    assert term.nominal is None  # divided by the pairs of the step that match


def test_both_directions_are_averaged() -> None:
    u, v = unit(3, 8), unit(3, 1, 8, seed=1)
    keys = torch.arange(1, 7).view(3, 2)
    term = contrast(u, v, keys, torch.ones(3, dtype=torch.bool), 0.2, True, gather=False)
    first, second = [*u.numpy()], [*v[:, 0].numpy()]
    wanted = sum(by_hand(first[i], second, i, 0.2) for i in range(3))
    wanted += sum(by_hand(second[i], first, i, 0.2) for i in range(3))
    assert float(term.total) == pytest.approx(wanted / 2, rel=1e-5)


def test_copies_and_other_matches_are_no_negatives_and_known_mismatches_are() -> None:
    """Pairs: a-x, b-x (a copy of x), a-y (another match of a), a-z (known not to match), empty."""
    keys = torch.tensor([[1, 10], [2, 10], [1, 11], [1, 12], [0, 0]])
    match = torch.tensor([True, True, True, False, False])
    v = unit(5, 1, 8, seed=1)
    u = unit(3, 8)[[0, 1, 0, 0, 2]]
    v[1] = v[0]
    term = contrast(u, v, keys, match, 0.1, False, gather=False)
    x, y, z = (v[i, 0].numpy() for i in (0, 2, 3))
    a, b = u[0].numpy(), u[1].numpy()
    wanted = by_hand(a, [x, z], 0, 0.1) + by_hand(b, [x, y, z], 0, 0.1)
    wanted += by_hand(a, [y, z], 0, 0.1)
    assert float(term.total) == pytest.approx(wanted, rel=1e-5)
    assert int(term.count) == 3


def test_no_match_has_no_gradient() -> None:
    u = unit(3, 8).requires_grad_()
    keys = torch.arange(1, 7).view(3, 2)
    for present in (keys, torch.zeros_like(keys)):
        none = torch.zeros(3, dtype=torch.bool)
        contrast(u, unit(3, 1, 8), present, none, 0.1, True, gather=False).total.backward()
        assert u.grad is not None
        assert torch.equal(u.grad, torch.zeros_like(u))


def test_places_are_counted_among_distinct_texts() -> None:
    rng = np.random.default_rng(0)
    names = [(f"q{i // 2}", f"p{rng.integers(0, 12)}") for i in range(20)]
    vector = dict(zip("qp", unit(2, 20, 8), strict=True))
    vectors = torch.stack(
        [torch.stack([vector["q"][int(q[1:])], vector["p"][int(p[1:])]]) for q, p in names]
    )
    match = [i % 3 > 0 for i in range(20)]
    found = places(vectors, names, match)
    assert [*found] == [i for i in range(20) if match[i]]
    known = {pair for pair, good in zip(names, match, strict=True) if good}
    for i, place in found.items():
        query, own = names[i]
        cosine = {p: float(vectors[i, 0] @ vector["p"][int(p[1:])]) for _, p in names}
        better = [p for p in cosine if p != own and (query, p) not in known]
        assert place == 1 + sum(cosine[p] >= cosine[own] for p in better)


def test_vectors_that_are_no_numbers_come_last() -> None:
    vectors = torch.full((6, 2, 8), torch.nan)
    found = places(vectors, [(f"q{i}", f"p{i}") for i in range(6)], [True] * 6)
    assert [*found.values()] == [7] * 6


def test_vectors_that_are_all_the_same_find_nothing() -> None:
    vectors = unit(1, 1, 8).expand(6, 2, 8)
    found = places(vectors, [(f"q{i}", f"p{i}") for i in range(6)], [True] * 6)
    assert [*found.values()] == [6] * 6
    values = retrieval([*found.values()])
    assert values == {
        "mrr": pytest.approx(1 / 6),
        "recall_at_1": 0.0,
        "recall_at_5": 0.0,
        "recall_at_10": 1.0,
    }


def test_scores_equal_scipy_and_sklearn() -> None:
    rng = np.random.default_rng(1)
    cosines, gold = np.round(rng.uniform(-1, 1, 60), 1), rng.integers(0, 5, 60)
    match = gold >= 3
    got = agreement(cosines.tolist(), gold.tolist())
    assert got["spearman"] == pytest.approx(stats.spearmanr(cosines, gold).statistic, abs=1e-6)
    assert got["pearson"] == pytest.approx(stats.pearsonr(cosines, gold).statistic)
    cutoff = best_cutoff(cosines.tolist(), match.tolist())
    tried = [accuracy_score(match, cosines >= c) for c in [-2, *np.unique(cosines), 2]]
    assert accuracy_score(match, cosines >= cutoff) == max(tried)
    values = detection(cosines.tolist(), match.tolist(), cutoff)
    called = cosines >= cutoff
    assert values["accuracy"] == pytest.approx(accuracy_score(match, called))
    assert values["f1"] == pytest.approx(f1_score(match, called))
    wanted = average_precision_score(match, cosines)
    assert values["average_precision"] == pytest.approx(wanted, abs=1e-6)
    assert math.isnan(agreement([0.5] * 3, [1, 2, 3])["spearman"])
    truth, guess = ["a", "b", "c", "a"], ["a", "c", "c", "b"]
    wanted = f1_score(truth, guess, average="macro")
    assert decisions(truth, guess) == {"accuracy": 0.5, "macro_f1": pytest.approx(wanted)}


PAIRS = [
    Pair("The river reads.", "A green stone.", None, "f line 1", score=4.0),
    Pair("The river reads.", "Water", None, "f line 2", score=1.0),
    Pair("snow on the hill " * 9, "letter", None, "f line 3", score=5.0),
    Pair("a text alone", None, None, "f line 4"),
]


def outputs(task: Matching, tokenizer: Tokenizer, order: list[int], length: int) -> torch.Tensor:
    """Scores of pairs in that order, -1 for an empty slot, in rows of a length."""
    torch.manual_seed(0)
    shape = TransformerConfig(dim=32, depth=2, heads=2, max_length=64, positions="learned")
    backbone = Transformer(shape, tokenizer.size).eval()
    head = task.build_head(backbone, [])
    encoded = task.encode([*PAIRS], [], tokenizer, LENGTH)
    chosen = [encoded[i] if i >= 0 else Encoded([], []) for i in order]
    read = documents_of(chosen)
    tokens, documents, _, rows, starts = pack_examples(read, length, tokenizer.pad)
    targets = task.targets(read, rows, starts)
    batch = build_batch(tokens, documents, np.array(order), targets, len(order))
    with torch.no_grad():
        hidden = backbone(batch.tokens, batch.documents, batch.positions, batch.segments)
        output = head(hidden, batch)
    assert output.scores is not None
    term = output.terms["matching"]
    return torch.cat([output.scores.flatten(), term.total[None], term.count[None]])


@pytest.mark.parametrize("loss", ["contrastive", "cosine"])
def test_texts_are_read_apart_however_they_are_packed(loss: str, wordpiece: Tokenizer) -> None:
    """Rows that hold several texts, pairs split over rows, and each text in a row of its own."""
    task = Matching(loss=loss, threshold=3 if loss == "contrastive" else None, high=5)
    order = [2, 0, 3, -1, 1]
    wanted = outputs(task, wordpiece, order, LENGTH)
    for length in (25, 40, 64):
        got = outputs(task, wordpiece, order, length)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert wanted[-1] == (2 if loss == "contrastive" else 3)


def test_what_may_be_monitored_depends_on_the_loss() -> None:
    assert Matching().monitor == "val_mrr"
    assert Matching("cosine").monitor == "val_spearman"
    assert Matching(threshold=1.0, monitor="f1").monitor == "val_f1"
    with pytest.raises(UserError, match=r"task\.monitor is 'f1'.*there are mrr"):
        Matching(monitor="f1")
    with pytest.raises(UserError, match=r"gather is for task\.loss contrastive"):
        Matching("cosine", gather=True)
    with pytest.raises(UserError, match="temperature is 0"):
        Matching(temperature=0.0)
    with pytest.raises(UserError, match=r"task\.high is 0"):
        Matching("cosine", low=1.0, high=0.0)


def test_a_task_is_rebuilt_from_its_config() -> None:
    task = Matching("contrastive", "last", 2.0, 0, 5, 0.1, True, ["bad"], True, "average_precision")
    assert Matching(**task.config()).config() == task.config()


def test_pairs_need_a_label_and_texts(tmp_path: Path) -> None:
    rows = [{"text": "a", "pair": "b", "label": label, "no": "c"} for label in ("yes", "")]
    columns, bad = Columns(pair="pair"), BadExamples("skip")

    def read(rows: list[dict[str, Any]], negatives: list[str]) -> list[Example]:
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_pairs(str(tmp_path / "t.jsonl"), columns, True, "name", negatives, bad)

    (found,) = read(rows, ["no"])
    assert (found.label, isinstance(found, Pair) and found.negatives) == ("yes", ("c",))
    assert [reason[:18] for _, reason in bad.found] == ["the label is empty"]
    with pytest.raises(UserError, match=r"line 1: 'no' is \['c', 'd'\], no text"):
        read([rows[0] | {"no": ["c", "d"]}], ["no"])
