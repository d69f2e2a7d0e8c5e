"""Beam search finds what an exhaustive search finds, and what Hugging Face's finds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.generation.beams import search_beams
from ptft_lightning.generation.continuing import continue_prompts, encode_prompt
from ptft_lightning.generation.growth import Limits
from ptft_lightning.generation.model import LanguageModel
from ptft_lightning.generation.sampling import Sampling


@dataclass
class Letters:
    """Five ids, the last of which ends a text."""

    size: int = 5
    end: int | None = 4


PROMPTS = [[0, 1, 2], [3], [2, 2]]


def log_probability(model: LanguageModel, prompt: list[int], ids: list[int]) -> float:
    """Of ids after a prompt, read at once."""
    with torch.no_grad():
        hidden = model.backbone(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1]
        logs = model.logits(hidden).double().log_softmax(-1)
    return float(logs.gather(1, torch.tensor(ids)[:, None]).sum())


def exhaustive(
    model: Any, prompt: list[int], length: int, penalty: float
) -> list[tuple[float, list[int]]]:
    """All texts of at most `length` tokens that end, or have that length; the best first."""
    size, end = model.tokenizer.size, model.tokenizer.end
    found = []
    for tokens in range(1, length + 1):
        for ids in product(range(size), repeat=tokens):
            if end in ids[:-1] or (tokens < length and ids[-1] != end):
                continue
            score = log_probability(model, prompt, list(ids)) / tokens**penalty
            found.append((score, [i for i in ids if i != end]))
    return sorted(found, key=lambda pair: -pair[0])


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
@pytest.mark.parametrize("end", [4, None])
def test_with_enough_beams_it_is_exhaustive(build, penalty, end):
    model = build(Letters(end=end), dim=16, depth=1)
    beams = 5**2  # all beginnings of three tokens
    found = search_beams(model, PROMPTS, beams, 3, penalty)
    for prompt, best in zip(PROMPTS, found, strict=True):
        wanted = exhaustive(model, prompt, 3, penalty)[:beams]
        assert [one.ids for one in best] == [ids for _, ids in wanted]
        assert [one.score for one in best] == pytest.approx([s for s, _ in wanted], abs=1e-4)


def test_one_beam_takes_the_likeliest(build, bpe):
    model = build(bpe)
    prompts = [encode_prompt(model, text) for text in ("The river", "的一是", "a b c d")]
    likeliest = continue_prompts(model, prompts, Sampling(), Limits(8))
    # Without a penalty on length a finished text stays ahead only if it is likelier.
    for (best,), one in zip(search_beams(model, prompts, 1, 8), likeliest, strict=True):
        assert best.ids == one.ids


def test_max_length_ends_each_prompt_s_search(build, bpe):
    model = build(bpe, positions="learned")
    prompts = [bpe.encode(["of " * 99])[0][:length] for length in (31, 29, 5)]
    together = search_beams(model, prompts, 3, 6)
    assert [len(best[0].ids) for best in together] == [1, 3, 6]
    for prompt, best in zip(prompts, together, strict=True):
        (alone,) = search_beams(model, [prompt], 3, 6)
        assert [one.ids for one in alone] == [one.ids for one in best]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("ends", [False, True])
def test_it_finds_what_hugging_face_finds(llama, bpe, penalty, ends):
    """With an end token ours may find a better one: theirs drops finished texts of low rank."""
    peer, model = llama
    if not ends:
        model = replace(model, tokenizer=Tokenizer(bpe.text))  # one that no other test shares
        model.tokenizer.end = None
    for text in ("The river", "的一是", "music and"):
        prompt = encode_prompt(model, text)
        theirs = peer.generate(
            torch.tensor([prompt]),
            **{"max_new_tokens": 6, "num_beams": 4, "do_sample": False},
            **{"length_penalty": penalty, "early_stopping": "never"},
            **{"eos_token_id": bpe.end if ends else None, "output_scores": True},
            return_dict_in_generate=True,
        )
        (best,) = search_beams(model, [prompt], 4, 6, penalty)
        assert best[0].score >= float(theirs.sequences_scores[0]) - 1e-4
        if not ends:
            assert best[0].ids == theirs.sequences[0, len(prompt) :].tolist()
