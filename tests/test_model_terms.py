"""Loss terms: chunks change nothing, and micro-batches without targets give zeros, never NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptft_lightning import terms
from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.data.batch import Batch, build_batch
from ptft_lightning.data.example_rows import pack_examples
from ptft_lightning.data.examples import Encoded
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.modules.nets import Net, PretrainNet, TaskNet
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.tasks.classification import Classification
from ptft_lightning.terms import IGNORE, LossMean, projected_cross_entropy, token_term

VOCABULARY = 30


def case(bias: bool) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(23, 8), (VOCABULARY, 8), *([(VOCABULARY,)] if bias else [])]
    tensors = [torch.randn(size, generator=generator).requires_grad_() for size in sizes]
    labels = torch.randint(0, VOCABULARY, (23,), generator=generator)
    labels[::4] = IGNORE
    return tensors, labels


def evaluate(tensors: list[Tensor], labels: Tensor) -> list[Tensor]:
    hidden, weight, bias = (*tensors, None)[:3]
    assert hidden is not None
    assert weight is not None
    losses, right = projected_cross_entropy(hidden, weight, bias, labels)
    assert losses.shape == labels.shape
    total = losses.sum()
    return [total.detach(), right, *torch.autograd.grad(total, tensors)]


@pytest.mark.parametrize("bias", [False, True])
def test_cross_entropy_equals_torch(bias: bool) -> None:
    tensors, labels = case(bias)
    total, right, *gradients = evaluate(tensors, labels)
    logits = F.linear(*tensors)
    wanted = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(total, wanted.detach())
    for got, gradient in zip(gradients, torch.autograd.grad(wanted, tensors), strict=True):
        torch.testing.assert_close(got, gradient)
    assert right == (logits.argmax(-1) == labels).sum()


def test_right_answers_equal_argmax() -> None:
    (hidden, weight, bias), labels = case(bias=True)
    with torch.no_grad():
        bias[0] += 9  # where the label is IGNORE, id 0 must not be taken for right
    best = F.linear(hidden, weight, bias).argmax(-1)
    labels = torch.where(labels == IGNORE, labels, best)
    assert (best[labels == IGNORE] == 0).any()
    labels[1:9] = (best[1:9] + 1) % VOCABULARY
    labels[::4] = IGNORE
    _, right = projected_cross_entropy(hidden, weight, bias, labels)
    assert right == (labels == best).sum()
    assert 0 < right < (labels != IGNORE).sum()


@pytest.mark.parametrize("rows", [1, 5, 23])
@pytest.mark.parametrize("bias", [False, True])
def test_chunks_change_nothing(bias: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, labels = case(bias)
    wanted = evaluate(tensors, labels)
    largest = []
    real = terms._cross_entropy

    def spy(hidden: Tensor, *rest: Any) -> Any:
        largest.append(len(hidden))
        return real(hidden, *rest)

    monkeypatch.setattr(terms, "_cross_entropy", spy)
    monkeypatch.setattr(terms, "CHUNK_ELEMENTS", rows * VOCABULARY)
    for got, value in zip(evaluate(tensors, labels), wanted, strict=True):
        torch.testing.assert_close(got, value)
    assert max(largest) == rows


@pytest.mark.parametrize("mean", ["target", "example"])
def test_means_against_float64(mean: LossMean) -> None:
    """The formulas of the two means, row by row in numpy; one row has a single target, one none."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, VOCABULARY, (5, 7))
    labels[0, 1:] = IGNORE
    labels[1] = IGNORE
    labels[2, ::2] = IGNORE
    logits = rng.normal(size=(5, 7, VOCABULARY))
    shifted = np.exp(logits)
    negative = np.log(shifted.sum(-1)) - np.take_along_axis(
        logits, np.maximum(labels, 0)[..., None], -1
    ).squeeze(-1)
    real = labels != IGNORE
    rows = [negative[b, real[b]] for b in range(5)]
    if mean == "target":
        wanted, share = sum(r.sum() for r in rows) / (7 * 5), real / (7 * 5)
    else:
        wanted = sum(r.mean() for r in rows if len(r)) / 5
        share = real / np.maximum(real.sum(1, keepdims=True), 1) / 5
    onehot = np.eye(VOCABULARY)[np.maximum(labels, 0)]
    gradient = share[..., None] * (shifted / shifted.sum(-1, keepdims=True) - onehot)

    given, targets = torch.tensor(logits, requires_grad=True), torch.from_numpy(labels)
    losses = F.cross_entropy(
        given.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none"
    )
    term = token_term(losses.view(5, 7), targets, mean)
    loss = term.minimised / (term.nominal * 5)
    loss.backward()
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert given.grad is not None
    np.testing.assert_allclose(given.grad.numpy(), gradient, rtol=1e-10, atol=1e-15)
    # What is reported does not depend on the mean.
    assert term.total.item() / term.count.item() == pytest.approx(np.concatenate(rows).mean())


