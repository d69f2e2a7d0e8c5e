"""Next-sentence and sentence-order prediction: the loss by its formula, alone and beside masks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.pair_rows import PairDataset, PairRows
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.steps import Slots
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.tokenizer_training import train_tokenizer
from ptft_lightning.modules.meter import Meter
from ptft_lightning.modules.nets import PretrainNet, fill
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.objectives.sentence_pairs import NextSentence, SentenceOrder
from ptft_lightning.terms import IGNORE

LENGTH = 48
KINDS = pytest.mark.parametrize("kind", [NextSentence, SentenceOrder])
RATES = pytest.mark.parametrize("rate", [None, 0.15])


@pytest.fixture(scope="module")
def pair_store(
    corpus_file: Path, wordpiece: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    at = tmp_path_factory.mktemp("pairs")
    given = {"validation_share": 0.0, "word_starts": True, "sentences": True}
    prepare_store([str(corpus_file)], wordpiece, at, **given)
    return at


def batch_of(objective: Any, store: Path, tokenizer: Tokenizer, numbers: list[int]) -> Any:
    rows = PairRows(
        TokenStore(store, "train"), objective.pairs, LENGTH, tokenizer, 3, 16, shuffle=True
    )
    slots = np.array(numbers)
    return PairDataset(rows, objective, tokenizer, 3, True)[Slots(slots, slots)]


def net_of(objective: Any, tokenizer: Tokenizer) -> PretrainNet:
    config = TransformerConfig(dim=32, depth=2, heads=2, max_length=LENGTH, token_types=2)
    with torch.device("meta"):
        backbone = Transformer(config, tokenizer.size)
        net = PretrainNet(backbone, objective.build_head(backbone, True))
    fill(net, torch.device("cpu"), lambda name: None, seed=0)
    return net.double()


def pair_loss_by_numpy(net: PretrainNet, batch: Any) -> tuple[float, float, int, int]:
    """Sum over rows of the mean over a row's pairs; sum of losses, pairs, right ones: from the
    first token of each document of the batch, in float64."""
    hidden = net.hidden(batch).detach().numpy()
    weights = {k: v.detach().numpy() for k, v in net.head.named_parameters()}
    documents, labels = batch.documents.numpy(), batch.targets["pair"].numpy()
    shared = total = 0.0
    count = right = 0
    for row in range(len(documents)):
        losses = []
        for pair in range(int(documents[row].max())):
            first = hidden[row, (documents[row] == pair + 1).argmax()]
            pooled = np.tanh(weights["pooler.weight"] @ first + weights["pooler.bias"])
            scores = weights["classifier.weight"] @ pooled + weights["classifier.bias"]
            label = int(labels[row, pair])
            losses.append(math.log(np.exp(scores).sum()) - scores[label])
            right += int(scores.argmax() == label)
        assert (labels[row, len(losses) :] == IGNORE).all()
        shared += sum(losses) / max(1, len(losses))
        total, count = total + sum(losses), count + len(losses)
    return shared, total, count, right


@KINDS
@RATES
def test_the_loss_is_the_formula(kind, rate, pair_store, wordpiece):
    objective = kind(rate)
    numbers = [*range(40), -1]
    batch = batch_of(objective, pair_store, wordpiece, numbers)
    net = net_of(objective, wordpiece)
    output = net(batch)
    shared, total, count, right = pair_loss_by_numpy(net, batch)
    term = output.terms["pair"]
    assert count > 40  # some rows have several pairs
    assert {0, 1} < set(batch.targets["pair"].flatten().tolist())
    assert float(term.total) == pytest.approx(total, rel=1e-6)
    assert float(term.minimised) == pytest.approx(shared, rel=1e-6)
    assert (int(term.count), int(output.sums["pair_accuracy"])) == (count, right)
    assert float(term.share(10, 0)) == pytest.approx(shared / 10, rel=1e-6)
    assert [*output.terms] == (["pair"] if rate is None else ["masked", "pair"])
    if rate is None:
        return
    # The other term is masked LM's own, by its formula.
    hidden, head = net.hidden(batch), net.head
    slots, labels = batch.targets["slots"], batch.targets["labels"]
    chosen = hidden[torch.arange(len(slots))[:, None], slots]
    logits = F.linear(
        head.norm(F.gelu(head.dense(chosen))), net.backbone.embedding.weight, head.projection.bias
    )
    used = labels != IGNORE
    wanted = -logits.log_softmax(-1)[used].gather(1, labels[used][:, None]).sum()
    assert float(output.terms["masked"].total) == pytest.approx(float(wanted), rel=1e-6)
    meter = Meter()
    meter.add(output, batch)

    class Alone:
        @staticmethod
        def reduce(value: Any, reduce_op: str) -> Any:
            return value

    sums = meter.take(Alone())
    assert sums.losses["pair"] == pytest.approx(total / count, rel=1e-6)
    assert sums.metrics["pair_accuracy"] == pytest.approx(right / count)
    assert sums.metrics["accuracy"] <= 1


@KINDS
def test_masks_are_those_of_masked_lm_and_spare_what_stands_around(kind, pair_store, wordpiece):
    objective, numbers = kind(0.3), list(range(40))
    plain = batch_of(kind(None), pair_store, wordpiece, numbers)
    masked = batch_of(objective, pair_store, wordpiece, numbers)
    special = torch.isin(plain.tokens, torch.from_numpy(wordpiece.specials))
    assert torch.equal(plain.tokens[special], masked.tokens[special])
    wanted, targets = MaskedLM(0.3).make(
        np.pad(plain.tokens.numpy(), ((0, 0), (0, 1))),
        np.pad(plain.documents.numpy(), ((0, 0), (0, 1))),
        np.array(numbers),
        3,
        wordpiece,
    )
    assert torch.equal(masked.tokens, torch.from_numpy(wanted))
    assert torch.equal(masked.targets["labels"], torch.from_numpy(targets["labels"]))
    assert (masked.tokens != plain.tokens).any()
    at = masked.targets["slots"][masked.targets["labels"] != IGNORE]
    assert not special[torch.arange(40)[:, None].expand_as(masked.targets["slots"])[
        masked.targets["labels"] != IGNORE
    ], at].any()  # fmt: skip


def test_whole_words_are_hidden_beside_pairs(corpus_documents, corpus_file, tmp_path):
    wordpiece = train_tokenizer(iter(corpus_documents), "wordpiece", 130, False)
    given = {"validation_share": 0.0, "word_starts": True, "sentences": True}
    prepare_store([str(corpus_file)], wordpiece, tmp_path, **given)
    pair_store = tmp_path
    objective = NextSentence(0.3, whole_words=True)
    batch = batch_of(objective, pair_store, wordpiece, list(range(30)))
    plain = batch_of(NextSentence(None), pair_store, wordpiece, list(range(30))).tokens
    hidden = torch.zeros_like(plain, dtype=torch.bool)
    labels, slots = batch.targets["labels"], batch.targets["slots"]
    rows = torch.arange(30)[:, None].expand_as(slots)
    hidden[rows[labels != IGNORE], slots[labels != IGNORE]] = True
    continues = torch.tensor(
        [[wordpiece.raw.id_to_token(t).startswith("##") for t in row] for row in plain.tolist()]
    )
    assert continues.any()
    # A piece that continues a word is hidden where its beginning is, and only there.
    # (A sentence that is longer than half of a row is cut, perhaps within a word.)
    special = torch.isin(plain, torch.from_numpy(wordpiece.specials))
    at = continues[:, 1:] & ~special[:, :-1]
    assert torch.equal(hidden[:, 1:][at], hidden[:, :-1][at])
    assert hidden.any()


@KINDS
def test_the_gradient_is_the_same_however_a_step_is_split(kind, pair_store, wordpiece):
    objective, numbers = kind(0.15), [0, 5, 9, 31, 7, 2]

    def gradient(parts: list[list[int]]) -> list[torch.Tensor]:
        net = net_of(objective, wordpiece)
        for part in parts:
            output = net(batch_of(objective, pair_store, wordpiece, part))
            sum(term.share(len(numbers), 0) for term in output.terms.values()).backward()
        return [p.grad for p in net.parameters()]

    whole = gradient([numbers])
    split = gradient([[0, 5, -1], [9], [31, 7, 2, -1]])
    for one, other in zip(whole, split, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert one.abs().sum() > 0


def test_what_training_begins_near(wordpiece):
    assert NextSentence(None).uniform_loss(100) == pytest.approx(math.log(2))
    assert SentenceOrder(0.15).uniform_loss(100) == pytest.approx(math.log(200))
    assert NextSentence(0).rate is None
    assert NextSentence(0).token_term is None
    assert SentenceOrder().token_term == "masked"
