"""Masked language modelling: how many, which, what is shown instead, and the loss over them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers

from ptft_lightning.data.batch import build_batch
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.terms import IGNORE

LENGTH = 64
Arrays = tuple[np.ndarray, np.ndarray]


def make(
    tokens: np.ndarray,
    documents: np.ndarray,
    tokenizer: Tokenizer,
    samples: np.ndarray | None = None,
    seed: int = 0,
    rate: float = 0.15,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shown tokens, slots and labels."""
    numbers = np.arange(len(tokens)) if samples is None else samples
    shown, targets = MaskedLM(rate).make(tokens, documents, numbers, seed, tokenizer)
    assert set(targets) == {"slots", "labels"}
    return shown, targets["slots"], targets["labels"]


def full_rows(tokenizer: Tokenizer, rows: int, length: int = LENGTH, seed: int = 0) -> Arrays:
    """Rows of ordinary tokens, one document each."""
    ordinary = np.setdiff1d(np.arange(tokenizer.size), tokenizer.specials)
    tokens = np.random.default_rng(seed).choice(ordinary, (rows, length + 1))
    return tokens, np.ones((rows, length + 1), np.int64)


def mixed_rows(tokenizer: Tokenizer, rows: int, seed: int = 0) -> Arrays:
    """Rows with special tokens anywhere, several documents and padding of any length."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, tokenizer.size, (rows, LENGTH + 1))
    special = rng.random(tokens.shape) < rng.random((rows, 1))
    tokens = np.where(special, rng.choice(tokenizer.specials, tokens.shape), tokens)
    documents = np.sort(rng.integers(1, 4, tokens.shape), axis=1)
    documents[np.arange(LENGTH + 1) >= rng.integers(0, LENGTH + 2, (rows, 1))] = 0
    tokens[documents == 0] = tokenizer.pad
    return tokens, documents


@given(seed=st.integers(0, 1000), rate=st.sampled_from([0.01, 0.15, 0.3, 0.5, 0.99]))
def test_counts_places_and_labels(bpe: Tokenizer, seed: int, rate: float) -> None:
    tokens, documents = mixed_rows(bpe, 12, seed)
    before = tokens.copy()
    shown, slots, labels = make(tokens, documents, bpe, seed=seed, rate=rate)
    assert (tokens == before).all()  # the caller's rows are not changed
    places = max(1, round(rate * LENGTH))
    assert slots.shape == labels.shape == (12, places)
    assert shown.shape == (12, LENGTH)
    specials = set(bpe.specials.tolist())
    for row in range(12):
        eligible = {
            i
            for i in range(LENGTH)
            if documents[row, i] > 0 and int(tokens[row, i]) not in specials
        }
        expected = min(max(1, round(rate * len(eligible))), len(eligible), places)
        used = labels[row] != IGNORE
        chosen = slots[row][used].tolist()
        assert len(chosen) == len(set(chosen)) == expected
        assert set(chosen) <= eligible
        assert labels[row][used].tolist() == tokens[row, chosen].tolist()
        others = np.setdiff1d(np.arange(LENGTH), chosen)
        assert (shown[row, others] == tokens[row, others]).all()
        assert ((slots[row] >= 0) & (slots[row] < LENGTH)).all()  # unused ones can be gathered
        changed = [i for i in chosen if shown[row, i] != tokens[row, i]]
        assert all(shown[row, i] == bpe.mask or int(shown[row, i]) not in specials for i in changed)


def test_rows_without_ordinary_tokens_have_no_targets(bpe: Tokenizer) -> None:
    tokens = np.stack([np.full(LENGTH + 1, bpe.pad), np.full(LENGTH + 1, bpe.end)])
    documents = np.stack([np.zeros(LENGTH + 1, int), np.ones(LENGTH + 1, int)])
    shown, _, labels = make(tokens, documents, bpe, np.array([-1, 3]))
    assert (labels == IGNORE).all()
    assert (shown == tokens[:, :-1]).all()


def within(count: int, share: float, total: int) -> bool:
    """Within 4.5 standard deviations of a binomial count."""
    return bool(abs(count - share * total) < 4.5 * (total * share * (1 - share)) ** 0.5)


def test_eighty_ten_ten(bpe: Tokenizer) -> None:
    tokens, documents = full_rows(bpe, 1500)
    shown, slots, labels = make(tokens, documents, bpe)
    at = np.arange(len(tokens))[:, None]
    now = shown[at, slots]
    assert (labels != IGNORE).all()
    total, ordinary = labels.size, bpe.size - len(bpe.specials)
    assert total > 10_000
    assert within((now == bpe.mask).sum(), 0.8, total)
    assert within((now == labels).sum(), 0.1 + 0.1 / ordinary, total)
    drawn = now[(now != bpe.mask) & (now != labels)]
    assert within(len(drawn), 0.1 - 0.1 / ordinary, total)
    assert not np.isin(drawn, bpe.specials).any()
    # Random tokens come from the whole vocabulary, evenly.
    counts = np.bincount(drawn, minlength=bpe.size)[np.setdiff1d(np.arange(bpe.size), bpe.specials)]
    expected = len(drawn) / ordinary
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - ordinary) < 5 * (2 * ordinary) ** 0.5


def test_every_position_is_as_likely_and_independent(bpe: Tokenizer) -> None:
    rows = 3000
    tokens, documents = full_rows(bpe, rows)
    _, slots, _ = make(tokens, documents, bpe)
    chosen = np.zeros((rows, LENGTH))
    chosen[np.arange(rows)[:, None], slots] = 1
    share = slots.shape[1] / LENGTH
    spread = (rows * share * (1 - share)) ** 0.5
    assert (abs(chosen.sum(0) - rows * share) < 4.5 * spread).all()
    pair = share * (slots.shape[1] - 1) / (LENGTH - 1)  # without replacement
    for distance in (1, 2, 7):
        both = (chosen[:, distance:] * chosen[:, :-distance]).mean()
        assert both == pytest.approx(pair, rel=0.05)


def test_what_is_shown_does_not_depend_on_where(bpe: Tokenizer) -> None:
    """Fates by slot, not by rank of the position: the first slot is masked as often as the last."""
    tokens, documents = full_rows(bpe, 3000)
    shown, slots, _ = make(tokens, documents, bpe)
    masked = shown[np.arange(3000)[:, None], slots] == bpe.mask
    assert all(within(column, 0.8, 3000) for column in masked.sum(0))
    chosen = np.zeros((3000, LENGTH), bool)
    chosen[np.arange(3000)[:, None], slots] = True
    places = slots.shape[1]
    kept = ~masked  # a slot's fate tells nothing of which positions were chosen
    assert within(chosen[:, :places][kept].sum(), places / LENGTH, kept.sum())


def test_mask_depends_on_seed_and_sample_alone(bpe: Tokenizer) -> None:
    tokens, documents = mixed_rows(bpe, 20)
    samples = np.arange(20) * 10**9
    whole = make(tokens, documents, bpe, samples)
    for rows in ([3], [7, 3], [19, 3, 0, 5], list(reversed(range(20)))):
        part = make(tokens[rows], documents[rows], bpe, samples[rows])
        for mine, theirs in zip(part, whole, strict=True):
            assert (mine == theirs[rows]).all()


def test_masks_differ_between_samples_epochs_and_seeds(bpe: Tokenizer) -> None:
    tokens, documents = full_rows(bpe, 1)
    tokens, documents = np.repeat(tokens, 40, 0), np.repeat(documents, 40, 0)
    chosen = [
        tuple(sorted(row))
        for seed in (0, 1)
        for row in make(tokens, documents, bpe, np.arange(40), seed)[1].tolist()
    ]
    assert len(set(chosen)) == 80


def test_rows_of_a_store(bpe: Tokenizer, store: Path) -> None:
    """On real rows: begin, end and padding stay, the rate is met."""
    rows = Rows(TokenStore(store, "train"), "documents", LENGTH, bpe.pad, 0, 4, True)
    numbers = np.arange(len(rows))
    tokens, documents = rows.read(numbers)
    shown, _, labels = make(tokens, documents, bpe, numbers)
    special = np.isin(tokens[:, :-1], bpe.specials)
    assert special.any()
    assert (shown[special] == tokens[:, :-1][special]).all()
    eligible = ((documents[:, :-1] > 0) & ~special).sum()
    assert (labels != IGNORE).sum() == pytest.approx(0.15 * eligible, rel=0.03)


def test_vocabulary_with_holes_and_other_names() -> None:
    vocabulary = {"<unk>": 0, "<mask>": 7, "a": 9, "b": 3}
    raw = RawTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(["<unk>", "<mask>"])
    tokenizer = Tokenizer(raw.to_str())
    MaskedLM().check(tokenizer)
    tokens = np.tile([9, 3], (200, 16))
    shown, _, labels = make(tokens, np.ones_like(tokens), tokenizer, rate=0.5)
    assert set(labels.ravel().tolist()) == {9, 3}
    assert 0 not in shown
    assert (shown < tokenizer.size).all()


def test_padding_that_looks_like_text_is_never_chosen() -> None:
    """Without a padding token, id 0 fills rows, which is an ordinary one here."""
    raw = RawTokenizer(models.WordLevel({"a": 0, "b": 1, "<mask>": 2}, unk_token="a"))
    tokenizer = Tokenizer(raw.to_str())
    assert tokenizer.pad == 0
    tokens, documents = np.zeros((50, 21), np.int64), np.zeros((50, 21), np.int64)
    documents[:, :7] = 1
    _, slots, labels = make(tokens, documents, tokenizer, rate=0.5)
    assert (slots[labels != IGNORE] < 7).all()
    assert ((labels != IGNORE).sum(1) == 4).all()


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5])
def test_wrong_rate_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match=r"objective\.rate is .*: give a share between 0 and 1"):
        MaskedLM(rate)


def test_tokenizer_without_a_mask_is_refused() -> None:
    raw = RawTokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UserError, match=r"needs a mask token.*ptft_lightning tokenizer"):
        MaskedLM().check(Tokenizer(raw.to_str()))


@pytest.mark.parametrize("tied", [True, False])
def test_head_is_cross_entropy_over_the_targets_alone(bpe: Tokenizer, tied: bool) -> None:
    torch.manual_seed(0)
    tokens, documents = mixed_rows(bpe, 6, seed=3)
    shown, slots, labels = make(tokens, documents, bpe)
    batch = build_batch(
        shown, documents[:, :-1], np.arange(6), {"slots": slots, "labels": labels}, 6
    )
    sizes = {"dim": 16, "input_dim": 16, "vocab_size": bpe.size}
    backbone: Any = SimpleNamespace(**sizes, norm_eps=1e-5, bias=True)
    head = MaskedLM().build_head(backbone, tied)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    hidden, embedding = torch.randn(6, LENGTH, 16), torch.randn(bpe.size, 16)
    output = head(hidden, batch, embedding)
    losses, right = [], 0
    projection: Any = head.projection
    for row in range(6):
        for slot, label in zip(slots[row], labels[row], strict=True):
            if label == IGNORE:
                continue
            state: Any = head.norm(F.gelu(head.dense(hidden[row, slot])))
            weight = embedding if tied else projection.weight
            logits = weight @ state + projection.bias
            losses.append(F.cross_entropy(logits, torch.tensor(label)))
            right += int(logits.argmax()) == label
    term = output.terms["masked"]
    assert term.total.item() == pytest.approx(sum(loss.item() for loss in losses), rel=1e-5)
    assert term.count == len(losses)
    assert term.nominal == slots.shape[1]
    assert output.sums["accuracy"] == right
