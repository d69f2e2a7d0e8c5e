"""The generation task's halves: what counts in the loss, and answers written token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.conversations import Conversation, Turn, conversation
from ptft_lightning.data.example_rows import ExampleDataset
from ptft_lightning.data.steps import Slots
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.modules.decoding import ready_to_decode
from ptft_lightning.modules.nets import TaskNet
from ptft_lightning.tasks.decoding import Decoding
from ptft_lightning.tasks.generation import NO_ANSWER, Generation
from ptft_lightning.terms import Output
from ptft_lightning.tuning.base import Reader

LENGTH = 48
SHAPE = {"dim": 16, "depth": 2, "heads": 2, "max_length": LENGTH, "causal": True}


def talk(i: int) -> Conversation:
    turns = [Turn("user", "river " * (1 + i % 3)), Turn("assistant", "the sea"), Turn("user", "a")]
    return conversation(turns if i % 2 else turns[2:], ["stone " * (1 + i % 4)], f"line {i}")


def make_batch(
    task: Generation, tokenizer: Tokenizer, count: int, reserved: int = 0, length: int = LENGTH
) -> Batch:
    encoded = task.encode([talk(i) for i in range(count)], [], tokenizer, length - reserved)
    given = {"shuffle": False, "audit": False, "reserved": reserved}
    rows = ExampleDataset(encoded, task, length, tokenizer, 0, **given)
    numbers = np.arange(count, dtype=np.int64)
    return rows[Slots(numbers, numbers)]


def build(
    tokenizer: Tokenizer, reader: Reader | None = None, seed: int = 0, **shape: Any
) -> TaskNet:
    torch.manual_seed(seed)
    backbone = Transformer(TransformerConfig(**{**SHAPE, **shape}), tokenizer.size)
    net = TaskNet(backbone, Generation().build_head(backbone, []), reader)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


@pytest.mark.parametrize("loss_on", ["every", "last"])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradient_are_those_of_answers_alone(loss_on, tied, bpe):
    """Against cross-entropy of each conversation read alone, by a mask of its own."""
    task = Generation(loss_on=loss_on)
    net = build(bpe, tie_embeddings=tied)
    batch = make_batch(task, bpe, 7)
    hidden = net.hidden(batch).detach().requires_grad_()
    term = net.head(hidden, batch).terms["generation"]
    (gradient,) = torch.autograd.grad(term.total, hidden)
    total, count = 0.0, 0
    for example in task.encode([talk(i) for i in range(7)], [], bpe, LENGTH):
        ids = torch.tensor([example.tokens])
        answers = np.zeros(len(example.tokens), bool)
        answers[example.targets["counted"]] = True
        weight = net.backbone.embedding.weight if tied else net.head.projection.weight
        logits = F.linear(net.backbone(ids), weight)[0, :-1]
        losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        total += float(losses[torch.from_numpy(answers[1:])].detach().sum())
        count += int(answers[1:].sum())
        assert example.count == answers.sum()
    assert float(term.total) == pytest.approx(total, rel=1e-5)
    assert (int(term.count), batch.step_targets) == (count, count)
    # No other place has a gradient: not a prompt's logits, not padding.
    counts = torch.zeros(gradient.shape[:2], dtype=torch.bool)
    counts[batch.targets["row"], batch.targets["at"]] = True
    assert gradient[~counts].abs().max() == 0
    assert gradient[counts].abs().amax(-1).min() > 0


def test_targets_within_the_prompt_change_nothing(bpe):
    """The head never looks at what a prompt's own next tokens are."""
    net, batch = build(bpe), make_batch(Generation(), bpe, 5)
    hidden = net.hidden(batch)
    counted = torch.zeros(batch.tokens.shape, dtype=torch.bool)
    counted[batch.targets["row"], batch.targets["at"] + 1] = True
    other = replace(batch, tokens=torch.where(counted, batch.tokens, batch.tokens.flip(0) * 0))
    one, two = (net.head(hidden, b).terms["generation"] for b in (batch, other))
    assert torch.equal(one.total, two.total)


