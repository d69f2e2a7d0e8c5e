"""Span corruption: nothing is lost, nothing crosses documents, and the loss is that of targets."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.data.batch import Batch, build_batch
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.tokenizer_training import train_tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.modules.nets import PretrainNet
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.span_corruption import SpanCorruption, choose_spans, sentinels
from ptft_lightning.terms import IGNORE

TEXT = 58  # tokens, in rows of 64


@pytest.fixture(scope="module")
def tokenizer(corpus_documents: list[str]) -> Tokenizer:
    return train_tokenizer(iter(corpus_documents), "bpe", 600, lowercase=False, sentinels=40)


def text_rows(
    tokenizer: Tokenizer, sizes: list[list[int]], seed: int = 0, framed: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of documents of these sizes, the first cut at its beginning, the last at its end."""
    rng = np.random.default_rng(seed)
    tokens = rng.choice(tokenizer.ordinary, (len(sizes), TEXT + 1))
    documents = np.zeros(tokens.shape, np.int64)
    for row, lengths in enumerate(sizes):
        at = 0
        for number, size in enumerate(lengths, start=1):
            stop = min(at + size, TEXT)
            documents[row, at:stop] = number
            if framed and number > 1:
                tokens[row, at] = tokenizer.begin
            if framed and stop < TEXT and stop - at > 1:
                tokens[row, stop - 1] = tokenizer.end
            at = stop
    tokens[documents == 0] = tokenizer.pad
    return tokens, documents


def restored(
    row: np.ndarray, documents: np.ndarray, segments: np.ndarray, tokenizer: Tokenizer
) -> list[list[int]]:
    """The documents that prefixes and targets stand for, by what the words of the paper say."""
    marks, found = sentinels(tokenizer, 100).tolist(), []
    for number in range(1, documents.max() + 1):
        inside = documents == number
        prefix, target = row[inside & (segments == 1)].tolist(), row[inside & (segments == 0)]
        target = target.tolist()
        assert inside.sum() == len(prefix) + len(target)
        assert (
            np.flatnonzero(inside)[: len(prefix)] == np.flatnonzero(inside & (segments == 1))
        ).all()
        end = []
        if target and target[-1] == tokenizer.end:
            end = [target.pop()]
        spans: dict[int, list[int]] = {}
        for token in target:
            if token in marks:
                assert token == marks[len(spans)]  # in their order, each once
                spans[token] = []
                current = spans[token]
            else:
                current.append(token)
        assert [token for token in prefix if token in marks] == list(spans)
        assert all(spans.values())
        found.append([t for token in prefix for t in spans.get(token, [token])] + end)
    return found


sizes_of_rows = st.lists(st.lists(st.integers(1, TEXT), max_size=8), min_size=1, max_size=3)


@given(
    sizes_of_rows,
    st.integers(0, 2**32),
    st.sampled_from([(0.15, 3.0), (0.3, 1.0), (0.5, 8.0), (0.15, 2.5)]),
)
def test_prefix_and_target_give_back_every_token(tokenizer, sizes, seed, settings):
    tokens, documents = text_rows(tokenizer, sizes, seed)
    objective = SpanCorruption(*settings)
    made, targets = objective.make(tokens, documents, np.arange(len(sizes)), seed, tokenizer)
    most = objective.spans(TEXT)
    assert made.shape == (len(sizes), TEXT + 2 * most)
    for row in range(len(sizes)):
        own, segments = targets["documents"][row], targets["segments"][row]
        again = restored(made[row], own, segments, tokenizer)
        wanted = [
            tokens[row, :-1][documents[row, :-1] == n].tolist()
            for n in range(1, documents[row].max() + 1)
        ]
        assert again == wanted
        # The targets are the tokens behind the prefixes, each from the place before it.
        used = targets["labels"][row] != IGNORE
        places = targets["slots"][row][used] + 1
        np.testing.assert_array_equal(made[row][places], targets["labels"][row][used])
        np.testing.assert_array_equal(places, np.flatnonzero((own > 0) & (segments == 0)))
        assert (own[places] == own[places - 1]).all()
        assert (made[row][own == 0] == tokenizer.pad).all()


