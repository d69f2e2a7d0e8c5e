"""Weights of classes: scikit-learn's convention, a gradient that knows no neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from ptft_lightning.data.batch import build_batch
from ptft_lightning.data.examples import Example
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.class_weights import class_weights
from ptft_lightning.tasks.classification import Classification, ClassificationHead
from ptft_lightning.terms import IGNORE

LABELS = ["a", "b", "c"]
COUNTS = np.array([1, 4, 10])


def test_balanced_is_sklearn_s() -> None:
    labels = np.repeat([0, 1, 2], COUNTS)
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    weights = class_weights("balanced", COUNTS, LABELS)
    assert weights == pytest.approx(wanted)
    assert weights[labels].mean() == pytest.approx(1)


def test_balanced_leaves_out_a_class_without_examples() -> None:
    weights = class_weights("balanced", np.array([10, 30, 0]), ["a", "b", "c"])
    assert (weights[:2] * [10, 30]).sum() / 40 == pytest.approx(1)


def test_given_weights() -> None:
    assert class_weights({"c": 0.5}, COUNTS, LABELS).tolist() == [1, 1, 0.5]
    assert class_weights([3, 0, 1], COUNTS, LABELS).tolist() == [3, 0, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"d": 1.0}, r"names \['d'\], the labels are \['a', 'b', 'c'\]"),
        ([1.0, 2.0], r"has 2 numbers, there are 3 labels"),
        ([1.0, -2.0, 1.0], r"has -2.0: give finite numbers"),
        ({"a": float("nan")}, r"has nan: give finite numbers"),
    ],
)
def test_wrong_weights_are_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_weights(given, COUNTS, LABELS)


def test_training_examples_get_the_weight_of_their_class(bpe: Tokenizer) -> None:
    task = Classification(class_weights="balanced")
    examples = [Example("river", None, label, "here") for label in ("a", "b", "b", "c")]
    encoded = task.encode(examples, LABELS, bpe, 16)
    task.weigh(encoded, LABELS)
    rows = np.zeros(4, np.int64)
    wanted = [4 / 3, 2 / 3, 2 / 3, 4 / 3]
    assert task.targets(encoded, rows, rows)["weight"].tolist() == pytest.approx(wanted)
    fresh = task.encode(examples, LABELS, bpe, 16)  # as validation examples are: not weighed
    assert task.targets(fresh, rows, rows)["weight"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weight_and_smoothing_in_the_loss(smoothing: float) -> None:
    """Sum of weight x cross-entropy against the smoothed target; plain when evaluating."""
    torch.manual_seed(0)
    head = ClassificationHead(8, 3, "first", dropout=0.0, smoothing=smoothing)
    hidden, at = torch.randn(2, 5, 8), np.arange(4)
    labels, weights = np.array([0, 2, IGNORE, 1]), np.array([2.0, 0.5, 9.0, 1.0], np.float32)
    targets = {"row": at % 2, "start": at, "end": at + 1, "label": labels, "weight": weights}
    ones = np.ones((2, 5), np.int64)
    output = head(hidden, build_batch(ones, ones, at, targets, 4))
    logs = output.scores.log_softmax(-1)
    losses = []
    for i in (0, 1, 3):
        target = F.one_hot(torch.tensor(labels[i]), 3) * (1 - smoothing) + smoothing / 3
        losses.append(-float(weights[i]) * (target * logs[i]).sum())
    term = output.terms["classification"]
    torch.testing.assert_close(term.total, torch.stack(losses).sum())
    assert term.count == 3
    head.eval()
    del targets["weight"]
    term = head(hidden, build_batch(ones, ones, at, targets, 4)).terms["classification"]
    plain = F.cross_entropy(output.scores, torch.from_numpy(labels), reduction="sum")
    torch.testing.assert_close(term.total, plain)


def test_smoothing_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"task\.label_smoothing is 1\.0"):
        Classification(label_smoothing=1.0)
