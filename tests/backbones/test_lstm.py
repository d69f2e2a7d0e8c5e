"""Recurrent backbones against torch's own layers, one document at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones.test_packing_isolates import each_document, packed_inputs, weigh
from torch import Tensor, nn

from ptft_lightning.backbones.base import initial_value
from ptft_lightning.backbones.cache import KeyValueCache
from ptft_lightning.backbones.lstm import LSTM
from ptft_lightning.backbones.lstm_config import LSTMConfig
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.modules.nets import build_backbone

VOCABULARY = 40
KINDS: dict[str, dict[str, Any]] = {
    "elmo": {"hidden_dim": 20},
    "two-lstms": {"residual": False},
    "two-grus": {"cell": "gru"},
    "causal-lstm": {"causal": True},
    "causal-projected": {"causal": True, "hidden_dim": 40},
    "causal-gru": {"causal": True, "cell": "gru", "residual": False},
}
kinds = pytest.mark.parametrize("kind", KINDS)
causal_kinds = pytest.mark.parametrize("kind", [k for k in KINDS if "causal" in k])


def build(kind: str, **more: Any) -> LSTM:
    shape = {"dim": 16, "depth": 3, "max_length": 12, **KINDS[kind], **more}
    backbone = build_backbone("lstm", shape, VOCABULARY)
    assert isinstance(backbone, LSTM)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in backbone.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    return backbone.double()


def reference(backbone: LSTM, tokens: Tensor) -> Tensor:
    """(1, T) tokens of one document -> (layers + 1, T, dim), written down from the papers."""
    shape = backbone.config
    start = backbone.embedding(tokens)[0]
    streams = [start, start.flip(0)][: shape.directions]
    states = [[s] for s in streams]
    for number, layer in enumerate(backbone.layers):
        cells = list(layer.cells.values())
        for i, cell in enumerate(cells):
            out = cell(streams[i][None])[0][0]
            streams[i] = out + streams[i] if shape.residual and number else out
            states[i].append(streams[i])
    forwards = torch.stack(states[0])
    if shape.causal:
        return forwards
    return torch.cat([forwards, torch.stack(states[1]).flip(1)], -1)


@kinds
def test_packed_rows_equal_torchs_layers_document_by_document(kind: str) -> None:
    backbone = build(kind)
    tokens, documents, positions, segments = packed_inputs()
    states = backbone(tokens, documents, positions, segments, all_layers=True)
    assert states.shape == (4, *tokens.shape, 16)
    weigh(states[-1], tokens).backward()
    together = [p.grad.clone() for p in backbone.parameters()]
    backbone.zero_grad()
    for row, at in each_document(documents):
        wanted = reference(backbone, tokens[row, at][None])
        torch.testing.assert_close(states[:, row, at], wanted)
        weigh(wanted[-1][None], tokens[row, at][None]).backward()
    for (name, p), wanted in zip(backbone.named_parameters(), together, strict=True):
        torch.testing.assert_close(p.grad, wanted, msg=lambda m, n=name: f"{n}: {m}")
    assert not states[-1][documents == 0].any()
    with torch.no_grad():  # another way through the cells where they project
        torch.testing.assert_close(backbone(tokens, documents), states[-1].detach())


@kinds
def test_full_rows_need_no_documents(kind: str) -> None:
    backbone, tokens = build(kind), torch.randint(0, VOCABULARY, (3, 12))
    assert torch.equal(backbone(tokens), backbone(tokens, torch.ones_like(tokens)))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_cells_follow_the_papers_equations(cell: Any) -> None:
    """Hochreiter & Schmidhuber 1997 with forget gates and Sak et al. 2014's projection; Cho et al.
    2014 in torch's form."""
    backbone = build("causal-gru", cell=cell, depth=1, hidden_dim=20 if cell == "lstm" else None)
    tokens = torch.randint(0, VOCABULARY, (1, 9))
    (rnn,) = backbone.layers[0].cells.values()
    h, c = torch.zeros(16).double(), torch.zeros(20).double()
    wanted = []
    for x in backbone.embedding(tokens)[0]:
        read = rnn.weight_ih_l0 @ x + rnn.bias_ih_l0
        kept = rnn.weight_hh_l0 @ h + rnn.bias_hh_l0
        if cell == "lstm":
            i, f, g, o = (read + kept).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = rnn.weight_hr_l0 @ (o.sigmoid() * c.tanh())
        else:
            (r, z, n), (kr, kz, kn) = read.chunk(3), kept.chunk(3)
            r, z = (r + kr).sigmoid(), (z + kz).sigmoid()
            h = (1 - z) * (n + r * kn).tanh() + z * h
        wanted.append(h)
    torch.testing.assert_close(backbone(tokens)[0], torch.stack(wanted))


@pytest.mark.parametrize("kind", ["elmo", "two-grus", "causal-lstm"])
def test_gradients_are_those_of_differences(kind: str) -> None:
    backbone = build(kind, dim=6, hidden_dim=7 if kind == "elmo" else None, depth=2)
    documents = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 2]])
    tokens = torch.randint(0, VOCABULARY, documents.shape)
    embeds = torch.randn(2, 6, backbone.input_dim, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: backbone(tokens, documents, embeds=e), embeds)