@pytest.mark.parametrize(
    ("settings", "sizes", "spans", "noise"),
    [
        ((0.15, 3.0), [TEXT], 3, 9),
        ((0.15, 3.0), [30, 28], 3, 9),
        ((0.3, 3.0), [20, 20, 18], 6, 17),
        ((0.15, 8.0), [TEXT], 1, 9),
        ((0.15, 1000.0), [TEXT], 1, 9),
        ((0.2, 1.0), [TEXT], 12, 12),
    ],
)
def test_a_full_row_loses_what_it_should(tokenizer, settings, sizes, spans, noise):
    rows = 20
    tokens, documents = text_rows(tokenizer, [sizes] * rows, framed=False)
    made, targets = SpanCorruption(*settings).make(tokens, documents, np.arange(rows), 1, tokenizer)
    inside = np.isin(made, sentinels(tokenizer, 100))
    assert (inside.sum(1) == 2 * spans).all()
    hidden = (targets["labels"] != IGNORE).sum(1) - spans
    assert (hidden == noise).all()
    assert (targets["documents"] > 0).all()  # no place is wasted
    assert targets["slots"].shape[1] == noise + 2 * spans


def test_documents_share_the_spans_of_a_row_by_their_lengths(tokenizer):
    tokens, documents = text_rows(tokenizer, [[10, 20, 28]] * 600, framed=False)
    made, targets = SpanCorruption().make(tokens, documents, np.arange(600), 1, tokenizer)
    marks = np.isin(made, sentinels(tokenizer, 100)) & (targets["segments"] == 1)
    counts = [(marks & (targets["documents"] == n)).sum() / 600 for n in (1, 2, 3)]
    np.testing.assert_allclose(counts, 3 * np.array([10, 20, 28]) / TEXT, atol=0.1)


def test_every_set_of_spans_is_as_likely():
    size, number, noise, n = 7, 2, 3, 12_000
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**64, (n, 2, size), dtype=np.uint64)
    seen = Counter(
        tuple(map(tuple, choose_spans(size, number, noise, *keys).tolist())) for keys in words
    )
    edges = itertools.combinations(range(size + 1), 2)
    spans = list(edges)
    possible = {
        (a, b)
        for a, b in itertools.product(spans, spans)
        if a[1] < b[0] and a[1] - a[0] + b[1] - b[0] == noise
    }
    assert set(seen) == possible
    wanted = n / len(possible)
    chi = sum((count - wanted) ** 2 / wanted for count in seen.values())
    free = len(possible) - 1
    assert chi < free + 4 * np.sqrt(2 * free)


def test_the_spans_of_a_sample_are_its_own(tokenizer):
    tokens, documents = text_rows(tokenizer, [[30, 28], [TEXT], [5, 5, 48]])
    numbers = np.array([7, 2**40, 3])
    made, targets = SpanCorruption().make(tokens, documents, numbers, 3, tokenizer)
    part, its = SpanCorruption().make(tokens[1:], documents[1:], numbers[1:], 3, tokenizer)
    np.testing.assert_array_equal(part, made[1:])
    for name in its:
        np.testing.assert_array_equal(its[name], targets[name][1:])
    other, _ = SpanCorruption().make(tokens, documents, numbers, 4, tokenizer)
    assert (other != made).any(1).all()


@pytest.mark.parametrize("length", [*range(4, 70), 128, 250, 511])
def test_rows_hold_the_longest_text_that_fits(tokenizer, length):
    objective = SpanCorruption()
    text = objective.text_length(length, tokenizer)
    assert text + 2 * objective.spans(text) <= length
    assert text + 1 + 2 * objective.spans(text + 1) > length
    assert length - text - 2 * objective.spans(text) <= 2


