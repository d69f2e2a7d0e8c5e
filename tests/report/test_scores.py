"""Scores of kept predictions against scikit-learn, scipy, torchmetrics and sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from torchmetrics.functional.classification import binary_calibration_error

from ptft_lightning.report.scores import (
    confusion,
    kind_of,
    label_scores,
    of_a_kind,
    pearson,
    predicted_number,
    reliability,
    spearman,
)


@pytest.mark.parametrize("classes", [2, 7, 100])
def test_confusion_precision_recall_f1_are_sklearn_s(classes):
    rng = np.random.default_rng(classes)
    labels = [f"label {i:03}" for i in range(classes)]
    gold = rng.choice(labels, 300).tolist()
    # The last label is never predicted, and for many classes some are not even gold.
    predicted = [g if rng.random() < 0.6 else rng.choice(labels[:-1]) for g in gold]
    matrix = confusion(gold, predicted, labels)
    assert (matrix == metrics.confusion_matrix(gold, predicted, labels=labels)).all()
    scores = label_scores(matrix.diagonal(), matrix.sum(0), matrix.sum(1))
    theirs = metrics.precision_recall_fscore_support(
        gold, predicted, labels=labels, zero_division=0
    )
    for mine, other in zip(
        (scores.precision, scores.recall, scores.f1, scores.support), theirs, strict=True
    ):
        np.testing.assert_allclose(mine, other)
    macro = metrics.f1_score(gold, predicted, average="macro", zero_division=0)
    assert scores.macro_f1 == pytest.approx(macro)


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.97, 0.62, 0.66, 0.64])
    right = np.array([True, False, True, True, False])
    bins = reliability(confidence, right, bins=10)
    assert bins.count.tolist() == [0, 0, 0, 0, 0, 0, 3, 0, 0, 2]
    assert bins.accuracy[6] == pytest.approx(2 / 3)
    assert bins.confidence[9] == pytest.approx(0.96)
    by_hand = 3 / 5 * abs(2 / 3 - 0.64) + 2 / 5 * abs(0.5 - 0.96)
    assert bins.error == pytest.approx(by_hand)


def test_calibration_error_is_torchmetrics():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 500)
    right = rng.uniform(0, 1, 500) < confidence**2
    theirs = binary_calibration_error(
        torch.tensor(confidence), torch.tensor(right, dtype=torch.long), n_bins=15
    )
    assert reliability(confidence, right).error == pytest.approx(float(theirs), abs=1e-6)


def test_the_ends_of_the_scale_have_a_bin():
    bins = reliability(np.array([0.0, 1.0]), np.array([False, True]))
    assert bins.count.tolist() == [1] + [0] * 13 + [1]
    assert bins.error == 0


def test_correlations_are_scipy_s():
    rng = np.random.default_rng(1)
    gold = rng.integers(0, 6, 200).astype(float)  # many ties
    predicted = gold + rng.normal(0, 2, 200).round(1)
    assert pearson(gold, predicted) == pytest.approx(stats.pearsonr(gold, predicted)[0])
    assert spearman(gold, predicted) == pytest.approx(stats.spearmanr(gold, predicted)[0])
    assert np.isnan(pearson(gold, np.ones(200)))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ({"gold": "a", "label": "a", "probabilities": {"a": 0.9, "b": 0.1}}, "classes"),
        ({"gold": ["a"], "labels": ["b"], "probabilities": {"a": 0.4, "b": 0.6}}, "labels"),
        ({"number": 3, "text": "x", "gold": "2.5", "value": 2.25}, "number"),
        ({"number": 3, "text": "x", "gold": "2.5", "tags": ["O"]}, "other"),
        ({"number": 3, "text": "x", "gold": "2.5", "start": 1, "end": 2}, "other"),
    ],
)
def test_the_kind_is_told_from_a_line(line, kind):
    assert kind_of(line) == kind
    assert predicted_number(line) == (2.25 if kind == "number" else None)


def test_lines_that_do_not_fit_are_left_out():
    scores = {"a": 0.9, "b": 0.1}
    good = {"gold": "a", "label": "a", "probabilities": scores}
    bad = [{"gold": "c"}, {"label": "c"}, {"probabilities": {"a": 1.0}}, {"gold": None}]
    assert of_a_kind([good, *(good | b for b in bad), good], "classes") == [good, good]
    several = {"gold": "a", "labels": ["b"], "probabilities": scores}
    found = of_a_kind([several, several | {"gold": ["c"]}, several | {"gold": []}], "labels")
    assert [line["gold"] for line in found] == [["a"], []]
    number = {"gold": "1.5", "value": 2.0}
    found = of_a_kind([number, *(number | {"gold": g} for g in ("x", None, "nan"))], "number")
    assert [line["gold"] for line in found] == [1.5]
