"""A Hugging Face folder opened as a bundle computes what transformers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interop.conftest import PEERS, ROWS, build_peer
from torch import Tensor

from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.batch import build_batch
from ptft_lightning.handoff.bundle import Bundle
from ptft_lightning.interop.families import TASKS
from ptft_lightning.interop.open import open_model
from ptft_lightning.modules.nets import PretrainNet, TaskNet, build_backbone, fill
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.objectives.replaced import ReplacedTokens
from ptft_lightning.tasks.question_answering import SpanHead
from ptft_lightning.tasks.word_head import WordHead

ENCODERS = ("bert", "roberta", "modernbert", "electra")
GENERATOR = ("head.generator.", "head.widen", "head.projection.")
LENGTHS = (31, 17, 2)  # all windows are shorter than the first


def rows() -> tuple[Tensor, Tensor]:
    """Tokens without special ones, (3, 31), and which of them are no padding."""
    real = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    tokens = np.random.default_rng(0).integers(8, ROWS, real.shape)
    return torch.from_numpy(tokens), torch.from_numpy(real)


def net_of(bundle: Bundle) -> PretrainNet | TaskNet:
    """Built and filled as a phase does it; published models lack ELECTRA's generator."""
    head, shape = bundle.config["head"], bundle.config["backbone"]
    with torch.device("meta"):
        backbone = build_backbone(**shape)
        tied = shape["config"]["tie_embeddings"]
        if (kind := TASKS.get(head["name"])) is not None:
            task = kind.of(head["config"])
            net: Any = TaskNet(backbone, task.build_head(backbone, head["labels"]))
        else:
            kinds = {"causal": CausalLM, "detector": ReplacedTokens}
            objective = kinds.get(head["name"], MaskedLM)()
            net = PretrainNet(backbone, objective.build_head(backbone, tied))
    known = set(bundle.names())
    new = fill(net, torch.device("cpu"), lambda n: bundle.tensor(n) if n in known else None, 0)
    if head["name"] == "detector":
        new = [name for name in new if not name.startswith(GENERATOR)]
    assert not [name for name in new if name.startswith("backbone.") or head["name"]]
    return net.eval()


def ours(bundle: Bundle, tokens: Tensor, real: Tensor) -> Tensor:
    """Logits, or hidden states of a bare backbone."""
    net = net_of(bundle)
    lengths = real.sum(1).numpy()
    numbers = np.arange(len(lengths))
    targets = {"row": numbers, "start": numbers * 0, "end": lengths, "label": numbers * 0 - 100}
    batch = build_batch(tokens.numpy(), real.long().numpy(), numbers, targets, len(lengths))
    with torch.no_grad():
        hidden = net.hidden(batch)
        if bundle.config["head"]["name"] is None:
            return hidden
        if isinstance(net.head, WordHead):
            return net.head.classifier(hidden)
        if isinstance(net.head, SpanHead):
            return net.head.outputs(hidden)
        if isinstance(net, TaskNet):
            return net(batch).scores
        if bundle.config["head"]["name"] == "detector":
            return net.head.detect(hidden)
        return net.head.logits(hidden, net.backbone.embedding.weight)


def theirs(peer: Any, tokens: Tensor, real: Tensor) -> Tensor:
    pad = peer.config.pad_token_id
    with torch.no_grad():
        out = peer(
            input_ids=torch.where(real, tokens, pad if pad is not None else 0),
            attention_mask=real.long(),
        )
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], -1)
    for name in ("logits", "prediction_logits", "last_hidden_state"):
        if name in out:
            return out[name]
    raise AssertionError(out.keys())


@pytest.mark.parametrize("name", PEERS)
def test_same_shape_and_logits(name: str, folder_of: Any, tmp_path: Path) -> None:
    peer = build_peer(name)
    bundle = open_model(folder_of(name, tmp_path / "folder", peer))
    assert_same_shape(name, bundle)
    tokens, real = rows()
    wanted = theirs(peer, tokens, real)
    got = ours(bundle, tokens, real)
    assert got.shape == wanted.shape
    if got.shape[:2] == real.shape:
        got, wanted = got[real], wanted[real]
    assert wanted.std() > 0.3, "a flat model would agree with anything"
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def assert_same_shape(name: str, bundle: Bundle) -> None:
    shape = TransformerConfig(**bundle.config["backbone"]["config"])
    assert bundle.config["backbone"]["vocab_size"] == ROWS
    assert shape.max_length == (38 if name.startswith("roberta") else 40)
    assert shape.position_start == (2 if name.startswith("roberta") else 0)
    assert shape.causal == (not name.startswith(ENCODERS))
    assert [layer for layer in range(shape.depth) if shape.is_windowed(layer)] == {
        "modernbert": [1],
        "modernbert untied": [0, 1],
        "modernbert with biases": [1, 2],
        "modernbert classifier": [1, 2],
        "modernbert first-token classifier": [1, 2],
        "qwen2 with windows": [1, 2],
        "qwen3 with windows": [1, 2],
    }.get(name, [])
    assert bundle.tokenizer.size <= ROWS