def test_rows_of_a_store_are_filled(store: Path, bpe: Tokenizer, tokenizer: Tokenizer):
    """In both layouts; the store's tokenizer has other ids, which is all the same here."""
    for layout in ("blocks", "documents"):
        rows = Rows(TokenStore(store, "train"), layout, TEXT, bpe.pad, 0, 4, True)
        numbers = np.arange(len(rows))
        tokens, documents = rows.read(numbers)
        _, targets = SpanCorruption().make(tokens, documents, numbers, 0, tokenizer)
        real, given = (targets["documents"] > 0).sum(), (documents[:, :-1] > 0).sum()
        filled = real / targets["documents"].size
        assert filled > given / documents[:, :-1].size - 0.02
        predicted = (targets["labels"] != IGNORE).sum() / given
        assert 0.17 < predicted < 0.24  # 15 % hidden, a sentinel for three of them, ends


# Settings.


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"rate": 0}, "objective.rate is 0"), ({"mean_length": 0.5}, "objective.mean_length is 0.5")],
)
def test_settings_that_cannot_be(settings, told):
    with pytest.raises(UserError, match=re.escape(told)):
        SpanCorruption(**settings)


def test_too_few_sentinels(tokenizer, bpe):
    with pytest.raises(UserError, match=r"no special token <extra_id_0>.*--sentinels 100"):
        SpanCorruption().check(bpe)
    SpanCorruption().check(tokenizer)
    with pytest.raises(UserError, match="have 47 spans, and the tokenizer has 40 sentinels"):
        SpanCorruption().text_length(1024, tokenizer)
    with pytest.raises(UserError, match=r"data\.length is 3: too short .* objective\.rate 0\.15"):
        SpanCorruption().text_length(3, tokenizer)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_sentinels_are_no_text(kind, corpus_documents):
    with_, without = (
        train_tokenizer(iter(corpus_documents), kind, 700, False, sentinels=n) for n in (5, 0)
    )
    marks = sentinels(with_, 100)
    assert len(marks) == 5
    (ids,) = with_.encode(["a <extra_id_0> b <extra_id_4>"])
    assert not set(ids) & set(marks.tolist())
    assert set(marks.tolist()) <= set(with_.specials.tolist())
    assert not set(with_.ordinary.tolist()) & set(marks.tolist())
    assert len(sentinels(without, 100)) == 0
    assert with_.round_trips == without.round_trips


# The torch half.


