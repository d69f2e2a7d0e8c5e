"""Prompts and prefixes: what trains, what it begins as, and that packing does not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import tiny
from tuning.conftest import rows_of, scores, trained

from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.tuning.frozen import Frozen
from ptft_lightning.tuning.prefix import PrefixTuning
from ptft_lightning.tuning.prompt import PromptTuning

TUNINGS: dict[str, Any] = {
    "prompt": lambda: PromptTuning(5),
    "random prompt": lambda: PromptTuning(5, init="random"),
    "prefix": lambda: PrefixTuning(5),
    "prefix of a network": lambda: PrefixTuning(5, hidden=8),
    "mix": lambda: Frozen(mix=True),
}
tunings = pytest.mark.parametrize("name", TUNINGS)


@tunings
def test_the_backbone_stays_bit_for_bit_and_the_rest_moves(
    name: str, base: Path, file: Path
) -> None:
    module = trained(base, file, TUNINGS[name]())
    bundle = open_bundle(base)
    after = tiny.parameters(module)
    assert any(key.startswith("reader.") for key in after)
    for key, value in after.items():
        if key.startswith("backbone."):
            assert torch.equal(value, bundle.tensor(key)), key
        else:
            assert not torch.equal(value, module.began[key]), key


@tunings
def test_packed_equals_alone(name: str, either: Path, file: Path) -> None:
    module = trained(either, file, TUNINGS[name]())
    with torch.no_grad():  # of a size that tells
        for p in module.net.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    dataset = module.data.datasets["validation"]
    numbers = np.arange(len(dataset))
    packed = rows_of(dataset, numbers)
    assert packed.documents is not None
    assert packed.documents.max() > 1
    together = scores(module.net, dataset, numbers)
    for number in numbers:
        alone = scores(module.net, dataset, np.array([number]))
        torch.testing.assert_close(alone[0], together[number], atol=1e-5, rtol=1e-4)
    module.net.reader = None
    plain = scores(module.net, dataset, numbers)
    assert (plain - together).abs().max() > 1e-3


def test_a_prompt_is_read_before_the_text(base: Path, file: Path) -> None:
    """As the backbone reads its vectors and the text's embeddings in one row."""
    module = trained(base, file, PromptTuning(5))
    net, dataset = module.net.eval(), module.data.datasets["validation"]
    example = dataset.examples[0]
    with torch.no_grad():
        text = net.backbone.embedding(torch.tensor(example.tokens))
        embeds = torch.cat([net.reader.prompt, text])[None]
        places = torch.zeros(1, embeds.shape[1], dtype=torch.long)
        hidden = net.backbone(places, embeds=embeds)[0, 5:]
        wanted = net.head.classifier(hidden.mean(0))
    got = scores(net, dataset, np.array([0]))[0]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_rows_without_padding_hold_their_prompt(base: Path, file: Path) -> None:
    """The fast path: no documents, no positions."""
    module = trained(base, file, PromptTuning(5))
    batch = rows_of(module.data.datasets["train"], np.arange(4))
    batch.tokens[:] = 9
    batch.documents = batch.positions = None
    net = module.net.eval()
    with torch.no_grad():
        rows = net.hidden(batch)
        text = net.backbone.embedding(batch.tokens[:, 5:])
        prompt = net.reader.prompt.expand(len(text), -1, -1)
        wanted = net.backbone(batch.tokens, embeds=torch.cat([prompt, text], dim=1))
    torch.testing.assert_close(rows, wanted)


def test_a_prompt_begins_as_different_rows_of_the_vocabulary(base: Path, file: Path) -> None:
    table = open_bundle(base).tensor("backbone.embedding.weight")
    chosen = []
    for seed in (3, 4):
        began = trained(base, file, PromptTuning(5), seed=seed).began["reader.prompt"]
        rows = [(table == vector).all(1).nonzero().flatten().tolist() for vector in began]
        assert [len(found) for found in rows] == [1] * 5
        chosen.append({found[0] for found in rows})
        assert len(chosen[-1]) == 5
    assert chosen[0] != chosen[1]
    began = trained(base, file, PromptTuning(5, init="random")).began["reader.prompt"]
    assert not (table[:, None] == began).all(-1).any()
    assert 0.01 < began.std() < 0.03


def test_a_mix_begins_as_the_mean_of_all_layers(base: Path, file: Path) -> None:
    module = trained(base, file, Frozen(mix=True))
    net, batch = module.net.eval(), rows_of(module.data.datasets["train"], np.arange(4))
    with torch.no_grad():
        states = net.backbone(
            batch.tokens, batch.documents, batch.positions, batch.segments, all_layers=True
        )
        net.reader.weights.fill_(0.3)
        net.reader.gamma.fill_(1.0)
        torch.testing.assert_close(net.hidden(batch), states.mean(0))
        net.reader.weights.copy_(torch.tensor([0.0, 1.0, -2.0]))
        net.reader.gamma.fill_(3.0)
        shares = torch.tensor([1.0, torch.e, torch.e**-2])
        wanted = 3 * (shares[:, None, None, None] * states).sum(0) / shares.sum()
        torch.testing.assert_close(net.hidden(batch), wanted)
    assert torch.equal(module.began["reader.weights"], torch.ones(3))
    assert torch.equal(module.began["reader.gamma"], torch.ones(1))
