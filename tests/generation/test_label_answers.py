"""Answers are as likely as the model's log-probabilities say; prompts are the same every time."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from ptft_lightning.generation.answers import Layout, build_prompt, choose_shots, score_answers

PROMPTS = ["The river reads", "的一是了", "a", "Evening music and stone bread and"]
ANSWERS = [" the stone.", "我", " letter and paper", " x"]


def test_answers_are_scored_token_by_token(build, bpe):
    model = build(bpe)
    questions = [*zip(bpe.encode(PROMPTS), bpe.encode(ANSWERS), strict=True)]
    for batch_size in (1, 3, 8):
        found = [*score_answers(model, questions, batch_size)]
        for (prompt, answer), value in zip(questions, found, strict=True):
            with torch.no_grad():
                hidden = model.backbone(torch.tensor([prompt + answer]))[0]
                logs = model.logits(hidden).log_softmax(-1)
            wanted = sum(float(logs[len(prompt) + i - 1, a]) for i, a in enumerate(answer))
            assert value == pytest.approx(wanted, abs=1e-3)


def test_shots_are_balanced_and_decided_by_the_seed():
    labels = ["a"] * 50 + ["b"] * 5 + ["c"] * 2
    for count in (1, 3, 6, 7, 12, 57):
        chosen = choose_shots(labels, count, seed=3)
        assert chosen == choose_shots(labels, count, seed=3)
        assert len(set(chosen)) == count
        found = Counter(labels[i] for i in chosen)
        most = {"a": 50, "b": 5, "c": 2}
        for name, number in found.items():  # one less than another only where there is no more
            assert number == most[name] or number >= max(found.values()) - 1
    assert choose_shots(labels, 6, seed=3) != choose_shots(labels, 6, seed=4)
    assert choose_shots(labels, 0, seed=3) == []


LAYOUT = Layout("Text: ", "\nIt is ", "\n\n")
SHOTS = [LAYOUT.shot("the river", "small"), LAYOUT.shot("the stone", "green")]


def test_prompts_show_shots_then_the_text(bpe):
    prompt = build_prompt(LAYOUT, SHOTS, "a letter", bpe, 500)
    wanted = "Text: the river\nIt is small\n\nText: the stone\nIt is green\n\nText: a letter\nIt is"
    assert bpe.decode(prompt.ids) == wanted
    assert (prompt.shots, prompt.cut) == (2, 0)
    assert prompt.ids[: 1 if bpe.begin is not None else 0] == ([bpe.begin] if bpe.begin else [])


def test_first_shots_are_left_out_then_the_text_is_cut(bpe):
    whole = build_prompt(LAYOUT, SHOTS, "a letter", bpe, 500)
    less = build_prompt(LAYOUT, SHOTS, "a letter", bpe, len(whole.ids) - 1)
    assert less.shots == 1
    assert less.ids == build_prompt(LAYOUT, SHOTS[1:], "a letter", bpe, 500).ids
    long = " ".join(["letter"] * 60)
    cut = build_prompt(LAYOUT, SHOTS, long, bpe, 30)
    assert (len(cut.ids), cut.shots) == (30, 0)
    assert cut.cut > 0
    text = bpe.decode(cut.ids)
    assert text.startswith("Text: letter")
    assert text.endswith("\nIt is")
