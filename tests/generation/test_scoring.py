"""Scores are sums of the model's log-probabilities, each token's once."""

from __future__ import annotations

import math

import pytest
import torch

from ptft_lightning.generation.scoring import score_documents, windows_of

TEXTS = ["The river reads.", "的一是了", "a", "Evening music and stone bread and letter."]


def double(model):
    """The same in float64, to sum by."""
    model.backbone.double()
    model.head.double()
    return model


def test_causal_scores(build, bpe):
    model = build(bpe)
    documents = [bpe.frame(ids) for ids in bpe.encode(TEXTS)]
    found = score_documents(model, documents, 8, 3)
    double(model)
    for ids, one in zip(documents, found, strict=True):
        with torch.no_grad():
            hidden = model.backbone(torch.tensor([ids]))[0]
            logs = model.head.logits(hidden, model.backbone.embedding.weight).log_softmax(-1)
        wanted = [float(logs[i - 1, ids[i]]) for i in range(1, len(ids))]
        assert one.log_probabilities[0] is None
        assert one.log_probabilities[1:] == pytest.approx(wanted, abs=1e-3)
        assert one.tokens == len(ids) - 1
        assert one.total == pytest.approx(sum(wanted), abs=1e-2)
        assert one.perplexity == pytest.approx(math.exp(-sum(wanted) / len(wanted)), rel=1e-3)
        assert one.windows == 1


def masked_one(model, ids: list[int], place: int) -> float:
    """log p(token | all others), in float64."""
    row = list(ids)
    row[place] = model.tokenizer.mask
    with torch.no_grad():
        hidden = model.backbone(torch.tensor([row]))[0, place]
        logs = model.head.logits(hidden, model.backbone.embedding.weight).log_softmax(-1)
    return float(logs[ids[place]])


def test_masked_scores(build, bpe):
    model = build(bpe, causal=False)
    documents = [bpe.frame(ids) for ids in bpe.encode(TEXTS)]
    found = score_documents(model, documents, 8, 4)
    double(model)
    for ids, one in zip(documents, found, strict=True):
        wanted = [masked_one(model, ids, place) for place in range(1, len(ids) - 1)]
        assert (one.log_probabilities[0], one.log_probabilities[-1]) == (None, None)
        assert one.log_probabilities[1:-1] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("causal", [True, False])
def test_longer_texts_are_read_in_windows(build, bpe, causal):
    model = build(bpe, causal=causal)
    (ids,) = bpe.encode([" ".join(TEXTS * 5)])
    ids = bpe.frame(ids)
    assert len(ids) > 90
    (found,) = score_documents(model, [ids], 10, 7)
    double(model)
    assert found.windows == len(windows_of(0, len(ids), 32, 10))
    for place, value in enumerate(found.log_probabilities):
        if place == 0 or (place == len(ids) - 1 and not causal):
            assert value is None
            continue
        # The first window that reads the token.
        start = max(0, -(-(place - 31) // 10) * 10)
        if causal:
            with torch.no_grad():
                hidden = model.backbone(torch.tensor([ids[start:place]]))[0, -1]
            logits = model.head.logits(hidden, model.backbone.embedding.weight)
            wanted = float(logits.log_softmax(-1)[ids[place]])
        else:
            wanted = masked_one(model, ids[start : start + 32], place - start)
        assert value == pytest.approx(wanted, abs=1e-3)


def test_documents_without_tokens(build, bpe):
    empty, alone = score_documents(build(bpe), [[], [7]], 8, 4)
    assert (empty.tokens, empty.total, alone.tokens, alone.total) == (0, 0.0, 0, 0.0)
    assert math.isnan(alone.perplexity)
