"""Each kind of net learns one small batch by heart: gradients reach all that must learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.data.batch import Batch, build_batch
from ptft_lightning.data.example_rows import pack_examples
from ptft_lightning.data.examples import Example
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.modules.nets import Net, PretrainNet, TaskNet, fill
from ptft_lightning.modules.optimizers import OptimizerConfig, build_optimizer
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.tasks.classification import Classification, Pooling
from ptft_lightning.terms import Output

LENGTH = 16
torch.set_num_threads(1)  # threads that wait for each other's core cost a hundredfold


def backbone(tokenizer: Tokenizer, causal: bool) -> Transformer:
    config = TransformerConfig(dim=32, depth=2, heads=4, max_length=LENGTH, causal=causal)
    return Transformer(config, tokenizer.size)


def overfit(net: Net, batch: Batch, steps: int) -> Output:
    fill(net, torch.device("cpu"), lambda name: None, seed=0)
    optimizer = build_optimizer(net, OptimizerConfig(lr=1e-2, weight_decay=0.0), fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        (term,) = net(batch).terms.values()
        (term.total / term.count).backward()
        optimizer.step()
    with torch.no_grad():
        output: Output = net.eval()(batch)
    return output


@pytest.mark.parametrize("objective", [CausalLM(), MaskedLM(0.3)], ids=["causal", "masked"])
def test_objectives(objective: CausalLM | MaskedLM, bpe: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    documents = np.repeat([[1] * 9 + [2] * 6 + [0, 0]], 4, axis=0)
    stream = np.where(documents > 0, rng.integers(5, bpe.size, documents.shape), bpe.pad)
    numbers = np.arange(4)
    tokens, targets = objective.make(stream, documents, numbers, 0, bpe)
    batch = build_batch(tokens, documents[:, :-1], numbers, targets, 4)
    body = backbone(bpe, objective.causal)
    output = overfit(PretrainNet(body, objective.build_head(body, tied=True)), batch, steps=200)
    (term,) = output.terms.values()
    # The first prediction of a document rests on its first token alone, and those differ here.
    assert len(np.unique(stream[:, [0, 9]])) == 8
    assert term.total / term.count < 0.05
    assert output.sums["accuracy"] == term.count > 10


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_classification(pooling: Pooling, bpe: Tokenizer) -> None:
    labels = ["left", "right", "up"]
    texts = ["green river", "stone", "a silver garden", "winter", "music letter", "quickly"]
    examples = [Example(t, None, labels[i % 3], f"line {i}") for i, t in enumerate(texts)]
    task = Classification(pooling, dropout=0.0)
    encoded = task.encode(examples, labels, bpe, LENGTH)
    tokens, documents, _, rows, starts = pack_examples(encoded, LENGTH, bpe.pad)
    assert documents.max() > 1, "nothing shares a row"
    targets = task.targets(encoded, rows, starts)
    batch = build_batch(tokens, documents, np.arange(len(texts)), targets, len(texts))
    body = backbone(bpe, causal=pooling == "last")
    output = overfit(TaskNet(body, task.build_head(body, labels)), batch, steps=40)
    term = output.terms["classification"]
    assert term.total / term.count < 0.05
    assert output.scores is not None
    assert torch.equal(output.scores.argmax(-1), batch.targets["label"])
