"""Classification: scores equal scikit-learn's, pooling equals slow means, predictions read well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from ptft_lightning.data.batch import build_batch
from ptft_lightning.data.examples import Columns, Encoded, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.classification import Classification, ClassificationHead
from ptft_lightning.terms import IGNORE

LABELS = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("present", [5, 3])
def test_metrics_equal_sklearn(present: int) -> None:
    """Over several batches with empty slots; also where some labels never occur."""
    rng = np.random.default_rng(present)
    metrics = Classification().metrics(LABELS)
    truths, guesses = [], []
    for size in (7, 1, 12, 4):
        labels = rng.integers(0, present, size)
        scores = rng.normal(size=(size, 5))
        scores[:, present:] -= 100  # never guessed
        scores[np.arange(size), labels] += 1.0
        empty = rng.random(size) < 0.3
        given = np.where(empty, IGNORE, labels)
        metrics.update(torch.from_numpy(scores), torch.from_numpy(given))
        truths += labels[~empty].tolist()
        guesses += scores.argmax(-1)[~empty].tolist()
    got = metrics.compute()
    assert float(got["accuracy"]) == pytest.approx(accuracy_score(truths, guesses))
    assert float(got["macro_f1"]) == pytest.approx(f1_score(truths, guesses, average="macro"))
    assert float(got["mcc"]) == pytest.approx(matthews_corrcoef(truths, guesses))
    assert 0 < float(got["accuracy"]) < 1

    metrics.reset()
    metrics.update(torch.eye(5), torch.arange(5))
    assert float(metrics.compute()["accuracy"]) == 1


@pytest.mark.parametrize(
    ("truths", "guesses"),
    [
        ([0, 1, 1, 0], [0, 0, 0, 0]),  # always the same
        ([1, 1, 1], [1, 1, 1]),  # one class alone
        ([0, 1, 0], [1, 0, 1]),  # all wrong
        ([0, 1, 1, 0, 1], [0, 1, 0, 0, 1]),
    ],
)
def test_matthews_of_two_classes_equals_sklearn(truths: list[int], guesses: list[int]) -> None:
    metrics = Classification().metrics(["no", "yes"])
    metrics.update(torch.eye(2)[guesses], torch.tensor(truths))
    wanted = matthews_corrcoef(truths, guesses)
    assert float(metrics.compute()["mcc"]) == pytest.approx(wanted, abs=1e-12)


def attend(head: ClassificationHead, hidden: torch.Tensor) -> torch.Tensor:
    """(tokens, dim) of one example -> (dim,)."""
    assert head.query is not None
    return (hidden @ head.query.weight[0]).softmax(0) @ hidden


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "attention"])
def test_pooling_reads_its_example_alone(pooling: str) -> None:
    torch.manual_seed(0)
    head = ClassificationHead(8, 3, pooling, dropout=0.0)
    hidden = torch.randn(2, 10, 8)
    spans = [(0, 0, 4), (0, 4, 9), (1, 2, 3), (1, 0, 2)]
    row, start, end = np.array(spans).T
    targets = {"row": row, "start": start, "end": end, "label": np.array([0, 2, IGNORE, 1])}
    documents = np.ones((2, 10), np.int64)
    output = head(hidden, build_batch(documents, documents, np.arange(4), targets, 4))
    pick = {
        "mean": lambda h: h.mean(0),
        "first": lambda h: h[0],
        "last": lambda h: h[-1],
        "attention": lambda h: attend(head, h),
    }[pooling]
    wanted = torch.stack([head.classifier(pick(hidden[r, s:e])) for r, s, e in spans])
    assert output.scores is not None
    torch.testing.assert_close(output.scores, wanted)
    term = output.terms["classification"]
    losses = -wanted.log_softmax(-1)
    torch.testing.assert_close(term.total, losses[0, 0] + losses[1, 2] + losses[3, 1])
    assert term.count == 3


def test_targets_point_at_each_example(bpe: Tokenizer) -> None:
    task = Classification()
    examples = [
        Example("river stone", None, "b", "line 1"),
        Example("green", "blue", None, "line 2"),
    ]
    encoded = [*task.encode(examples, LABELS, bpe, 32), Encoded([], [])]
    targets = task.targets(encoded, np.array([1, 0, 0]), np.array([3, 0, 0]))
    lengths = [len(e.tokens) for e in encoded]
    assert targets["end"].tolist() == [3 + lengths[0], lengths[1], 1]
    assert targets["label"].tolist() == [1, IGNORE, IGNORE]


def test_labels_are_those_of_the_training_file() -> None:
    task = Classification()

    def labelled(*labels: str) -> list[Example]:
        return [Example("x", None, label, f"line {i}") for i, label in enumerate(labels)]

    assert task.schema(labelled("no", "yes", "no")) == ["no", "yes"]
    assert task.schema(labelled("10", "9", "-1", "2.5")) == ["-1", "2.5", "9", "10"]
    assert task.schema(labelled("10", "9", "x")) == ["10", "9", "x"]
    with pytest.raises(UserError, match="two labels or more"):
        task.schema(labelled("no", "no"))


def test_record_names_the_likeliest_label() -> None:
    record = Classification().record(torch.tensor([0.0, 3.0, 1.0]), ["a", "b", "c"])
    assert record["label"] == "b"
    assert list(record["probabilities"]) == ["a", "b", "c"]
    assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_an_empty_field_is_no_label(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\ngood,pos\nhm,\nwell, \nbad,neg\n")
    bad = BadExamples("skip")
    found = Classification().read(str(tmp_path / "t.csv"), Columns(), True, bad)
    assert [e.label for e in found] == ["pos", "neg"]
    assert [place.rpartition(" ")[2] for place, _ in bad.found] == ["3", "4"]
    assert bad.found[0][1].startswith("the label is empty")