@pytest.mark.parametrize("kind", ["elmo", "two-lstms", "two-grus"])
def test_no_direction_sees_what_the_other_reads(kind: str) -> None:
    """Forward states before a changed token and backward states after it keep their bits."""
    backbone = build(kind)
    tokens = torch.randint(0, VOCABULARY, (1, 12))
    documents = torch.tensor([[1] * 9 + [2] * 3])
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % VOCABULARY
    for layer in (1, 2, 3):
        before = backbone(tokens, documents, all_layers=True)[layer, 0]
        after = backbone(changed, documents, all_layers=True)[layer, 0]
        same = (before == after).view(12, 2, 8)
        assert same[:5, 0].all()
        assert same[6:, 1].all()
        assert not same[5:9, 0].any()
        assert not same[:6, 1].any()
        assert same[9:].all()


@kinds
def test_embeddings_in_place_of_tokens(kind: str) -> None:
    backbone = build(kind)
    tokens, documents, *_ = packed_inputs()
    embeds = backbone.embedding(tokens)
    assert embeds.shape[-1] == backbone.input_dim
    other = torch.zeros_like(tokens)
    assert torch.equal(backbone(other, documents, embeds=embeds), backbone(tokens, documents))


@kinds
def test_layers_computed_again_give_the_same_gradient(kind: str) -> None:
    backbone = build(kind)
    tokens, documents, *_ = packed_inputs()
    gradients = []
    for backbone.recompute in (False, True):
        backbone.zero_grad()
        weigh(backbone(tokens, documents), tokens).backward()
        gradients.append([p.grad.clone() for p in backbone.parameters()])
    assert all(map(torch.equal, *gradients))


@kinds
def test_rows_of_padding_alone_have_gradients_of_zero(kind: str) -> None:
    backbone = build(kind)
    tokens, documents, *_ = packed_inputs()
    (backbone(tokens, torch.zeros_like(documents)).sum() * 0).backward()
    for name, p in backbone.named_parameters():
        assert p.grad is not None, name
        assert not p.grad.any(), name


# Its state is its cache.


