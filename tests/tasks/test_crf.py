"""The chain CRF against the enumeration of all tags."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch

from ptft_lightning.tasks.crf import ChainCRF
from ptft_lightning.tasks.tags import PREFIXES, may_follow, scheme_of, tag_set

PLAIN = ["ADJ", "NOUN", "VERB"]
WORDS = 4


def made(labels: list[str]) -> tuple[ChainCRF, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A CRF, and emissions of chains of 4, 3, 1 and 0 words, with and without a sentence's ends."""
    torch.manual_seed(0)
    crf = ChainCRF(labels, scheme_of(labels))
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_()
    emissions = torch.randn(4, WORDS, len(labels))
    real = torch.arange(WORDS) < torch.tensor([[4], [3], [1], [0]])
    edges = torch.tensor([[True, True], [False, True], [True, False], [True, True]])
    return crf, emissions, real, edges


def all_scores(crf, labels, emissions, words, edges):
    """Tags -> score, in float64, of those that the scheme allows."""
    steps_of, start, end = crf.transitions.tolist(), crf.start_bias.tolist(), crf.end_bias.tolist()
    scheme = scheme_of(labels)
    scores = {}
    for tags in product(range(len(labels)), repeat=words):
        border = [None if edges[0] else "free", *(labels[t] for t in tags)]
        border.append(None if edges[1] else "free")
        steps = [s for s in pairwise(border) if "free" not in s]
        if scheme is not None and not all(may_follow(a, b, scheme) for a, b in steps):
            continue
        total = sum(float(emissions[i, t]) for i, t in enumerate(tags))
        total += sum(steps_of[a][b] for a, b in pairwise(tags))
        total += start[tags[0]] * bool(edges[0])
        total += end[tags[-1]] * bool(edges[1])
        scores[tags] = total
    return scores


@pytest.mark.parametrize("labels", [PLAIN, *(tag_set("AB", scheme) for scheme in PREFIXES)])
def test_losses_and_best_tags_are_those_of_enumeration(labels):
    crf, emissions, real, edges = made(labels)
    best = crf.best(emissions, real, edges)
    for chain, words in enumerate(real.sum(1).tolist()):
        if not words:
            continue
        scores = all_scores(crf, labels, emissions[chain], words, edges[chain])
        whole = torch.tensor(list(scores.values()), dtype=torch.float64).logsumexp(0)
        assert tuple(best[chain, :words].tolist()) == max(scores, key=scores.__getitem__)
        for tags in [max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)]:
            given = torch.zeros(4, WORDS, dtype=torch.long)
            given[chain, :words] = torch.tensor(tags)
            loss = crf.losses(emissions, given, real, edges)[chain]
            assert loss.item() == pytest.approx(float(whole) - scores[tags], abs=1e-3)


def test_a_chain_without_words_costs_nothing():
    crf, emissions, real, edges = made(tag_set("A", "BIO"))
    tags = torch.full((4, WORDS), 0)
    losses = crf.losses(emissions, tags, real, edges)
    assert losses[3] == 0
    (gradient,) = torch.autograd.grad(losses[3], crf.transitions)
    assert gradient.abs().sum() == 0


def test_padding_changes_nothing():
    crf, emissions, real, edges = made(tag_set("AB", "BIOES"))
    tags = crf.best(emissions, real, edges)
    losses = crf.losses(emissions, tags, real, edges)
    wider = torch.cat([emissions, torch.randn(4, 3, emissions.shape[2])], 1)
    more = torch.cat([real, torch.zeros(4, 3, dtype=torch.bool)], 1)
    padded = torch.cat([tags, torch.full((4, 3), 1)], 1)
    assert torch.allclose(crf.losses(wider, padded, more, edges), losses, atol=1e-5)
    again = crf.best(wider, more, edges)[:, :WORDS]
    assert torch.equal(again.where(real, 0), tags.where(real, 0))


def test_best_tags_are_well_formed():
    for scheme in PREFIXES:
        labels = tag_set("AB", scheme)
        crf, _, _, _ = made(labels)
        emissions, real = torch.randn(50, 7, len(labels)), torch.ones(50, 7, dtype=torch.bool)
        best = crf.best(emissions, real, torch.ones(50, 2, dtype=torch.bool))
        for row in best.tolist():
            tags = [None, *(labels[i] for i in row), None]
            assert all(may_follow(a, b, scheme) for a, b in pairwise(tags))
