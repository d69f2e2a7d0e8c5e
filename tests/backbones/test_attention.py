"""The kernels agree with each other, and the static table picks between them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ptft_lightning.backbones import attention as module
from ptft_lightning.backbones.attention import PLAIN_MAX_LENGTH, attention, attention_mask
from ptft_lightning.backbones.rotary import rotary_angles, rotate

DOCUMENTS = torch.tensor([[1, 1, 1, 2, 2, 3, 3, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
SPAN = (10, 10)


def queries(dtype: torch.dtype = torch.float32, length: int = 10) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, 4, length, 8)
    return [x.to(dtype).requires_grad_() for x in torch.randn(shape, generator=generator)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_plain_kernel_equals_sdpa(causal: bool, packed: bool) -> None:
    mask = attention_mask(DOCUMENTS if packed else None, causal, torch.float32, SPAN)
    results = []
    for kernel in (module._plain, attention):
        inputs = queries()
        out = kernel(*inputs, mask, causal, 0.0)
        gradients = torch.autograd.grad((out * out.detach().cos()).sum(), inputs)
        results.append((out, *gradients))
    for plain, sdpa in zip(*results, strict=True):
        torch.testing.assert_close(plain, sdpa, atol=1e-5, rtol=1e-5)


def slow_attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """One query at a time over the keys it may see."""
    out = torch.zeros_like(query)
    for b, h, t in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        seen = allowed[b, t].nonzero()[:, 0]
        scores = key[b, h, seen] @ query[b, h, t] / math.sqrt(query.shape[-1])
        out[b, h, t] = scores.softmax(0) @ value[b, h, seen]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 2])
def test_attention_equals_slow_formula(causal: bool, packed: bool, window: int | None) -> None:
    documents = DOCUMENTS if packed else torch.ones_like(DOCUMENTS)
    allowed = documents[:, :, None] == documents[:, None, :]
    index = torch.arange(documents.shape[1])
    if causal:
        allowed = allowed & (index[:, None] >= index)
    if window is not None:
        allowed = allowed & ((index[:, None] - index).abs() <= window)
    query, key, value = (x.detach() for x in queries())
    mask = attention_mask(documents if packed else None, causal, torch.float32, SPAN, window)
    got = attention(query, key, value, mask, causal, 0.0)
    torch.testing.assert_close(got, slow_attention(query, key, value, allowed))
    # The last three queries alone, as when the keys before them were cached.
    mask = attention_mask(documents if packed else None, causal, torch.float32, (3, 10), window)
    last = attention(query[:, :, -3:], key, value, mask, causal, 0.0)
    torch.testing.assert_close(last, got[:, :, -3:])


def test_shared_heads_of_keys_equal_repeated_ones() -> None:
    query, key, value = (x.detach() for x in queries())
    few = key[:, :2], value[:, :2]
    repeated = (x[:, [0, 0, 1, 1]] for x in few)
    got = attention(query, *few, None, True, 0.0)
    torch.testing.assert_close(got, attention(query, *repeated, None, True, 0.0))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_bfloat16_kernel_is_near_float32(causal: bool, packed: bool) -> None:
    documents = DOCUMENTS if packed else None
    exact = [x.detach().bfloat16().float() for x in queries()]
    wanted = attention(*exact, attention_mask(documents, causal, torch.float32, SPAN), causal, 0.0)
    rounded = [x.bfloat16() for x in exact]
    got = attention(*rounded, attention_mask(documents, causal, torch.bfloat16, SPAN), causal, 0.0)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), wanted, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize(
    ("dtype", "length", "plain"),
    [
        (torch.bfloat16, PLAIN_MAX_LENGTH, True),
        (torch.bfloat16, PLAIN_MAX_LENGTH + 1, False),
        (torch.float32, PLAIN_MAX_LENGTH, False),
    ],
)
def test_kernel_table(
    dtype: torch.dtype, length: int, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = module._plain
    monkeypatch.setattr(module, "_plain", lambda *a: calls.append(a) or real(*a))
    attention(*queries(dtype, length), None, False, 0.0)
    assert bool(calls) is plain


def test_dropout_drops_weights() -> None:
    query, key, _ = (x.detach() for x in queries())
    value = torch.ones_like(query)
    torch.manual_seed(0)
    for kernel in (module._plain, attention):
        kept = kernel(query, key, value, None, False, 0.5)
        assert kept.std() > 0.1
        assert abs(kept.mean() - 1) < 0.1


def test_rotary_scores_depend_on_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(at: int, other: int) -> float:
        turned = [
            rotate(x, *rotary_angles(torch.tensor([[p]]), 8, 10000.0, torch.float32, None))
            for x, p in ((query, at), (key, other))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(3, 1) == pytest.approx(score(12, 10), abs=1e-5)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)
    assert score(5, 5) == pytest.approx(float((query * key).sum()), abs=1e-5)
