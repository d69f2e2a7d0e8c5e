"""Tagging's two halves: labels of windows, packing, tokenless words, refused borders."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from faults.files_tagging import multi_word

from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.batch import build_batch
from ptft_lightning.data.example_rows import pack_examples
from ptft_lightning.data.frames import Frame
from ptft_lightning.data.words import Words, split_words
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import Scored
from ptft_lightning.tasks.srl import SemanticRoles
from ptft_lightning.tasks.tagging import Tagging
from ptft_lightning.tasks.tags import tag_set
from ptft_lightning.terms import IGNORE

LABELS = tag_set(("LOC", "PER"), "BIO")
TEXTS = [
    ("the oldest riverwater", "O B-LOC I-LOC"),
    ("water", "B-PER"),
    ("a house in the north winter paper garden question model", " ".join(["B-PER", "O"] * 5)),
]


def example(text: str, tags: str | None, place: str = "a.conll line 1") -> Words:
    labels = None if tags is None else tags.split()
    return Words(text, None, None, place, labels=labels, words=split_words(text))


def net(task: Tagging, causal: bool = False):
    torch.manual_seed(0)
    config = TransformerConfig(dim=16, depth=2, heads=2, max_length=32, causal=causal, dropout=0.0)
    backbone = Transformer(config, vocab_size=700)
    head = task.build_head(backbone, LABELS)
    with torch.no_grad():
        for module in (backbone, head):
            for parameter in module.parameters():
                parameter.normal_(0, 0.3)
                parameter.requires_grad = False
    return backbone.eval(), head.eval()


def output(task, parts, encoded, length=32):
    tokens, documents, segments, rows, starts = pack_examples(encoded, length, 0)
    batch = build_batch(
        tokens,
        documents,
        np.arange(len(encoded)),
        task.targets(encoded, rows, starts),
        len(encoded),
        segments=segments,
        step_targets=sum(e.count for e in encoded),
    )
    backbone, head = parts
    hidden = backbone(batch.tokens, batch.documents, batch.positions, batch.segments)
    return head(hidden, batch)


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
@pytest.mark.parametrize("crf", [False, True])
def test_packed_examples_are_those_alone(wordpiece, pooling, crf):
    task = Tagging(pooling=pooling, crf=crf)
    encoded = task.encode([example(*t) for t in TEXTS], LABELS, wordpiece, 10)
    assert len(encoded) > len(TEXTS)
    parts = net(task)
    together = output(task, parts, encoded)
    alone = [output(task, parts, [one]) for one in encoded]
    term = together.terms["tagging"]
    assert float(term.total) == pytest.approx(
        sum(float(o.terms["tagging"].total) for o in alone), rel=1e-4
    )
    assert int(term.count) == sum(e.count for e in encoded) == 14
    for number, (one, item) in enumerate(zip(alone, encoded, strict=True)):
        words = len(item.targets["label"])
        assert together.scores[number, :words].tolist() == one.scores[0, :words].tolist()


def test_the_loss_is_the_mean_cross_entropy_of_words(bpe):
    task = Tagging()
    examples = [example(*t) for t in TEXTS[:2]]
    encoded = task.encode(examples, LABELS, bpe, 32)
    backbone, head = net(task)
    term = output(task, (backbone, head), encoded).terms["tagging"]
    total = 0.0
    for item in encoded:
        hidden = backbone(torch.tensor([item.tokens]))[0]
        for (start, _), label in zip(item.targets["word"], item.targets["label"], strict=True):
            total -= float(head.classifier(hidden[start]).log_softmax(-1)[label])
    assert float(term.total) == pytest.approx(total, rel=1e-4)
    assert float(term.share(2, 4)) == pytest.approx(total / 4, rel=1e-4)
    assert task.uniform_loss(LABELS) == math.log(5)


def test_a_causal_model_reads_a_word_where_it_ends(bpe):
    assert net(Tagging(), causal=True)[1].pooling == "last"
    assert net(Tagging(), causal=False)[1].pooling == "first"


def test_short_sentences_do_not_know_of_windows(wordpiece):
    task = Tagging()
    short, long = (task.encode([example(*TEXTS[0])], LABELS, wordpiece, n) for n in (11, 32))
    assert len(short) == len(long) == 1
    assert short[0].tokens == long[0].tokens
    assert all(np.array_equal(short[0].targets[k], long[0].targets[k]) for k in long[0].targets)


def test_windows_count_every_word_once_and_come_together_again(wordpiece):
    task, text = Tagging(), example(*TEXTS[2])
    encoded = task.encode([text], LABELS, wordpiece, 10)
    assert len(encoded) > 1
    assert sum(e.count for e in encoded) == 10
    scores = {n: torch.tensor([*e.targets["label"], 4.0, 4.0]) for n, e in enumerate(encoded)}
    records = task.records(Scored([text], encoded, scores, LABELS, wordpiece))
    assert records[0]["tags"] == text.labels
    entities = records[0]["entities"]
    assert [e["text"] for e in entities] == ["a", "in", "north", "paper", "question"]
    assert task.judge([text], records)["f1"] == 1
    del scores[0]
    assert task.records(Scored([text], encoded, scores, LABELS, wordpiece)) == {}


def test_words_without_tokens_are_outside_and_the_rest_stays_well_formed(wordpiece, capsys):
    words = np.array([[0, 3], [4, 5], [6, 11]])
    odd = Words("the \u200d river", None, None, "f line 3", ["O", "B-LOC", "I-LOC"], words)
    task = Tagging(crf=True)
    (item,) = task.encode([odd], LABELS, wordpiece, 16)
    kept = [LABELS[i] for i in item.targets["label"]]
    if item.targets["number"].tolist() == [0, 2]:
        assert kept == ["O", "B-LOC"]
        assert item.count == 2
        assert "1 words become no token" in capsys.readouterr().err
    scores = {0: torch.tensor([0.0, 1.0])}
    records = task.records(Scored([odd], [item], scores, LABELS, wordpiece))
    assert records[0]["tags"] == ["O", "O", "B-LOC"]


def test_examples_without_labels_cost_nothing(wordpiece):
    for crf in (False, True):
        task = Tagging(crf=crf)
        encoded = task.encode([example(TEXTS[0][0], None)], LABELS, wordpiece, 16)
        assert encoded[0].count == 0
        assert encoded[0].targets["label"].tolist() == [IGNORE] * 3
        term = output(task, net(task), encoded).terms["tagging"]
        assert (float(term.total), int(term.count)) == (0, 0)


def test_borders_inside_tokens_are_refused(capsys):
    tokenizer, words = multi_word(), np.array([[0, 1], [1, 2], [2, 4], [5, 6]])
    odd = Words("abcd e", None, None, "f line 3", ["B-LOC", "O", "B-PER", "I-PER"], words)
    with pytest.raises(UserError) as error:
        Tagging().encode([odd], LABELS, tokenizer, 16)
    assert "'f': 1 of 2 entities (50.0%) begin or end inside a token" in str(error.value)
    assert "('a')" in str(error.value)
    assert "task.presplit true, or pretrain with another tokenizer" in str(error.value)
    (item,) = Tagging(lost_borders=0.5).encode([odd], LABELS, tokenizer, 16)
    assert item.count == 4
    assert "inside a token" in capsys.readouterr().err
    Tagging(presplit=True).encode([odd], LABELS, tokenizer, 16)
    assert "inside a token" not in capsys.readouterr().err


PLAIN = ["I-X", "I-Y", "N------S1I"]


@pytest.mark.parametrize("crf", [False, True])
def test_tags_said_to_be_plain_are_plain_whatever_they_look_like(wordpiece, crf):
    task = Tagging(scheme="none", crf=crf)
    text = example("the old river", "I-X I-Y N------S1I")
    assert task.schema([text]) == PLAIN
    encoded = task.encode([text], PLAIN, wordpiece, 16)
    scored = Scored([text], encoded, {0: torch.tensor([0.0, 0.0, 2.0])}, PLAIN, wordpiece)
    records = task.records(scored)
    assert records == {0: {"tags": ["I-X", "I-X", "N------S1I"]}}
    measured = task.judge([text], records)
    assert measured["f1"] == measured["accuracy"] == pytest.approx(2 / 3)
    if crf:
        backbone = Transformer(TransformerConfig(dim=16, depth=1, heads=2), vocab_size=700)
        assert not task.build_head(backbone, PLAIN).crf.costs.any()


def test_strict_takes_only_well_formed_entities(wordpiece):
    text = example("the old river", "B-LOC I-LOC O")
    scores = {0: torch.tensor([2.0, 2.0, 1.0])}  # I-LOC I-LOC B-LOC
    for strict, found in ((False, ["the old", "river"]), (True, ["river"])):
        task = Tagging(strict=strict)
        encoded = task.encode([text], LABELS, wordpiece, 16)
        scored = Scored([text], encoded, scores, LABELS, wordpiece)
        assert LABELS[2] == "I-LOC"
        records = task.records(scored)
        assert [e["text"] for e in records[0]["entities"]] == found
        assert task.judge([text], records)["precision"] == (0 if strict else 0.5)


@pytest.mark.parametrize(
    "settings", [{"overlap": 0.6}, {"overlap": -0.1}, {"lost_borders": 2}, {"lost_borders": -1}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UserError, match=f"task.{next(iter(settings))} is"):
        Tagging(**settings)


@pytest.mark.parametrize("kind", [Tagging, SemanticRoles])
def test_the_config_rebuilds_the_task(kind):
    task = kind(crf=True, presplit=True, overlap=0.3, monitor="macro_f1", lost_borders=0.02)
    again = kind(**task.config())
    assert again.config() == task.config()
    assert again.monitor == "val_macro_f1"
    assert set(task.shaping) <= set(task.config())


# Semantic roles.


def frame(text: str, predicate: int) -> Frame:
    words = split_words(text)
    return Frame(text, None, None, "", ["O"] * len(words), words, predicate)


def test_the_predicate_stands_before_the_sentence_and_is_marked(wordpiece):
    task, labels = SemanticRoles(), tag_set(("ARG0",), "BIO")
    text = "the river reads a river"
    (item,) = task.encode([frame(text, 2)], labels, wordpiece, 32)
    the, river, reads, a = (wordpiece.encode([w])[0] for w in ("the", "river", "reads", "a"))
    begin, end = [wordpiece.begin], [wordpiece.end]
    marked = [*the, *river, *end, *reads, *end, *a, *river]
    assert item.tokens == [*begin, *reads, *end, *marked, *end]
    spelled = [item.tokens[s:e] for s, e in item.targets["word"].tolist()]
    assert spelled == [the, river, reads, a, river]
    at = [i for i, segment in enumerate(item.segments) if segment]
    assert [item.tokens[i] for i in at] == reads
    assert at[0] > len(reads) + 1


def test_every_window_knows_its_predicate(wordpiece):
    task, labels = SemanticRoles(), tag_set(("ARG0",), "BIO")
    text = " ".join(["river"] * 20 + ["reads"])
    encoded = task.encode([frame(text, 20)], labels, wordpiece, 14)
    (reads,) = wordpiece.encode(["reads"])
    assert len(encoded) > 2
    for item in encoded:
        assert item.tokens[1 : 1 + len(reads)] == reads
        assert len(item.tokens) <= 14
    assert sum(e.count for e in encoded) == 21


def test_two_predicates_are_two_examples(wordpiece):
    """The same words, another predicate: other states."""
    task = SemanticRoles()
    labels = LABELS
    encoded = task.encode([frame("river reads river", n) for n in (0, 2)], labels, wordpiece, 32)
    assert encoded[0].tokens != encoded[1].tokens
    parts = net(task)
    for item in encoded:
        item.targets["label"] = np.ones(3, np.int64)
    losses = [float(output(task, parts, [item]).terms["tagging"].total) for item in encoded]
    assert losses[0] != losses[1]
