"""Windows cover every token, the loss is each window's own, answers are those of the context."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.batch import build_batch
from ptft_lightning.data.example_rows import pack_examples
from ptft_lightning.data.examples import Columns, Encoded
from ptft_lightning.data.squad import Answer, Question
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import Scored
from ptft_lightning.tasks.question_answering import ExtractiveQA, SpanHead, best_spans
from ptft_lightning.terms import IGNORE


def questions(documents: list[str], count: int, seed: int = 0) -> list[Question]:
    """Answers are random stretches of the documents, without spaces around them."""
    rng = random.Random(seed)
    found = []
    for number, context in enumerate(rng.sample(documents, count)):
        while True:
            start = rng.randrange(len(context))
            text = context[start : start + rng.randint(1, 25)]
            if text == text.strip() != "":
                break
        asked = "Which river? 哪条河" * rng.randint(1, 4)
        answers = (Answer(text, start),)
        found.append(Question(context, asked, None, f"q {number}", id=str(number), answers=answers))
    return found


@pytest.fixture(params=["bpe", "wordpiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(("length", "stride"), [(24, None), (24, 1), (24, 999), (48, 7), (512, 64)])
def test_windows_cover_every_token(
    corpus_documents: list[str], tokenizer: Tokenizer, length: int, stride: int | None
) -> None:
    asked = questions(corpus_documents, 40)
    windows = ExtractiveQA(stride=stride).encode([*asked], [], tokenizer, length)
    assert max(len(w.tokens) for w in windows) <= length
    for number, group in itertools.groupby(windows, key=lambda w: w.example):
        mine, example = [*group], asked[number]
        ids, spans = tokenizer.encode_spans([example.text])[0]
        question = tokenizer.encode([example.pair or ""])[0][: (length - 3) // 2]
        covered: dict[int, int] = {}
        at = 0
        for window in mine:
            first, count = window.targets["context"].tolist()
            assert window.tokens[:first] == [tokenizer.begin, *question, tokenizer.end]
            assert window.tokens[first + count :] == [tokenizer.end]
            assert window.segments == [0] * first + [1] * (count + 1)
            np.testing.assert_array_equal(window.spans[first : first + count], spans[at:][:count])
            covered |= {at + i: window.tokens[first + i] for i in range(count)}
            at += min(stride or max(1, (length - first - 1) // 2), length - first - 1)
        assert [covered[i] for i in range(len(ids))] == ids
        assert len(mine) == 1 or at - len(ids) < length  # none is superfluous


def test_labels_are_the_answers(corpus_documents: list[str], tokenizer: Tokenizer) -> None:
    """The tokens of a label cover the answer, and without its first or last one they do not."""
    asked = questions(corpus_documents, 60)
    windows = ExtractiveQA().encode([*asked], [], tokenizer, 32)
    found = set()
    for window in windows:
        start, end = window.targets["label"].tolist()
        if start <= 0:
            continue
        found.add(window.example)
        (answer,) = asked[window.example].answers or ()
        first = int(window.targets["context"][0])
        spans = window.spans[first + start - 1 : first + end]
        stop = answer.start + len(answer.text)
        assert spans[0, 0] <= answer.start < spans[0, 1]
        assert spans[-1, 0] < stop <= spans[-1, 1]
    lost = [w.example for w in windows if w.count == 0]
    assert found.isdisjoint(lost)
    assert found.union(lost) == set(range(60))
    assert len(found) > 40


def labels(task: ExtractiveQA, example: Question, tokenizer: Tokenizer) -> list[tuple[Any, ...]]:
    windows = task.encode([example], [], tokenizer, 32)
    return [(*w.targets["label"].tolist(), w.count) for w in windows]


def test_windows_without_the_answer(wordpiece: Tokenizer) -> None:
    context = "the river and the sea . " * 12 + "stone"
    start = context.index("stone")
    example = Question(context, "what ?", None, "q", answers=(Answer("stone", start),))
    away = labels(ExtractiveQA(), example, wordpiece)
    assert len(away) > 2
    assert {row for row in away if row[0] <= 0} == {(0, 0, 1)}
    assert away[-1][0] == away[-1][1] > 0
    ignored = labels(ExtractiveQA(without="ignore"), example, wordpiece)
    assert {row for row in ignored if row[0] <= 0} == {(IGNORE, IGNORE, 0)}
    assert ignored[-1] == away[-1]
    none = Question(context, "what ?", None, "q", answers=())
    assert set(labels(ExtractiveQA(unanswerable=True), none, wordpiece)) == {(0, 0, 1)}
    unknown = Question(context, "what ?", None, "q")
    assert set(labels(ExtractiveQA(), unknown, wordpiece)) == {(IGNORE, IGNORE, 0)}


def test_what_cannot_be_trained_on_is_told(
    wordpiece: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    context = "the rivers and the sea . " * 12
    wide = Question(context, "what ? " * 40, None, "q 1", answers=(Answer(context[:200], 0),))
    inside = Question(context, "what ?", None, "q 2", answers=(Answer("iver", 5),))
    rows = labels(ExtractiveQA(), wide, wordpiece)
    assert set(rows) == {(IGNORE, IGNORE, 0)}
    said = capsys.readouterr().err
    assert "1 of 1 questions (100.0%) cut to 14 tokens; the first is q 1" in said
    assert "with an answer that fits in no window: not trained on; the first is q 1" in said
    labels(ExtractiveQA(), inside, wordpiece)
    assert "begins or ends inside a token: read as all of it; the first is q 2" in (
        capsys.readouterr().err
    )


def test_the_answer_of_most_annotators_is_learnt(wordpiece: Tokenizer) -> None:
    context = "the river and the sea"
    given = (Answer("the river", 0), Answer("sea", 18), Answer("sea", 18))
    for answers in (given, given[1:]):
        example = Question(context, "what ?", None, "q", answers=answers)
        assert labels(ExtractiveQA(), example, wordpiece) == [(5, 7, 1)]  # sea: s e a


# The head.


def batch_of(task: ExtractiveQA, windows: list[Encoded], length: int) -> Any:
    tokens, documents, segments, rows, starts = pack_examples(windows, length, 0)
    targets = task.targets(windows, rows, starts)
    numbers = np.arange(len(windows))
    return build_batch(tokens, documents, numbers, targets, 9, segments=segments)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_equals_one_by_one(
    corpus_documents: list[str], wordpiece: Tokenizer, causal: bool
) -> None:
    """Also with an empty slot; and the loss is a formula over the window's places alone."""
    task = ExtractiveQA()
    windows = task.encode([*questions(corpus_documents, 6)], [], wordpiece, 32)[:9]
    config = TransformerConfig(dim=16, depth=2, heads=2, max_length=96, dropout=0.0, causal=causal)
    torch.manual_seed(0)
    backbone = Transformer(config, wordpiece.size).double().eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    head = task.build_head(backbone, []).double()

    def out(some: list[Encoded]) -> Any:
        batch = batch_of(task, some, 96)
        hidden = backbone(batch.tokens, batch.documents, batch.positions, batch.segments)
        return hidden, batch, head(hidden, batch)

    _, _, packed = out([*windows, Encoded([], [])])
    single = [out([window]) for window in windows]
    torch.testing.assert_close(packed.scores[:9], torch.cat([s.scores for *_, s in single]))
    total = sum(s.terms["answer"].total for *_, s in single)
    torch.testing.assert_close(packed.terms["answer"].total, total)
    assert packed.terms["answer"].count == sum(w.count for w in windows)
    for window, (hidden, _, output) in zip(windows, single, strict=True):
        first, count = window.targets["context"].tolist()
        none = len(window.tokens) - 1 if causal else 0
        places = [none, *range(first, first + count)]
        chances = head.outputs(hidden[0, places]).float().log_softmax(0)
        label = window.targets["label"]
        wanted = -(chances[label[0], 0] + chances[label[1], 1]) / 2 if window.count else 0.0
        torch.testing.assert_close(output.terms["answer"].total, torch.as_tensor(wanted).float())
        torch.testing.assert_close(output.scores[0, 0, 2], chances[0].sum().float())


