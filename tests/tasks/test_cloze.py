"""Cloze: scores are those of phase one's own heads, gaps and words stand where they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.data.batch import Batch, build_batch
from ptft_lightning.data.example_rows import pack_examples
from ptft_lightning.data.examples import Columns, Encoded, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.objectives.causal import CausalHead
from ptft_lightning.objectives.masked import MaskedHead
from ptft_lightning.tasks.cloze import Cloze
from ptft_lightning.tasks.cloze_template import Template
from ptft_lightning.terms import IGNORE

TEXTS = ["The river reads.", "snow " * 30, ""]
WORDS = {"good": ["green", "small"], "bad": ["stone"]}
ZH = {"big": ["大地"], "small": ["中国"]}


def examples(labels: tuple[str | None, ...]) -> list[Example]:
    return [
        Example(text, None, label, f"f line {i}")
        for i, (text, label) in enumerate(zip(TEXTS, labels, strict=True), 1)
    ]


def batch_of(task: Cloze, encoded: list[Encoded], pad: int, length: int) -> Batch:
    tokens, documents, _, rows, starts = pack_examples(encoded, length, pad)
    targets = task.targets(encoded, rows, starts)
    return build_batch(tokens, documents, np.arange(len(encoded)), targets, len(encoded))


def body(tokenizer: Tokenizer, causal: bool, tied: bool) -> Any:
    torch.manual_seed(0)
    shape = TransformerConfig(
        dim=32, depth=2, heads=2, max_length=96, causal=causal, tie_embeddings=tied
    )
    return Transformer(shape, tokenizer.size).eval()


@pytest.fixture
def known(wordpiece: Tokenizer, bpe: Tokenizer) -> dict[str, Tokenizer]:
    return {"wordpiece": wordpiece, "bpe": bpe}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("kind", "causal", "template", "words"),
    [
        ("wordpiece", False, "{text} It is {mask} paper.", WORDS),
        ("bpe", False, "A {mask} letter: {text}", WORDS),
        ("bpe", True, "{text} The river is {mask}", WORDS),
        ("wordpiece", False, "{text}这是{mask}{mask}的", ZH),
    ],
)
def test_scores_are_those_of_the_pretrained_head(
    kind: str, causal: bool, template: str, words: Any, tied: bool, known: dict[str, Tokenizer]
) -> None:
    """Mean over a label's words of the log-probability of all its tokens, by the head's own full
    softmax; then also packed together, with an empty slot."""
    tokenizer = known[kind]
    words = {
        label: [w for w in given if _fits(template, w, tokenizer)] for label, given in words.items()
    }
    if not all(words.values()):
        pytest.fail(f"the tokenizer of the tests lost {words}")
    task = Cloze(template, words, "causal" if causal else "masked")
    task.check(tokenizer, causal)
    backbone = body(tokenizer, causal, tied)
    theirs: Any = (CausalHead if causal else MaskedHead)(backbone, tied)
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        assert name.startswith(("dense.", "norm.", "projection."))
    head: Any = task.build_head(backbone, [*words])
    head.load_state_dict(theirs.state_dict())  # the same names

    encoded = task.encode(
        examples(("good", "bad", None) if words.keys() == WORDS.keys() else ("big", "small", None)),
        [*words],
        tokenizer,
        40,
    )
    ids = task.template.word_ids(words, tokenizer)
    wanted = []
    for item in encoded:
        if not causal:
            assert item.tokens.count(tokenizer.mask) == task.template.masks
        hidden = backbone(torch.tensor([item.tokens]))[0]
        logs = theirs.logits(hidden, backbone.embedding.weight).log_softmax(-1)
        at = [len(item.tokens) - 1]
        if not causal:
            at = [i for i, token in enumerate(item.tokens) if token == tokenizer.mask]
        scores = [
            torch.stack([sum(logs[a, w] for a, w in zip(at, word, strict=True)) for word in given])
            for given in ids.values()
        ]
        wanted.append(torch.stack([s.mean() for s in scores]).softmax(0))
    for length in (40, 96):
        batch = batch_of(task, [encoded[2], Encoded([], []), *encoded[:2]], tokenizer.pad, length)
        hidden = backbone(batch.tokens, batch.documents, batch.positions)
        output = head(hidden, batch)
        got = output.scores.softmax(-1)
        order = torch.stack([wanted[2], wanted[0], wanted[1]])
        torch.testing.assert_close(got[[0, 2, 3]], order, atol=1e-5, rtol=1e-4)
        assert batch.targets["label"].tolist() == [IGNORE, IGNORE, 0, 1]
        loss = -wanted[0][0].log() - wanted[1][1].log()
        torch.testing.assert_close(output.terms["cloze"].total, loss, atol=1e-4, rtol=1e-4)
        assert int(output.terms["cloze"].count) == 2


def test_scores_are_in_the_order_of_the_labels(wordpiece: Tokenizer) -> None:
    """Whatever the order in which a config or a bundle names the words."""
    found = []
    for words in (WORDS, dict(reversed(WORDS.items()))):
        task = Cloze(template="{text} It is {mask} paper.", verbalizer=words)
        task.check(wordpiece, causal=False)
        labels = ["good", "bad"]
        found.append(task.encode(examples(("good", "bad", "good")), labels, wordpiece, 40)[0])
    assert found[0].targets["words"].tolist() == found[1].targets["words"].tolist()
    assert found[0].targets["words"][1, 0, 0] == wordpiece.encode(["stone"])[0][0]


def _fits(template: str, word: str, tokenizer: Tokenizer) -> bool:
    made = Template(template)
    space = " " * next(p.space for p in made.pieces if p.name == "mask")
    return len(tokenizer.encode([space + word])[0]) == made.masks


def test_the_text_is_cut_and_never_the_template(wordpiece: Tokenizer) -> None:
    task = Cloze("The {text} is {mask} paper.", WORDS)
    encoded = task.encode(examples((None, None, None)), ["good", "bad"], wordpiece, 16)
    assert [len(e.tokens) for e in encoded][1] == 16
    assert encoded[1].cut > 0
    for item in encoded:
        shown = wordpiece.decode(item.tokens, specials=True)
        assert shown.replace("[CLS]", "").split()[0] in ("The", "the")
        assert item.tokens.count(wordpiece.mask or 0) == 1
    with pytest.raises(UserError, match=r"data\.max_length is 4, the template alone has"):
        task.encode(examples((None, None, None)), ["good", "bad"], wordpiece, 4)


def test_both_texts_of_a_pair_are_shown(wordpiece: Tokenizer) -> None:
    task = Cloze("{text} ? {mask} , {pair}", {"a": ["the"], "b": ["and"]})
    pair = [Example("river", "stone", None, "f line 1")]
    (item,) = task.encode(pair, ["a", "b"], wordpiece, 32)
    pieces = [wordpiece.encode([word])[0] for word in ("river", "?", ",", "stone")]
    first, mark, comma, second = pieces
    ids = [*first, *mark, wordpiece.mask or 0, *comma, *second]
    assert item.tokens == wordpiece.frame(ids)


WRONG = {
    "no mask": ("{text} is good", "needs {text} once, {mask}"),
    "no text": ("is {mask}", "needs {text} once"),
    "another name": ("{text} {label} {mask}", "braces around something else"),
}


@pytest.mark.parametrize("name", WRONG)
def test_templates_that_cannot_be(name: str) -> None:
    template, said = WRONG[name]
    with pytest.raises(UserError) as refusal:
        Cloze(template, WORDS)
    assert said in str(refusal.value)
    assert template in str(refusal.value)


def test_words_that_cannot_be(wordpiece: Tokenizer, bpe: Tokenizer) -> None:
    def refused(words: dict[str, list[str]], template: str = "{text} {mask}") -> str:
        with pytest.raises(UserError) as refusal:
            Cloze(template, words).check(wordpiece, causal=False)
        return str(refusal.value)

    assert "'☃' of label 'b' is not in the model's vocabulary" in refused(
        {"a": ["the"], "b": ["☃"]}
    )
    said = refused({"a": ["the"], "b": ["the small"]})
    assert "'the small' of label 'b' has 2 tokens ['the', 'small'], the template 1" in said
    said = refused({"a": ["the"], "b": ["and", "the"]})
    assert "'the' of label 'b' says 'a', too" in said
    with pytest.raises(UserError, match="two labels or more"):
        Cloze("{text} {mask}", {"a": ["the"]})
    with pytest.raises(UserError, match=r"end the template with one \{mask\}"):
        Cloze("{text} {mask}.", WORDS, "causal").check(bpe, causal=True)
    with pytest.raises(UserError, match=r"task\.objective is 'masked'.* is causal: give causal"):
        Cloze("{text} {mask}", WORDS).check(bpe, causal=True)


def test_pairs_and_templates_go_together() -> None:
    for template, pair, fix in (
        ("{text} {mask}", "second", "has no {pair}: leave out data.columns.pair"),
        ("{text} {mask} {pair}", None, "has {pair}: name its column with data.columns.pair"),
    ):
        with pytest.raises(UserError) as refusal:
            Cloze(template, WORDS).read("x", Columns(pair=pair), True, BadExamples("stop"))
        assert fix in str(refusal.value)
