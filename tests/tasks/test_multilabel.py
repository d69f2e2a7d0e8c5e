"""Multi-label: scores equal scikit-learn's, empty slots count for nothing, none is a choice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score

from ptft_lightning.data.batch import build_batch
from ptft_lightning.data.examples import Encoded, Example
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.multilabel import MultiLabel, MultiLabelHead
from ptft_lightning.terms import IGNORE

LABELS = ["a", "b", "c", "d"]


@pytest.mark.parametrize("threshold", [0.5, 0.3])
@pytest.mark.parametrize("narrow", [False, True])
def test_metrics_equal_sklearn(threshold: float, narrow: bool) -> None:
    """Also where a label never occurs, and where all logits of a batch lie between 0 and 1."""
    rng = np.random.default_rng(0)
    metrics = MultiLabel(threshold=threshold).metrics(LABELS)
    truths, guesses = [], []
    for size in (7, 1, 12, 4):
        labels = (rng.random((size, 4)) < 0.4).astype(np.int64)
        labels[:, 3] = 0
        scores = rng.random((size, 4)) if narrow else rng.normal(size=(size, 4)) + labels
        empty = rng.random(size) < 0.3
        given = np.where(empty[:, None], IGNORE, labels)
        metrics.update(torch.from_numpy(scores), torch.from_numpy(given))
        truths.append(labels[~empty])
        guesses.append(1 / (1 + np.exp(-scores[~empty])) > threshold)
    metrics.update(torch.zeros(2, 4), torch.full((2, 1), IGNORE))  # nothing but empty slots
    got = {name: float(value) for name, value in metrics.compute().items()}
    truth, guess = np.concatenate(truths), np.concatenate(guesses)
    assert got == pytest.approx(
        {
            "micro_f1": f1_score(truth, guess, average="micro"),
            "macro_f1": f1_score(truth, guess, average="macro", zero_division=0),
            "subset_accuracy": accuracy_score(truth, guess),
        }
    )
    assert 0 < got["micro_f1"] < 1


def test_loss_is_the_mean_over_labels() -> None:
    torch.manual_seed(0)
    head = MultiLabelHead(8, 4, "first", dropout=0.0)
    hidden, at = torch.randn(2, 5, 8, requires_grad=True), np.arange(3)
    labels = np.array([[0, 1, 0, 1], [IGNORE] * 4, [0, 0, 0, 0]])
    targets = {"row": at % 2, "start": at, "end": at + 1, "label": labels}
    ones = np.ones((2, 5), np.int64)
    output = head(hidden, build_batch(ones, ones, at, targets, 3))
    term = output.terms["multilabel"]
    picked = torch.from_numpy(labels)[[0, 2]].float()
    wanted = F.binary_cross_entropy_with_logits(output.scores[[0, 2]], picked)
    torch.testing.assert_close(term.total / term.count, wanted)
    assert (term.count, term.nominal) == (8, 4.0)

    targets["label"] = np.full((3, 1), IGNORE)  # a micro-batch of empty slots
    term = head(hidden, build_batch(ones, ones, at, targets, 3)).terms["multilabel"]
    term.total.backward()
    assert (term.total.item(), term.count.item()) == (0, 0)
    assert head.classifier.weight.grad.abs().max() == 0


def test_labels_of_lists_and_of_single_words(bpe: Tokenizer) -> None:
    task = MultiLabel()
    examples = [
        Example("x", None, None, "line 1", ["d", "a"]),
        Example("x", None, None, "line 2", []),
        Example("x", None, "c", "line 3"),
        Example("x", None, "", "line 4"),
        Example("x", None, None, "line 5"),  # to be predicted
    ]
    assert task.schema(examples) == ["a", "c", "d"]
    encoded = [*task.encode(examples, LABELS, bpe, 16), Encoded([], [])]
    at = np.zeros(6, np.int64)
    assert task.targets(encoded, at, at)["label"].tolist() == [
        *([1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]),
        *([IGNORE] * 4, [IGNORE] * 4),
    ]
    assert task.targets(encoded[4:], at[:2], at[:2])["label"].tolist() == [[IGNORE], [IGNORE]]
    with pytest.raises(UserError, match="two labels or more, the training file has"):
        task.schema(examples[1:2])


def test_record_lists_what_is_above_the_threshold() -> None:
    scores = torch.tensor([0.0, 2.0, -1.0, 0.1])
    record = MultiLabel().record(scores, LABELS)
    assert record["labels"] == ["b", "d"]
    wanted = dict(zip(LABELS, scores.sigmoid().tolist(), strict=True))
    assert record["probabilities"] == pytest.approx(wanted, abs=1e-6)
    assert MultiLabel(threshold=0.9).record(scores, LABELS)["labels"] == []


def test_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"task\.threshold is 1"):
        MultiLabel(threshold=1)
