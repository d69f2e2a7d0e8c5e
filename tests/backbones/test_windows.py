"""A window in blocks gives what a mask of all pairs gives, for less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ptft_lightning.backbones import windows
from ptft_lightning.backbones.attention import attention, attention_mask
from ptft_lightning.backbones.cache import KeyValueCache
from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import TransformerConfig

ROWS = 2


def packed(length: int) -> Tensor:
    """Documents of many lengths, some wider than a window; one row ends in padding."""
    ends = torch.tensor([[0.1, 0.15, 0.8, 1.0], [0.02, 0.5, 0.52, 0.9]]) * length
    place = torch.arange(length)
    documents = (place[None, :, None] >= ends[:, None]).sum(-1) + 1
    return documents.where((place < 0.9 * length) | (torch.arange(ROWS) == 0)[:, None], 0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("documents", ["one", "packed"])
@pytest.mark.parametrize(
    ("window", "length"), [(64, 385), (64, 448), (64, 500), (100, 640), (5, 401), (1, 385)]
)
def test_equals_a_mask_of_all_pairs(causal: bool, documents: str, window: int, length: int) -> None:
    """Outputs and every gradient, in float64; keys shared by several queries' heads."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, heads, length, 8) for heads in (4, 2, 2)]
    found = []
    for cut in (0, ROWS):
        generator.manual_seed(0)
        inputs = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        for x in inputs:
            x.requires_grad_()
        rows = None if documents == "one" else packed(length)
        mask = attention_mask(rows, causal, torch.float64, (length, length), window, cut=cut)
        assert mask is not None
        assert (mask.dim() == 5) == bool(cut)
        out = attention(*inputs, mask, causal, 0.0)
        found.append((out, *torch.autograd.grad((out * out.detach().cos()).sum(), inputs)))
    for whole, blocks in zip(*found, strict=True):
        torch.testing.assert_close(blocks, whole, atol=1e-12, rtol=1e-10)


def test_short_rows_are_not_cut() -> None:
    for causal, keys in ((True, 2), (False, 3)):
        last = windows.WORTH * keys * 64
        for length, dims in ((last, 4), (last + 1, 5)):
            given = causal, torch.float32, (length, length), 64
            mask = attention_mask(None, *given, cut=1)
            assert mask is not None
            assert mask.dim() == dims


def test_the_mask_grows_with_the_length_alone() -> None:
    """Not with its square: four times the tokens, four times the numbers."""
    sizes = [
        windows.window_mask(None, True, torch.float32, (1, length), 64, None).numel()
        for length in (1024, 4096)
    ]
    assert sizes == [1024 * 128, 4096 * 128]


@pytest.mark.parametrize("causal", [False, True])
def test_a_model_reads_the_same_in_blocks(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """States of all layers and gradients of all weights, windowed layers between whole ones."""
    shape = {"dim": 16, "heads": 2, "depth": 3, "max_length": 512, "causal": causal}
    torch.manual_seed(0)
    config = TransformerConfig(**shape, positions="rotary", window=64, window_layers=[0, 2])
    model = Transformer(config, 40).eval()
    tokens = torch.randint(0, 40, (ROWS, 450), generator=torch.Generator().manual_seed(1))
    documents = packed(450)
    found = []
    for cut in (True, False):
        if not cut:
            monkeypatch.setattr(windows, "cuts", lambda *_: False)
        states = model(tokens, documents, all_layers=True)
        real = states[:, documents > 0]
        model.zero_grad()
        (real * real.detach().cos()).sum().backward()
        found.append((real, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (blocks, mine), (whole, theirs) = found
    torch.testing.assert_close(blocks, whole, atol=1e-5, rtol=1e-5)
    for a, b in zip(mine, theirs, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_only_rows_read_whole_are_cut() -> None:
    """What was read before, a prefix and a prompt that looks forwards are seen as in one mask."""
    torch.manual_seed(0)
    shape = {"dim": 16, "heads": 2, "depth": 2, "max_length": 700, "causal": True, "window": 64}
    config = TransformerConfig(**shape, positions="rotary", prefix_lm=True)
    model = Transformer(config, 40).eval()
    tokens = torch.randint(0, 40, (1, 600))
    cache = KeyValueCache(config.depth, 700)
    prompt = torch.zeros_like(tokens)
    prompt[:, :400] = 1
    heads = config.key_heads, 3, config.head_width
    prefix = [(torch.randn(heads), torch.randn(heads)) for _ in range(config.depth)]
    with torch.no_grad():
        whole = model(tokens)
        first, last = model(tokens[:, :599], cache=cache), model(tokens[:, 599:], cache=cache)
        torch.testing.assert_close(torch.cat([first, last], 1), whole, atol=1e-5, rtol=1e-5)
        looked = model(tokens, segments=prompt)
        moved = torch.where(torch.arange(600) == 399, (tokens + 1) % 40, tokens)
        assert not torch.equal(model(moved, segments=prompt)[:, 398], looked[:, 398])
        torch.testing.assert_close(model(moved)[:, :399], whole[:, :399])
        beside = model(tokens, prefix=prefix)
        prefix = [(key, 2 * value) for key, value in prefix]
        assert not torch.equal(model(tokens, prefix=prefix)[:, -1], beside[:, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_and_autocast_meet_blocks(dtype: torch.dtype) -> None:
    """Dropout draws the same again; queries in two bytes are near those in four."""
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        config = TransformerConfig(
            dim=16, heads=2, depth=2, max_length=500, window=64, attention_dropout=0.2
        )
        model = Transformer(config, 40)
        model.recompute = recompute
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = model(torch.arange(1000).view(2, 500) % 40, packed(500))
        out.float().square().sum().backward()
        found.append((out.detach(), model.layers[0].attention.qkv.weight.grad))
    for plain, again in zip(*found, strict=True):
        assert plain.isfinite().all()
        torch.testing.assert_close(again, plain)


def test_blocks_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The windowed layer asks the kernel for blocks alone, the other for all pairs."""
    seen = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        seen.append((query.shape[2], key.shape[2]))
        return kernel(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    config = TransformerConfig(
        dim=16, heads=2, depth=2, max_length=1000, window=64, window_layers=[1]
    )
    Transformer(config, 40)(torch.zeros(1, 1000, dtype=torch.long))
    assert seen == [(1000, 1000), (64, 192)]