def test_without_targets_there_is_no_gradient_but_no_nan_either() -> None:
    head = SpanHead(8, causal=False, longest=4, n_best=3)
    batch = batch_of(ExtractiveQA(), [Encoded([], [])] * 3, 16)
    output = head(torch.randn(2, 16, 8), batch)
    term = output.terms["answer"]
    assert (term.total.item(), term.count.item()) == (0.0, 0)
    term.share(3, 0).backward()
    assert all(bool((p.grad == 0).all()) for p in head.parameters())


@pytest.mark.parametrize(("places", "longest", "count"), [(6, 3, 4), (1, 3, 4), (5, 99, 30)])
def test_best_spans_equal_trying_all(places: int, longest: int, count: int) -> None:
    torch.manual_seed(0)
    starts, ends = torch.randn(2, 5, places)
    ends[:, -1] = -math.inf
    got = best_spans(starts, ends, longest, count)
    assert got.shape == (5, count, 3)
    for row in range(5):
        every = [
            (float(starts[row, i] + ends[row, j]), i, j)
            for i in range(places - 1)
            for j in range(i, min(i + longest, places - 1))
        ]
        wanted = sorted(every, reverse=True)[:count]
        real = [(s, int(i), int(j)) for i, j, s in got[row].tolist() if s > -math.inf]
        assert [(i, j) for _, i, j in real] == [(i, j) for _, i, j in wanted]
        assert [s for s, _, _ in real] == pytest.approx([s for s, _, _ in wanted])