def build(prefix_lm: bool, vocabulary: int, **shape: Any) -> PretrainNet:
    config = TransformerConfig(
        **{"dim": 32, "depth": 2, "heads": 4, "max_length": 80, "causal": True, **shape},
        prefix_lm=prefix_lm,
    )
    backbone = Transformer(config, vocabulary)
    net = PretrainNet(backbone, SpanCorruption().build_head(backbone, config.tie_embeddings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(0, 0.3, generator=generator)
            if p.ndim == 1 and name.endswith("weight"):
                p.add_(1.0)
    return net.double().eval()


def batch_of(tokenizer: Tokenizer, sizes: list[list[int]]) -> Batch:
    tokens, documents = text_rows(tokenizer, sizes)
    made, targets = SpanCorruption(0.3).make(tokens, documents, np.arange(len(sizes)), 0, tokenizer)
    own, segments = targets.pop("documents"), targets.pop("segments")
    return build_batch(made, own, np.arange(len(sizes)), targets, len(sizes), segments)


SIZES = [[20, 15, 23], [TEXT], [9, 7], []]


@pytest.mark.parametrize("prefix_lm", [True, False])
@pytest.mark.parametrize(
    "shape", [{}, {"positions": "learned", "norm_first": False}, {"window": 9}]
)
def test_the_loss_is_that_of_each_document_s_targets(tokenizer, prefix_lm, shape):
    """Each document alone in a row of its own, its logits all made, in double precision."""
    net, batch = build(prefix_lm, tokenizer.size, **shape), batch_of(tokenizer, SIZES)
    out = net(batch)
    term, total, count = out.terms["span_corruption"], 0.0, 0
    assert batch.documents is not None
    for row in range(len(SIZES)):
        for number in range(1, int(batch.documents[row].max()) + 1):
            inside = batch.documents[row] == number
            tokens, segments = batch.tokens[row][inside][None], batch.segments[row][inside][None]
            hidden = net.backbone(tokens, segments=segments)
            logits = net.head.logits(hidden, net.backbone.embedding.weight)[0].double()
            logp = logits.log_softmax(-1)
            for place in (segments[0] == 0).nonzero()[:, 0].tolist():
                total -= float(logp[place - 1, tokens[0, place]].detach())
                count += 1
    assert term.total.item() == pytest.approx(total, rel=1e-5)
    assert term.count == count
    assert term.nominal == batch.targets["slots"].shape[1]


@pytest.mark.parametrize("prefix_lm", [True, False])
def test_what_a_token_sees(tokenizer, prefix_lm):
    """By its gradient: a prefix sees itself in both directions, a target what is before it."""
    net = build(prefix_lm, tokenizer.size)
    batch = batch_of(tokenizer, [[20, 15, 23]])
    embeds = net.backbone.embedding(batch.tokens).detach().requires_grad_()
    hidden = net.backbone(
        batch.tokens, batch.documents, batch.positions, batch.segments, embeds=embeds
    )
    documents, segments = batch.documents[0], batch.segments[0]
    for query in range(batch.tokens.shape[1]):
        (gradient,) = torch.autograd.grad(hidden[0, query].sum(), embeds, retain_graph=True)
        seen = gradient[0].norm(dim=-1) > 0
        place = torch.arange(len(documents))
        both = (segments == 1) & (segments[query] == 1) & prefix_lm
        wanted = (documents == documents[query]) & ((place <= query) | both)
        if documents[query] > 0:
            assert torch.equal(seen, wanted), query


def test_without_segments_a_prefix_lm_is_causal(tokenizer):
    """So that what scores or reads a text token by token never sees what is to come."""
    mine, plain = (build(prefix_lm, tokenizer.size) for prefix_lm in (True, False))
    tokens = torch.from_numpy(text_rows(tokenizer, [[TEXT]])[0])
    torch.testing.assert_close(mine.backbone(tokens), plain.backbone(tokens))
    zeros = torch.zeros_like(tokens)
    torch.testing.assert_close(mine.backbone(tokens, segments=zeros), plain.backbone(tokens))


def test_read_whole_a_prefix_lm_is_an_encoder(tokenizer):
    mine, plain = (build(True, tokenizer.size) for _ in range(2))
    tokens = torch.from_numpy(text_rows(tokenizer, [[TEXT]])[0])
    ones = torch.ones_like(tokens)
    wanted = plain.backbone(tokens, segments=ones)
    mine.backbone.read_whole()
    assert not mine.backbone.causal
    torch.testing.assert_close(mine.backbone(tokens), wanted)
    documents = (torch.arange(TEXT + 1)[None] > 20).long() + 1
    torch.testing.assert_close(
        mine.backbone(tokens, documents), plain.backbone(tokens, documents, segments=ones)
    )


def test_a_prefix_lm_is_causal():
    with pytest.raises(UserError, match=r"backbone\.prefix_lm needs backbone\.causal true"):
        TransformerConfig(prefix_lm=True)


def test_shapes_it_cannot_learn():
    """A prompt is read as it was learnt, or not at all."""
    shapes = [{"token_types": n, "prefix_lm": p} for n in (0, 2) for p in (False, True)]
    found = [bool(SpanCorruption().problems({"config": shape})) for shape in shapes]
    assert found == [False, False, True, False]
    found = [bool(CausalLM().problems({"config": shape})) for shape in shapes]
    assert found == [False, True, False, True]


@pytest.mark.parametrize("length", [32, 48, 128])
def test_how_many_places_are_predicted_is_known_beforehand(tokenizer, length):
    text = SpanCorruption().text_length(length, tokenizer)
    tokens = np.full((2, text + 1), tokenizer.ordinary[0])
    _, made = SpanCorruption().make(tokens, np.ones_like(tokens), np.arange(2), 0, tokenizer)
    assert made["slots"].shape[1] == SpanCorruption().slots(length)