def test_a_micro_batch_without_targets_gives_no_gradient(bpe):
    net, batch = build(bpe), make_batch(Generation(), bpe, 4)
    none = {k: v[:0] if k in ("row", "at", "labels") else v for k, v in batch.targets.items()}
    term = net(replace(batch, targets=none)).terms["generation"]
    term.share(4, 10).backward()
    assert float(term.total.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


class SoftPrompt(Reader):
    """Vectors of its own in the places kept in front of an example."""

    def __init__(self, places: int, dim: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.empty(places, dim))

    def forward(self, backbone: Backbone, batch: Batch) -> Tensor:
        positions = batch.positions
        assert positions is not None
        own = (positions < len(self.prompt))[..., None]
        vectors = self.prompt[positions.clamp(max=len(self.prompt) - 1)]
        embeds = torch.where(own, vectors, backbone.embedding(batch.tokens))
        out: Tensor = backbone(batch.tokens, batch.documents, positions, embeds=embeds)
        return out


class Prefix(Reader):
    """Keys and values of its own before every layer's."""

    def __init__(self, places: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.pairs = nn.Parameter(torch.empty(layers, 2, heads, places, width))

    def forward(self, backbone: Backbone, batch: Batch) -> Tensor:
        prefix = [(pair[0], pair[1]) for pair in self.pairs]
        out: Tensor = backbone(batch.tokens, batch.documents, batch.positions, prefix=prefix)
        return out


READERS: dict[str, Callable[[], Reader | None]] = {
    "plain": lambda: None,
    "prompt": lambda: SoftPrompt(3, 16),
    "prefix": lambda: Prefix(2, 2, 2, 8),
}


def written(task: Generation, net: TaskNet, batch: Batch, tokenizer: Tokenizer) -> Tensor:
    with torch.inference_mode(), ready_to_decode(net, compiled=False) as backbone:
        scores = task.predict(backbone, net.head, batch, Output({}), tokenizer)
    assert scores is not None
    return scores


def read_anew(
    net: TaskNet, task: Generation, example: Conversation, tokenizer: Tokenizer, reserved: int
) -> list[int]:
    """The likeliest answer, everything read again for each token: no cache, no neighbours."""
    (encoded,) = task.encode([example], [], tokenizer, LENGTH - reserved)
    prompt = encoded.tokens[: int(encoded.targets["prompt"])]
    ids, answer = [tokenizer.pad] * reserved + prompt, list[int]()
    while len(answer) < task.decoding.max_new_tokens and len(ids) < LENGTH:
        tokens = torch.tensor([ids])
        none, places = torch.zeros(0), torch.arange(len(ids))[None]
        batch = Batch(tokens, None, places, None, none, none, {}, 0, 0)
        logits = net.head.logits(net.hidden(batch)[0, -1], net.backbone.embedding.weight)
        token = int(logits[: tokenizer.size].argmax())
        if token == tokenizer.end:
            break
        answer.append(token)
        ids.append(token)
    return answer


@pytest.mark.parametrize("kind", READERS)
@torch.inference_mode()
def test_answers_are_those_of_reading_everything_anew(kind, bpe):
    """Under any tuning's reader, with neighbours of other lengths in the batch."""
    reserved = 3 if kind == "prompt" else 0
    task = Generation(decoding=Decoding(max_new_tokens=9))
    net = build(bpe, READERS[kind](), seed=2, tie_embeddings=False)
    scores = written(task, net, make_batch(task, bpe, 6, reserved), bpe)
    answers = [[token for token in row if token >= 0] for row in scores.tolist()]
    assert answers == [read_anew(net, task, talk(i), bpe, reserved) for i in range(6)]
    assert len({tuple(answer) for answer in answers}) > 1


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=8),
        Decoding(max_new_tokens=8, beams=3, length_penalty=0.6),
        Decoding(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=3),
    ],
    ids=["likeliest", "beams", "random"],
)
def test_an_answer_does_not_depend_on_its_batch(decoding, bpe):
    task, net = Generation(decoding=decoding), build(bpe)
    whole = make_batch(task, bpe, 6)
    scores = written(task, net, whole, bpe)
    for number in range(6):
        samples = torch.full((6,), -1)
        samples[number] = number
        alone = written(task, net, replace(whole, samples=samples), bpe)
        assert torch.equal(alone[number], scores[number])
        assert (alone[samples < 0] == NO_ANSWER).all()


def test_validation_writes_answers_for_some_examples(bpe):
    task, net = Generation(validation_examples=3, decoding=Decoding(max_new_tokens=4)), build(bpe)
    batch = make_batch(task, bpe, 8)
    answered = {}
    for split in ("validation", "test", "predict"):
        task.begin(split, 8)
        scores = written(task, net, batch, bpe)
        answered[split] = torch.nonzero(scores[:, 0] != NO_ANSWER)[:, 0].tolist()
    assert answered == {"validation": [0, 3, 6], "test": [*range(8)], "predict": [*range(8)]}
    silent = Generation()
    silent.begin("validation", 8)
    assert silent.predict(net.backbone, net.head, batch, Output({}), bpe) is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"format": "parallel"}, "give both or neither"),
        ({"format": "parallel", "parallel": (".en", "")}, r"give two such as \[.en, .de\]"),
        ({"monitor": "bleu"}, "needs answers: give model.task.validation_examples"),
        ({"monitor": "bleu", "metrics": ["rouge"]}, "none of model.task.metrics"),
        ({"validation_examples": -1}, "give 0 or more"),
        ({"template": "no such file"}, "cannot be read"),
    ],
)
def test_settings_that_cannot_be(settings, reason):
    with pytest.raises(UserError, match=reason):
        Generation(**settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"beams": 0}, "model.task.decoding.beams is 0"),
        ({"max_new_tokens": 0}, "model.task.decoding.max_new_tokens is 0"),
        ({"temperature": -1.0}, "model.task.decoding.temperature is -1"),
        ({"top_p": 0.5}, "model.task.decoding.top_p narrows a random choice"),
        ({"beams": 2, "temperature": 1.0}, "leave out temperature"),
    ],
)
def test_ways_of_decoding_that_cannot_be(settings, reason):
    with pytest.raises(UserError, match=reason):
        Decoding(**settings)


def test_a_backbone_that_sees_what_comes_after_is_refused(bpe):
    with pytest.raises(UserError, match=r"give model\.init_from a causal model"):
        Generation().check(bpe, causal=False)