# Answers.

CONTEXT = "Le café «Été»  在北京市，\n the old sea"


def scores(*spans: tuple[int, int, float], absent: float = -9.0) -> torch.Tensor:
    return torch.tensor([(0, 0, absent), *spans])


def combined(task: ExtractiveQA, tokenizer: Tokenizer, *scored: torch.Tensor) -> dict[str, Any]:
    """One question whose windows have these scores; windows of 8 tokens, one after the other."""
    example = Question(CONTEXT, "x", None, "q", id="1")
    spans = tokenizer.encode_spans([CONTEXT])[0][1]
    windows = []
    for i in range(len(scored)):
        part = spans[8 * i : 8 * (i + 1)]
        covered = np.concatenate([np.zeros((2, 2), np.int64), part, np.zeros((1, 2), np.int64)])
        windows.append(Encoded([0] * len(covered), [], targets={"context": np.array([2, 8])}))
        windows[-1].spans = covered
    made = Scored([example], windows, dict(enumerate(scored)), [], tokenizer)
    (record,) = task.records(made).values()
    return record


def test_answers_are_exactly_the_contexts_characters(tokenizer: Tokenizer) -> None:
    """Every single token and all pairs, without the spaces that a token may carry."""
    spans = tokenizer.encode_spans([CONTEXT])[0][1]
    for i, j in itertools.combinations_with_replacement(range(8), 2):
        record = combined(ExtractiveQA(), tokenizer, scores((i, j, -1.0)))
        wanted = CONTEXT[spans[i, 0] : spans[j, 1]]
        assert record["answer"] == wanted.strip()
        if wanted.strip():
            assert CONTEXT[record["start"] : record["end"]] == record["answer"]


def test_the_best_answers_of_all_windows(wordpiece: Tokenizer) -> None:
    one = scores((0, 0, -3.0), (1, 1, -4.0), absent=-0.5)
    other = scores((0, 1, -0.7), (2, 2, -math.inf), absent=-2.0)
    task = ExtractiveQA(n_best=2)
    record = combined(task, wordpiece, one, other)
    spans = wordpiece.encode_spans([CONTEXT])[0][1]
    assert (record["start"], record["end"]) == (spans[8, 0], spans[9, 1])
    assert record["score"] == pytest.approx(math.exp(-0.7), abs=1e-6)
    assert [round(math.log(a["score"]), 2) for a in record["n_best"]] == [-0.7, -3.0]
    assert "doubt" not in record


