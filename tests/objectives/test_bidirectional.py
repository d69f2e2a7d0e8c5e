"""The bidirectional language model against its formula, in float64, document by document."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from ptft_lightning.data.batch import build_batch
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.modules.nets import PretrainNet, build_backbone
from ptft_lightning.objectives.bidirectional import BidirectionalLM
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.terms import IGNORE

VOCABULARY = 30
DOCUMENTS = np.array([[1] * 5 + [2] * 4 + [3], [1] * 10, [1] * 6 + [0] * 4])


def make(tokens: np.ndarray, documents: np.ndarray, tokenizer: Tokenizer) -> Any:
    return BidirectionalLM().make(tokens, documents, np.arange(len(tokens)), 0, tokenizer)


@given(
    documents=st.tuples(st.integers(1, 4), st.integers(2, 12)).flatmap(
        lambda shape: arrays(np.int64, shape, elements=st.integers(0, 2))
    )
)
def test_targets_against_a_slow_reference(bpe: Tokenizer, documents: np.ndarray) -> None:
    tokens = np.arange(documents.size).reshape(documents.shape)
    shown, targets = make(tokens, documents, bpe)
    assert (shown == tokens[:, :-1]).all()
    for row, column in np.ndindex(*shown.shape):
        for name, step in (("after", 1), ("before", -1)):
            other, here = column + step, documents[row, column]
            there = other >= 0 and here > 0 and documents[row, other] == here
            expected = tokens[row, other] if there else IGNORE
            assert targets[name][row, column] == expected


def net_of(tied: bool, **shape: Any) -> PretrainNet:
    config = {"dim": 12, "depth": 2, "max_length": 16, "tie_embeddings": tied, **shape}
    backbone = build_backbone("lstm", config, VOCABULARY)
    net = PretrainNet(backbone, BidirectionalLM().build_head(backbone, tied))
    torch.manual_seed(0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return net.double()


def stack(net: PretrainNet, direction: str, tokens: Tensor) -> Tensor:
    """(n,) tokens in the order they are read -> (n, 6) states of one direction's layers."""
    x = net.backbone.embedding(tokens)
    for number, layer in enumerate(net.backbone.layers):
        y = layer.cells[f"{direction}_lstm"](x[None])[0][0]
        x = x + y if number else y
    return x


@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_is_that_of_the_formula(bpe: Tokenizer, tied: bool) -> None:
    net = net_of(tied)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, DOCUMENTS.shape)
    shown, targets = make(tokens, DOCUMENTS, bpe)
    batch = build_batch(shown, DOCUMENTS[:, :-1], np.arange(3), targets, 3)
    output = net(batch)
    table = net.backbone.embedding.weight if tied else net.head.projection.weight
    forward = backward = torch.zeros((), dtype=torch.float64)
    counts = [0, 0]
    for row, numbers in zip(torch.from_numpy(tokens), DOCUMENTS, strict=True):
        for number in range(1, numbers.max() + 1):
            document = row[torch.from_numpy(numbers == number)]
            read = row[torch.from_numpy((numbers == number)[:-1]).nonzero()[:, 0]]
            if not len(read):
                continue
            # What is predicted may be the token behind the row; what is read is not.
            ahead = stack(net, "forward", read) @ table.T + net.head.projection.bias
            back = stack(net, "backward", read.flip(0)) @ table.T + net.head.projection.bias
            for t, logits in enumerate(ahead.log_softmax(-1)):
                if t + 1 < len(document):
                    forward, counts[0] = forward - logits[document[t + 1]], counts[0] + 1
            for t, logits in enumerate(back.log_softmax(-1).flip(0)):
                if t > 0:
                    backward, counts[1] = backward - logits[read[t - 1]], counts[1] + 1
    found = output.terms
    # Cross-entropies are taken in float32.
    assert found["forward"].total.item() == pytest.approx(forward.item(), rel=1e-5)
    assert found["backward"].total.item() == pytest.approx(backward.item(), rel=1e-5)
    assert [found[name].count.item() for name in ("forward", "backward")] == counts
    assert counts == [(targets[name] != IGNORE).sum() for name in ("after", "before")]
    assert {term.nominal for term in found.values()} == {DOCUMENTS.shape[1] - 1}

    parameters = list(net.parameters())
    mine = torch.autograd.grad(sum(t.total for t in found.values()), parameters)
    theirs = torch.autograd.grad(forward + backward, parameters)
    for (name, _), one, other in zip(net.named_parameters(), mine, theirs, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm(), name


def test_nothing_predicted_is_seen(bpe: Tokenizer) -> None:
    """A changed token leaves the losses of its own predictions' states as they were."""
    net = net_of(tied=False)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (1, 11))
    documents = np.ones_like(tokens)
    changed = tokens.copy()
    changed[0, 5] = (tokens[0, 5] + 1) % VOCABULARY
    found = []
    for row in (tokens, changed):
        shown, targets = make(row, documents, bpe)
        found.append(net.hidden(build_batch(shown, documents[:, :-1], np.arange(1), targets, 1)))
    ahead, back = (
        (a == b)[0].all(-1) for a, b in zip(*(f.chunk(2, -1) for f in found), strict=True)
    )
    assert ahead.tolist() == [True] * 5 + [False] * 5
    assert back.tolist() == [False] * 6 + [True] * 4


def test_logits_are_the_forward_half_s() -> None:
    net = net_of(tied=False)
    hidden = torch.randn(2, 12, dtype=torch.float64)
    found = net.head.logits(hidden, net.backbone.embedding.weight)
    wanted = hidden[:, :6] @ net.head.projection.weight.T + net.head.projection.bias
    torch.testing.assert_close(found, wanted)


def test_a_head_that_reads_both_directions_cannot_tie() -> None:
    backbone = build_backbone("lstm", {"dim": 12}, VOCABULARY)
    with pytest.raises(UserError, match=r"embedding has 6 values, the head reads 12"):
        MaskedLM().build_head(backbone, tied=True)


def test_other_backbones_see_what_they_would_predict() -> None:
    (said,) = BidirectionalLM().problems({"kind": "transformer"})
    assert "a transformer that is not causal sees what it would predict" in said
    assert BidirectionalLM().problems({"kind": "lstm"}) == []
