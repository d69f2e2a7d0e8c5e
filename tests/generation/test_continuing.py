"""Continuations are the model's: with the cache as without, in a batch as alone."""

from __future__ import annotations

import pytest
import torch
from generation.conftest import SHAPES

from ptft_lightning.errors import UserError
from ptft_lightning.generation.continuing import Reader, continue_prompts, encode_prompt
from ptft_lightning.generation.growth import Limits
from ptft_lightning.generation.sampling import Sampling, choose, uniform_numbers

TEXTS = ["The river", "的一是了我不人在", "a", "Evening music and stone bread and letter", "x y"]
DRAWN = Sampling(temperature=1.0, top_k=50)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def uncached(model, prompt: list[int], sampling: Sampling, uniform, count: int) -> list[int]:
    """Token by token, everything read again for each."""
    ids = list(prompt)
    for step in range(count):
        with torch.no_grad():
            hidden = model.backbone(torch.tensor([ids]))
        logits = model.logits(hidden[:, -1])[:, : model.tokenizer.size]
        ids += choose(logits, uniform[step : step + 1], sampling).tolist()
        if ids[-1] == model.tokenizer.end:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


@every_shape
@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["likeliest", "drawn"])
def test_a_batch_with_a_cache_equals_one_by_one_without(build, bpe, shape, sampling):
    model = build(bpe, **SHAPES[shape])
    prompts = [encode_prompt(model, text) for text in TEXTS]
    uniform = uniform_numbers(3, [(n, 1) for n in range(len(prompts))], 12)
    found = continue_prompts(model, prompts, sampling, Limits(12), uniform)
    for prompt, numbers, one in zip(prompts, uniform, found, strict=True):
        room = min(12, model.max_length - len(prompt))
        assert one.ids == uncached(model, prompt, sampling, numbers, room)
        (alone,) = continue_prompts(model, [prompt], sampling, Limits(12), numbers[None])
        assert alone == one


@every_shape
def test_cached_logits_equal_uncached_ones(build, bpe, shape):
    model = build(bpe, **SHAPES[shape])
    prompts = [encode_prompt(model, text) for text in TEXTS]
    more = torch.randint(5, bpe.size, (6, len(prompts)))
    reader = Reader(model, prompts, 6)
    for tokens in more:
        reader.go_on(tokens)
    reader.select(torch.tensor([3, 0, 3]))
    for row, at in enumerate((3, 0, 3)):
        whole = torch.tensor([prompts[at] + more[:, at].tolist()])
        torch.testing.assert_close(
            reader.logits()[row], model.logits(model.backbone(whole)[0, -1]), atol=1e-4, rtol=1e-4
        )


def test_rows_that_end_early_leave_the_others_as_they_were(build, bpe):
    """Many limits: rows are dropped from the batch on the way, some read along beyond the last
    position."""
    model = build(bpe, positions="learned")
    prompts = [bpe.encode(["of " * 99])[0][:length] for length in (31, 30, 29, 28, 20, 2)]
    found = continue_prompts(model, prompts, Sampling(), Limits(99))
    nothing = torch.zeros(99, dtype=torch.float64)
    for prompt, one in zip(prompts, found, strict=True):
        assert one.ids == uncached(model, prompt, Sampling(), nothing, 32 - len(prompt))
        assert one.finish in ("max_length", "end")
    assert [one.finish for one in found].count("max_length") > 2


def test_repetition_is_penalised_whatever_the_padding(build, bpe):
    model, sampling = build(bpe), Sampling(repetition_penalty=1e9)
    prompts = [encode_prompt(model, text) for text in TEXTS]
    for prompt, one in zip(
        prompts, continue_prompts(model, prompts, sampling, Limits(10)), strict=True
    ):
        assert len({*prompt, *one.ids}) == len(set(prompt)) + len(one.ids)
        assert continue_prompts(model, [prompt], sampling, Limits(10)) == [one]


def test_the_likeliest_text_is_hugging_face_s(llama, bpe):
    peer, model = llama
    prompts = [encode_prompt(model, text) for text in TEXTS]
    found = continue_prompts(model, prompts, Sampling(), Limits(10))
    for prompt, one in zip(prompts, found, strict=True):
        theirs = peer.generate(
            torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=bpe.end
        )
        assert one.ids == [i for i in theirs[0, len(prompt) :].tolist() if i != bpe.end]


def test_prompts_are_refused(build, bpe):
    model = build(bpe)
    assert encode_prompt(model, "") == [bpe.begin]
    with pytest.raises(UserError, match=r"the prompt 'of of of.*' has 41 tokens.*: give 31 or few"):
        encode_prompt(model, " of" * 40)