def test_a_span_of_two_windows_is_one_answer(wordpiece: Tokenizer) -> None:
    """With the better of its scores."""
    example = Question("sea", "x", None, "q", id="1")
    window = Encoded([0, 0], [], targets={"context": np.array([0, 1])}, spans=np.array([[0, 3]]))
    both = {0: scores((0, 0, -2.0)), 1: scores((0, 0, -1.0))}
    (record,) = (
        ExtractiveQA().records(Scored([example], [window] * 2, both, [], wordpiece)).values()
    )
    assert record["n_best"] == [{"answer": "sea", "start": 0, "end": 3, "score": 0.367879}]


@pytest.mark.parametrize(
    ("threshold", "answered"), [(None, True), (0.4, False), (0.6, True), (-9.0, False)]
)
def test_no_answer_where_it_is_likelier_by_the_threshold(
    wordpiece: Tokenizer, threshold: float | None, answered: bool
) -> None:
    """No answer is as likely as in the window that has least of it: here -1.5 against -2."""
    task = ExtractiveQA(unanswerable=True, threshold=threshold)
    task.found = {"threshold": 0.5}
    one, other = scores((0, 0, -2.0), absent=-1.5), scores((0, 0, -5.0), absent=-0.1)
    record = combined(task, wordpiece, one, other)
    assert record["doubt"] == pytest.approx(0.5)
    assert record["answer"] == ("Le" if answered else "")
    assert (record["start"] is None) != answered
    assert record["n_best"][0]["answer"] == "Le"


def test_a_context_without_tokens_has_no_answer(wordpiece: Tokenizer) -> None:
    record = combined(ExtractiveQA(unanswerable=True), wordpiece, scores(absent=0.0))
    assert (record["answer"], record["doubt"], record["n_best"]) == ("", None, [])
    assert combined(ExtractiveQA(), wordpiece, scores(absent=0.0))["answer"] == ""


def line(answer: str, best: str, doubt: float | None) -> dict[str, Any]:
    return {"answer": answer, "doubt": doubt, "n_best": [{"answer": best}] if best else []}


def test_the_threshold_that_is_best_is_measured() -> None:
    """By hand: answering below a doubt of 1 gets the first and the third right, not the fourth."""
    sea = (Answer("sea", 0),)
    examples = [Question("sea", "x", None, "q", answers=a) for a in (sea, sea, (), (), sea)]
    lines = [
        *(line("sea", "sea", -1.0), line("", "old sea", 0.5), line("", "sea", 3.0)),
        *(line("", "sea", 2.0), line("", "", None)),
    ]
    task = ExtractiveQA(unanswerable=True)
    got = task.judge([*examples], dict(enumerate(lines)))
    assert got["f1"] == pytest.approx(3 / 5)
    assert got["best_f1"] == pytest.approx((1 + 2 / 3 + 1 + 1) / 5)
    assert got["best_f1_threshold"] == (0.5 + 2) / 2
    assert task.judge([], {})["best_f1"] == 0


def test_typed_questions() -> None:
    example = ExtractiveQA().typed("What?\tThe sea.\tOld.", Columns(), "--text 1")
    assert (example.pair, example.text) == ("What?", "The sea.\tOld.")
    for text in ("What?", "\tThe sea.", "What?\t "):
        with pytest.raises(UserError, match="--text 1: give a question, a tab"):
            ExtractiveQA().typed(text, Columns(), "--text 1")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stride": 0}, "task.stride is 0"),
        ({"n_best": 0}, "task.n_best is 0"),
        ({"longest_answer": -1}, "task.longest_answer is -1"),
        ({"unanswerable": True, "without": "ignore"}, "task.without ignore"),
        ({"threshold": 0.5}, "set task.unanswerable true"),
        ({"monitor": "best_f1"}, "set task.unanswerable true"),
    ],
)
def test_settings_that_do_not_go(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ExtractiveQA(**settings)


def test_a_config_rebuilds_the_task() -> None:
    task = ExtractiveQA(unanswerable=True, language="zh", stride=9, threshold=0.5, n_best=2)
    assert ExtractiveQA(**task.config()).config() == task.config()