def backbone(causal: bool) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(dim=16, depth=1, heads=2, max_length=8, causal=causal)
    return Transformer(config, VOCABULARY)


def pretraining(objective: CausalLM | MaskedLM) -> PretrainNet:
    body = backbone(objective.causal)
    net = PretrainNet(body, objective.build_head(body, tied=True))
    for p in net.parameters():
        torch.nn.init.normal_(p, 0, 0.1)
    return net


def empty_rows(targets: dict[str, Any]) -> Batch:
    rows = np.zeros((2, 8), np.int64)
    return build_batch(rows, rows, np.array([-1, -1]), targets, step_samples=4)


def no_examples() -> Batch:
    chosen = [Encoded([], []), Encoded([], [])]
    tokens, documents, _, rows, starts = pack_examples(chosen, 8, pad=0)
    targets = Classification().targets(chosen, rows, starts)
    return build_batch(tokens, documents, np.array([-1, -1]), targets, step_samples=4)


@pytest.mark.parametrize("case", ["causal", "masked", "mean", "first", "last"])
def test_empty_micro_batch_gives_zeros(case: str, bpe: Tokenizer) -> None:
    net: Net
    if case in ("causal", "masked"):
        objective = CausalLM() if case == "causal" else MaskedLM()
        stream = np.full((2, 9), bpe.pad)
        # What the loader makes of two empty slots.
        _, targets = objective.make(stream, np.zeros((2, 9), np.int64), np.array([-1, -1]), 0, bpe)
        assert (targets["labels"] == IGNORE).all()
        net, batch = pretraining(objective), empty_rows(targets)
    else:
        body = backbone(causal=False)
        net = TaskNet(body, Classification(pooling=case).build_head(body, ["a", "b"]))  # type: ignore[arg-type]
        batch = no_examples()
    (term,) = (output := net(batch)).terms.values()
    assert term.total.item() == 0
    assert term.count.item() == 0
    assert not any(output.sums.values())
    assert term.nominal > 0
    (term.total / term.nominal).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name  # else DDP waits for it
        assert torch.equal(p.grad, torch.zeros_like(p)), name


@pytest.mark.parametrize(
    "objective",
    [CausalLM(), MaskedLM(0.3), CausalLM("example"), MaskedLM(0.3, loss_mean="example")],
    ids=["causal", "masked", "causal example", "masked example"],
)
def test_gradient_is_that_of_the_sum(objective: CausalLM | MaskedLM, bpe: Tokenizer) -> None:
    """A row's share does not depend on what else is in its micro-batch."""
    rng = np.random.default_rng(0)
    documents = np.repeat([[1, 1, 1, 1, 2, 2, 2, 0, 0]], 3, axis=0)
    documents[2] = 0  # an empty slot
    stream = np.where(documents > 0, rng.integers(5, VOCABULARY, documents.shape), bpe.pad)
    numbers = np.array([4, 7, -1])
    tokens, targets = objective.make(stream, documents, numbers, 0, bpe)
    tokens %= VOCABULARY
    targets["labels"] = np.where(
        targets["labels"] == IGNORE, IGNORE, targets["labels"] % VOCABULARY
    )
    net = pretraining(objective)

    def gradients(rows: list[int]) -> tuple[list[Tensor], float]:
        net.zero_grad()
        chosen = {k: v[rows] for k, v in targets.items()}
        batch = build_batch(tokens[rows], documents[rows, :-1], numbers[rows], chosen, 2)
        (term,) = net(batch).terms.values()
        (term.minimised / term.nominal).backward()
        return [p.grad.clone() for p in net.parameters() if p.grad is not None], term.nominal

    whole, nominal = gradients([0, 1, 2])
    parts = [gradients([row]) for row in range(3)]
    assert {n for _, n in parts} == {nominal}
    for got, *shares in zip(whole, *(p for p, _ in parts), strict=True):
        torch.testing.assert_close(got, sum(shares), atol=1e-6, rtol=1e-5)
