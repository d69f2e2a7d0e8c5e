"""Spans of tags and their scores against seqeval and by enumeration."""

from __future__ import annotations

import random
import warnings

import pytest
from seqeval.metrics.sequence_labeling import classification_report, get_entities
from seqeval.scheme import BILOU, IOB2, IOBES

from ptft_lightning.tasks.tags import (
    PREFIXES,
    Span,
    kinds_of,
    may_follow,
    overlapping,
    scheme_of,
    span_scores,
    spans_of_tags,
    tag_set,
    tags_of_spans,
)

STRICT = {"BIO": IOB2, "BIOES": IOBES, "BILOU": BILOU}
KINDS = ("LOC", "PER", "work-of-art")


def random_tags(rng, scheme, length):
    """Any tags, most of them ill-formed."""
    return rng.choices(tag_set(KINDS, scheme), k=length)


def random_spans(rng, length):
    spans, at = [], 0
    while at < length:
        end = min(at + rng.randint(1, 4), length)
        if rng.random() < 0.5:
            spans.append(Span(rng.choice(KINDS), at, end))
        at = end + rng.choice((0, 0, 1, 3))
    return spans


@pytest.fixture
def rng():
    return random.Random(0)


@pytest.mark.parametrize("scheme", PREFIXES)
def test_spans_and_tags_are_the_same_thing(rng, scheme):
    for _ in range(300):
        length = rng.randint(0, 12)
        spans = random_spans(rng, length)
        tags = tags_of_spans(spans, length, scheme)
        assert len(tags) == length
        assert spans_of_tags(tags) == spans
        assert spans_of_tags(tags, scheme, strict=True) == spans


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
def test_ill_formed_tags_are_read_as_seqeval_does(rng, scheme):
    for _ in range(500):
        tags = random_tags(rng, scheme, rng.randint(1, 12))
        theirs = [Span(kind, start, end + 1) for kind, start, end in get_entities(tags)]
        assert spans_of_tags(tags) == theirs


def test_other_letters_play_the_same_parts(rng):
    other = {"BMES": str.maketrans("M", "I"), "BILOU": str.maketrans("LU", "ES")}
    for scheme, letters in other.items():
        for _ in range(100):
            tags = random_tags(rng, scheme, 9)
            same = [tag[0].translate(letters) + tag[1:] for tag in tags]
            assert spans_of_tags(tags) == spans_of_tags(same)
            assert spans_of_tags(tags, scheme, True) == spans_of_tags(same, "BIOES", True)


def corpus(rng, scheme):
    gold = [tags_of_spans(random_spans(rng, n), n, scheme) for n in range(1, 40)]
    found = [
        [rng.choice(tag_set(KINDS, scheme)) if rng.random() < 0.2 else tag for tag in tags]
        for tags in gold
    ]
    return gold, found


@pytest.mark.parametrize(
    ("scheme", "strict"),
    # The default mode knows neither BMES nor BILOU, the strict one no BMES.
    [("BIO", False), ("BIOES", False), ("BIO", True), ("BIOES", True), ("BILOU", True)],
)
def test_scores_are_those_of_seqeval(rng, scheme, strict):
    gold, found = corpus(rng, scheme)
    options = {"mode": "strict", "scheme": STRICT[scheme]} if strict else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = classification_report(gold, found, output_dict=True, **options)
    scores = span_scores(
        [spans_of_tags(tags, scheme, strict) for tags in gold],
        [spans_of_tags(tags, scheme, strict) for tags in found],
    )
    assert 0.1 < scores["f1"] < 0.9
    averages = {"": "micro avg", "macro_": "macro avg"}
    for ours, row in averages.items():
        for name, of in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert scores[f"{ours}{name}"] == pytest.approx(theirs[row][of], abs=1e-12)
    for kind in KINDS:
        for name, of in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert scores[f"{name}_{kind}"] == pytest.approx(theirs[kind][of], abs=1e-12)
    assert scores["support"] == theirs["micro avg"]["support"]


def test_any_tuples_are_scored():
    gold = [{("works_for", 0, 2), ("lives_in", 0, 4)}, set()]
    found = [{("works_for", 0, 2)}, {("lives_in", 1, 2), ("kills", 3, 4)}]
    scores = span_scores(gold, found)
    assert (scores["precision"], scores["recall"], scores["f1"]) == (1 / 3, 1 / 2, 2 / 5)
    assert (scores["f1_works_for"], scores["f1_lives_in"], scores["f1_kills"]) == (1, 0, 0)
    assert scores["macro_f1"] == pytest.approx(1 / 3)


def test_nothing_scores_nothing():
    assert span_scores([], []) == dict.fromkeys(
        ("precision", "recall", "f1", "macro_precision", "macro_recall", "macro_f1", "support"), 0.0
    )


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (["O", "B-A", "I-A"], "BIO"),
        (["B-A", "B-B"], "BIO"),
        (["S-A", "O"], "BIOES"),
        (["B-A", "M-A", "E-A"], "BMES"),
        (["B-A", "L-A", "U-B"], "BILOU"),
        (["NOUN", "O", "VERB"], None),
        ([], None),
    ],
)
def test_prefixes_tell_the_scheme(tags, scheme):
    assert scheme_of(tags) == scheme


@pytest.mark.parametrize("tags", [["B-A", "NOUN"], ["M-A", "I-A"], ["B-A", "L-A", "S-A"]])
def test_mixed_schemes_are_none(tags):
    with pytest.raises(ValueError, match=r"neither O|none of"):
        scheme_of(tags)


@pytest.mark.parametrize("scheme", PREFIXES)
def test_what_may_follow_is_what_spells_spans(rng, scheme):
    """A sentence of allowed steps is well-formed, any other is not."""
    formed = 0
    for _ in range(3000):
        tags = rng.choices(tag_set(("A", "B"), scheme), k=rng.randint(1, 4))
        steps = zip([None, *tags], [*tags, None], strict=True)
        allowed = all(may_follow(one, two, scheme) for one, two in steps)
        assert allowed == (tags_of_spans(spans_of_tags(tags), len(tags), scheme) == tags)
        formed += allowed
    assert 100 < formed < 2900


def test_overlaps_are_found(rng):
    assert overlapping([Span("A", 4, 6), Span("B", 0, 5)]) == (Span("B", 0, 5), Span("A", 4, 6))
    assert overlapping([Span("A", 0, 2), Span("B", 2, 3)]) is None
    for _ in range(200):
        spans = [Span("A", a, a + rng.randint(1, 3)) for a in rng.choices(range(12), k=3)]
        covered = [i for s in spans for i in range(s.start, s.end)]
        assert (overlapping(spans) is not None) == (len(covered) > len(set(covered)))


def test_kinds():
    assert kinds_of(["O", "B-PER", "I-work-of-art", "E-PER"]) == ["PER", "work-of-art"]
