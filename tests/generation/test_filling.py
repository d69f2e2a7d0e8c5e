"""Masks are filled with what the head finds likeliest."""

from __future__ import annotations

import pytest
import torch

from ptft_lightning.errors import UserError
from ptft_lightning.generation.filling import (
    encode_masked,
    fill_masks,
    mask_name,
    show_masked,
    show_token,
)

TEXTS = ["The [MASK] water", "[MASK]", "music and [MASK]的[MASK]。 bread [MASK] letter", "a [MASK]"]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_fills_are_the_head_s(build, kind, request):
    tokenizer = request.getfixturevalue(kind)
    model = build(tokenizer, causal=False)
    prompts = [encode_masked(model, text) for text in TEXTS]
    ordinary = set(tokenizer.ordinary.tolist())
    for prompt, found in zip(prompts, fill_masks(model, prompts, 5), strict=True):
        with torch.no_grad():
            hidden = model.backbone(torch.tensor([prompt]))[0]
            shares = model.logits(hidden).double().softmax(-1)
        places = [i for i, token in enumerate(prompt) if token == tokenizer.mask]
        assert len(found.fills) == len(places) > 0
        for place, fills in zip(places, found.fills, strict=True):
            ranked = shares[place].argsort(descending=True).tolist()
            wanted = [i for i in ranked if i in ordinary][:5]
            assert [token for token, _ in fills] == wanted
            assert [p for _, p in fills] == pytest.approx(shares[place][wanted].tolist(), rel=1e-3)
            assert found.ids[place] == wanted[0]
        others = [i for i in range(len(prompt)) if i not in places]
        assert [found.ids[i] for i in others] == [prompt[i] for i in others]
        assert found.text == tokenizer.decode(found.ids)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_only_the_mask_s_name_is_control(build, kind, request):
    tokenizer = request.getfixturevalue(kind)
    model = build(tokenizer, causal=False)
    ids = encode_masked(model, "of [SEP] the [MASK] river")
    assert (ids[0], ids[-1]) == (tokenizer.begin, tokenizer.end)
    assert ids.count(tokenizer.mask) == 1
    assert ids.count(tokenizer.end) == 1
    assert mask_name(tokenizer) == "[MASK]"


def test_a_mask_takes_the_place_of_a_token(build, bpe):
    """The space before a word is the word's token's in byte-level vocabularies."""
    model = build(bpe, causal=False)
    whole = bpe.frame(bpe.encode(["small river and large"])[0])
    assert len(whole) > 5
    masked = encode_masked(model, "small [MASK] and large")
    river = bpe.encode([" river"])[0]
    assert len(river) == 1
    at = whole.index(river[0])
    assert masked == [*whole[:at], bpe.mask, *whole[at + 1 :]]
    assert show_masked(bpe, masked) == "small[MASK] and large"


def test_mistakes(build, bpe):
    model = build(bpe, causal=False)
    with pytest.raises(UserError, match=r"nothing to fill in 'the river': write \[MASK\] where"):
        encode_masked(model, "the river")
    with pytest.raises(UserError, match=r"has 43 tokens, and the model reads at most 32"):
        encode_masked(model, "[MASK]" + " of" * 40)


def test_half_a_character_is_shown_by_its_name(bpe):
    half, *_ = bpe.encode(["🙂"])[0]
    assert show_token(bpe, half) == bpe.raw.id_to_token(half)
    assert show_token(bpe, bpe.encode([" river"])[0][0]) == " river"