@causal_kinds
def test_pieces_equal_the_whole(kind: str) -> None:
    backbone, tokens = build(kind).eval(), torch.randint(0, VOCABULARY, (3, 12))
    with torch.no_grad():
        whole, cache = backbone(tokens), KeyValueCache(3, 12)
        pieces = [backbone(part, cache=cache) for part in tokens.split([5, 1, 1, 3, 2], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    assert cache.length == 12


@causal_kinds
@pytest.mark.parametrize("first", [2, 6])
def test_rows_padded_on_the_left_equal_rows_alone(kind: str, first: int) -> None:
    """Also where one has not begun when the first piece is read."""
    backbone, tokens = build(kind).eval(), torch.randint(0, VOCABULARY, (2, 10))
    documents = torch.ones(2, 10, dtype=torch.long)
    documents[1, :4] = 0
    cache = KeyValueCache(3, 10)
    with torch.no_grad():
        spans = (slice(0, first), slice(first, 7), slice(7, 10))
        got = [backbone(tokens[:, s], documents[:, s], cache=cache) for s in spans]
        alone = [backbone(tokens[:1]), backbone(tokens[1:, 4:])]
    rows = torch.cat(got, dim=1)
    torch.testing.assert_close(rows[:1], alone[0])
    torch.testing.assert_close(rows[1:, 4:], alone[1])


@causal_kinds
def test_selected_rows_go_on(kind: str) -> None:
    backbone, tokens = build(kind).eval(), torch.randint(0, VOCABULARY, (3, 8))
    chosen, cache = torch.tensor([2, 0, 2, 1]), KeyValueCache(3, 8)
    with torch.no_grad():
        backbone(tokens[:, :7], cache=cache)
        cache.select(chosen)
        last = backbone(tokens[chosen, 7:], cache=cache)
        whole = backbone(tokens)[chosen, 7:]
    torch.testing.assert_close(last, whole)


# Characters.


def spelled(bpe: Tokenizer, **more: Any) -> LSTM:
    shape = {"dim": 16, "input": "characters", "filters": [[1, 4], [2, 4], [3, 8]], **more}
    backbone = build_backbone("lstm", shape, bpe.size, bpe)
    assert isinstance(backbone, LSTM)
    torch.manual_seed(0)
    for name, p in backbone.named_parameters():
        p.data = initial_value(f"backbone.{name}", p.shape, 2, 0)
    return backbone.double()


def test_a_token_is_read_by_the_bytes_of_its_text(bpe: Tokenizer) -> None:
    table = spelled(bpe).embedding.table
    assert table.shape == (bpe.size, 50)
    for text in ("river", " 模型", "Été"):
        ids = bpe.encode([text])[0]
        read = [i - 3 for token in ids for i in table[token].tolist() if i >= 3]
        assert bytes(read) == text.encode()
    one = table[bpe.encode(["river"])[0][0]]
    end = int((one == 2).nonzero())
    assert one[0] == 1
    assert (one[1:end] >= 3).all()
    assert not one[end + 1 :].any()


def test_wordpieces_keep_their_marks(wordpiece: Tokenizer) -> None:
    table = spelled(wordpiece).embedding.table
    name = next(n for n in wordpiece.raw.get_vocab() if n.startswith("##") and len(n) > 3)
    row = table[wordpiece.raw.token_to_id(name)]
    assert bytes(i - 3 for i in row.tolist() if i >= 3) == name.encode()


def test_long_tokens_are_cut(bpe: Tokenizer) -> None:
    table = spelled(bpe, max_characters=4).embedding.table
    assert table.shape == (bpe.size, 4)
    assert (table[:, 0] == 1).all()
    assert ((table == 2).sum(1) == 1).all()


def test_the_convolution_against_a_slow_reference(bpe: Tokenizer) -> None:
    backbone = spelled(bpe, highways=2)
    tokens = torch.tensor([[5, 99, 5, 300]])
    cnn, found = backbone.embedding.cnn, backbone.embedding(tokens)
    for token, got in zip(tokens[0].tolist(), found[0], strict=True):
        x = cnn.bytes.weight[backbone.embedding.table[token]]
        values = []
        for conv in cnn.convolutions:
            width = conv.weight.shape[2]
            windows = [x[i : i + width].T.flatten() for i in range(len(x) - width + 1)]
            values.append((torch.stack(windows) @ conv.weight.flatten(1).T + conv.bias).amax(0))
        y = torch.cat(values).relu()
        for highway in cnn.highways:
            new, gate = (highway.weight @ y + highway.bias).chunk(2)
            gate = (gate - 2).sigmoid()
            y = gate * new.relu() + (1 - gate) * y
        torch.testing.assert_close(got, cnn.projection.weight @ y + cnn.projection.bias)
    assert torch.equal(found[0, 0], found[0, 2])


# Initial values.


def test_initial_values() -> None:
    name = "backbone.layers.0.cells.forward_lstm."
    bias = initial_value(f"{name}bias_ih_l0", (40,), 2, 0)
    assert bias.view(4, 10).unique(dim=1).T.tolist() == [[0, 1, 0, 0]]
    assert not initial_value(f"{name}bias_hh_l0", (40,), 2, 0).any()
    assert not initial_value(f"{name.replace('lstm', 'gru')}bias_ih_l0", (30,), 2, 0).any()
    for last, shape in (("ih", (400, 64)), ("hh", (400, 64)), ("hr", (64, 100))):
        value, most = initial_value(f"{name}weight_{last}_l0", shape, 2, 0), shape[1] ** -0.5
        assert value.abs().max() <= most
        assert value.abs().max() > 0.99 * most
        assert float(value.std()) == pytest.approx(most / 3**0.5, rel=0.03)
    conv = initial_value("backbone.embedding.cnn.convolutions.0.weight", (64, 16, 4), 2, 0)
    assert 0.99 / 8 < conv.abs().max() <= 1 / 8


# Refusals.


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"dim": 15}, "backbone.dim is 15"),
        ({"depth": 0}, "backbone.depth is 0"),
        ({"dropout": 1.0}, "backbone.dropout is 1.0"),
        ({"cell": "gru", "hidden_dim": 64}, "a GRU has no projection"),
        ({"dim": 16, "hidden_dim": 8}, "backbone.hidden_dim is 8"),
        ({"input": "characters", "tie_embeddings": True}, "backbone.tie_embeddings needs"),
        ({"input": "characters", "filters": []}, "backbone.filters is empty"),
        ({"input": "characters", "filters": [[60, 4]]}, "backbone.filters has [60, 4]"),
        ({"input": "characters", "highways": -1}, "backbone.highways is -1"),
    ],
)
def test_what_cannot_be_built_is_refused(shape: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refusal:
        LSTMConfig(**shape)
    assert said in str(refusal.value)


def test_cells_of_a_frozen_backbone_pass_gradients_on() -> None:
    """What cuDNN refuses in evaluation, where they have nothing to do differently."""
    backbone = build("elmo").eval()
    cells = [m for m in backbone.modules() if isinstance(m, nn.RNNBase)]
    assert len(cells) == 6
    assert all(cell.training and cell.dropout == 0 for cell in cells)
    assert not backbone.dropout.training


@kinds
@pytest.mark.parametrize("mixed", [True, False])
def test_bfloat16_is_near(kind: str, mixed: bool) -> None:
    backbone = build(kind).float()
    tokens, documents, *_ = packed_inputs()
    wanted = backbone(tokens, documents)
    half = backbone if mixed else build(kind).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = half(tokens, documents)
        weigh(found, tokens).backward()
    assert (found.float() - wanted).norm() < 0.05 * wanted.norm()
    for name, p in half.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name
