"""Replaced-token detection: what is drawn, losses and gradients, who learns from what."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import Tensor, nn

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.data.batch import Batch, build_batch
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.modules.nets import PretrainNet
from ptft_lightning.objectives import generator as drawing
from ptft_lightning.objectives.generator import draw, generator_config
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.objectives.replaced import ReplacedTokens
from ptft_lightning.terms import IGNORE, Output

VOCABULARY, DIM, DEPTH, HEADS, LENGTH = 61, 32, 3, 4, 16
BERT: dict[str, Any] = {
    **{"dim": DIM, "depth": DEPTH, "heads": HEADS, "hidden_dim": 64, "max_length": LENGTH},
    **{"norm_first": False, "positions": "learned", "token_types": 2, "embedding_norm": True},
    "norm_eps": 1e-12,
}
ROTARY: dict[str, Any] = {"dim": DIM, "depth": DEPTH, "heads": HEADS, "max_length": LENGTH}


def build(config: TransformerConfig, **options: Any) -> PretrainNet:
    """With the weights of a trained model's size, in double precision."""
    backbone = Transformer(config, VOCABULARY)
    head = ReplacedTokens(**options).build_head(backbone, config.tie_embeddings)
    net = PretrainNet(backbone, head).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(0, 0.2, generator=generator)
            if p.ndim == 1 and name.endswith("weight"):
                p.add_(1.0)
    return net


def batch_of(lengths: list[list[int]], rate: float = 0.3, seed: int = 0) -> Batch:
    """Rows of documents of these lengths, padded; hidden tokens are 1."""
    rng = np.random.default_rng(seed)
    rows, slots_per_row = len(lengths), round(rate * LENGTH)
    tokens = rng.integers(2, VOCABULARY, (rows, LENGTH))
    documents = np.zeros((rows, LENGTH), np.int64)
    for row, sizes in enumerate(lengths):
        numbers = np.repeat(np.arange(1, len(sizes) + 1), sizes)
        documents[row, : len(numbers)] = numbers
    tokens[documents == 0] = 0
    slots = np.argsort(np.where(documents > 0, rng.random(tokens.shape), 2), axis=1)
    slots = slots[:, :slots_per_row]
    at = np.arange(rows)[:, None]
    used = documents[at, slots] > 0
    used[:, -1] = False
    labels = np.where(used, tokens[at, slots], IGNORE)
    tokens[at, slots] = np.where(used, 1, tokens[at, slots])
    drawn = rng.integers(0, 2**53, slots.shape)
    targets = {"slots": slots, "labels": labels, "drawn": drawn}
    return build_batch(tokens, documents, np.arange(rows), targets, rows)


def loss_of(output: Output, weight: float = 50.0) -> Tensor:
    """Both terms by their definition: means over targets."""
    masked, detected = output.terms["masked"], output.terms["replaced"]
    return masked.total / masked.count + weight * detected.total / detected.count


# The numpy half.


def rows_of(tokenizer: Tokenizer, rows: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    tokens = rng.choice(tokenizer.ordinary, (rows, 65))
    documents = np.ones((rows, 65), np.int64)
    documents[1, 40:] = 0
    return tokens, documents


def test_the_generator_reads_masks_at_the_slots_of_masked_lm(bpe):
    tokens, documents = rows_of(bpe)
    numbers = np.arange(6)
    shown, targets = ReplacedTokens(0.2).make(tokens, documents, numbers, 3, bpe)
    _, wanted = MaskedLM(0.2).make(tokens, documents, numbers, 3, bpe)
    for name in ("slots", "labels"):
        np.testing.assert_array_equal(targets[name], wanted[name])
    hidden = np.zeros(shown.shape, bool)
    used = targets["labels"] != IGNORE
    hidden[np.nonzero(used)[0], targets["slots"][used]] = True
    assert (shown[hidden] == bpe.mask).all()
    np.testing.assert_array_equal(shown[~hidden], tokens[:, :-1][~hidden])
    assert used[0].sum() == round(0.2 * 64)


def test_the_numbers_of_a_sample_are_its_own(bpe):
    tokens, documents = rows_of(bpe)
    numbers = np.array([7, 2**40, 3, 9, 11, 12])
    _, whole = ReplacedTokens().make(tokens, documents, numbers, 3, bpe)
    _, part = ReplacedTokens().make(tokens[1:3], documents[1:3], numbers[1:3], 3, bpe)
    np.testing.assert_array_equal(part["drawn"], whole["drawn"][1:3])
    assert whole["drawn"].shape == whole["slots"].shape
    assert len(np.unique(whole["drawn"])) == whole["drawn"].size
    _, other = ReplacedTokens().make(tokens, documents, numbers, 4, bpe)
    assert not (other["drawn"] == whole["drawn"]).any()


def test_the_numbers_are_uniform(bpe):
    tokens = np.zeros((400, 65), np.int64)
    _, targets = ReplacedTokens(0.5).make(tokens, tokens + 1, np.arange(400), 0, bpe)
    values = np.sort(targets["drawn"].flatten() / 2**53)
    assert values[0] >= 0
    assert values[-1] < 1
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed once in a thousand.
    grid = (np.arange(len(values)) + 0.5) / len(values)
    assert np.abs(values - grid).max() < 1.95 / np.sqrt(len(values))


# Drawing.


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """An even grid of numbers gives each token its probability, up to one grid point."""
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) * 3
    n = 100_000
    drawn = ((torch.arange(n, dtype=torch.float64) + 0.5) / n * 2**53).long()
    counts = torch.bincount(draw(logits.expand(n, -1), drawn), minlength=50)
    wanted = n * logits[0].double().softmax(-1)
    assert (counts - wanted).abs().max() <= 1


def test_what_is_impossible_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]]).expand(3, -1)
    assert draw(logits, torch.tensor([0, 2**52, 2**53 - 1])).tolist() == [1, 3, 3]


def test_a_module_in_bfloat16_draws_from_the_same_numbers(bpe):
    """Lightning rounds every float of a batch to such a module's precision."""
    tokens, documents = rows_of(bpe)
    _, targets = ReplacedTokens().make(tokens, documents, np.arange(len(tokens)), 3, bpe)
    batch = build_batch(tokens, documents, np.arange(len(tokens)), targets, len(tokens))
    rounded = HalfPrecision("bf16-true").convert_input(batch)
    assert torch.equal(rounded.targets["drawn"], batch.targets["drawn"])
    assert rounded.targets["drawn"].unique().numel() == batch.targets["drawn"].numel()


def test_in_chunks_it_is_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, DIM, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, DIM, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, VOCABULARY, (37,), generator=generator)
    labels[::5] = IGNORE
    given = [
        hidden,
        weight.requires_grad_(),
        None,
        labels,
        torch.randint(0, 2**53, (37,), generator=generator),
    ]
    whole = drawing.predict_and_draw(*given)
    (wanted,) = torch.autograd.grad(whole[0].sum(), weight)
    monkeypatch.setattr(drawing, "CHUNK_ELEMENTS", VOCABULARY * 20)  # ten rows at once
    parts = drawing.predict_and_draw(*given)
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(torch.autograd.grad(parts[0].sum(), weight)[0], wanted)


# Against Hugging Face's ELECTRA.

LAYER = {
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
EMBEDDINGS = {
    "backbone.embedding": "word_embeddings",
    "backbone.position": "position_embeddings",
    "backbone.token_type": "token_type_embeddings",
    "backbone.embedding_norm": "LayerNorm",
}
GENERATOR = {
    "head.generator.narrow": "electra.embeddings_project",
    "head.widen": "generator_predictions.dense",
    "head.widen_norm": "generator_predictions.LayerNorm",
    "head.projection": "generator_lm_head",
}
DETECTOR = {
    "head.dense": "discriminator_predictions.dense",
    "head.classifier": "discriminator_predictions.dense_prediction",
}


def sources(name: str) -> list[tuple[str, list[str]]]:
    """(model, names) of the tensors of ours in theirs; q, k and v are apart there."""
    stem, kind = name.rpartition(".")[::2]
    if stem in EMBEDDINGS:
        both = [f"electra.embeddings.{EMBEDDINGS[stem]}.{kind}"]
        return [("generator", both), ("detector", both)]
    for model, table in (("generator", GENERATOR), ("detector", DETECTOR)):
        if stem in table:
            return [(model, [f"{table[stem]}.{kind}"])]
    found = re.fullmatch(r"(backbone|head\.generator)\.layers\.(\d+)\.(.+)", stem)
    assert found is not None, name
    model = "detector" if found[1] == "backbone" else "generator"
    at = f"electra.encoder.layer.{found[2]}"
    if found[3] == "attention.qkv":
        return [(model, [f"{at}.attention.self.{x}.{kind}" for x in ("query", "key", "value")])]
    return [(model, [f"{at}.{LAYER[found[3]]}.{kind}"])]


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_losses_and_gradients_are_those_of_hugging_face(width):
    transformers = pytest.importorskip("transformers")
    net = build(TransformerConfig(**BERT), generator_width=width, generator_depth=0.67)
    batch = batch_of([[LENGTH], [LENGTH], [9]])
    with torch.no_grad():  # some tokens are drawn rightly
        net.head.projection.bias[batch.targets["labels"][0, :2]] += 8
    small = net.head.generator.config
    assert (small.dim, small.depth, small.heads) == (DIM * width, 2, HEADS * width)

    def shape(config: TransformerConfig) -> Any:
        return transformers.ElectraConfig(
            vocab_size=VOCABULARY,
            embedding_size=DIM,
            hidden_size=config.dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.ffn_dim,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )

    peers: dict[str, nn.Module] = {
        "generator": transformers.ElectraForMaskedLM(shape(small)).double().eval(),
        "detector": transformers.ElectraForPreTraining(shape(net.backbone.config)).double().eval(),
    }
    theirs = {kind: dict(peer.named_parameters()) for kind, peer in peers.items()}
    placed: set[tuple[str, str]] = set()
    with torch.no_grad():
        for name, p in net.named_parameters():
            for kind, names in sources(name):
                for part, peer in zip(p.chunk(len(names)), names, strict=True):
                    theirs[kind][peer].copy_(part)
                    placed.add((kind, peer))
    everything = {(kind, name) for kind in theirs for name in theirs[kind]}
    assert everything == placed

    output = net(batch)
    mask = (batch.documents > 0).long()
    labels = torch.full_like(batch.tokens, IGNORE)
    slots, own = batch.targets["slots"], batch.targets["labels"]
    labels.scatter_(1, slots, own)
    guess = peers["generator"](batch.tokens, attention_mask=mask, labels=labels)
    sums = guess.logits.detach().softmax(-1).cumsum(-1).numpy()
    tokens = batch.tokens.clone()
    for row, column in np.argwhere((own != IGNORE).numpy()):
        place, u = int(slots[row, column]), float(batch.targets["drawn"][row, column]) / 2**53
        tokens[row, place] = int(np.searchsorted(sums[row, place], u, side="right"))
    original = torch.where(labels == IGNORE, batch.tokens, labels)
    truth = (tokens != original).long()
    assert 0 < truth.sum() < (own != IGNORE).sum()
    judged = peers["detector"](tokens, attention_mask=mask, labels=truth)

    masked, detected = output.terms["masked"], output.terms["replaced"]
    # Losses are in float32 here.
    assert (masked.total / masked.count).item() == pytest.approx(guess.loss.item(), rel=1e-5)
    assert (detected.total / detected.count).item() == pytest.approx(judged.loss.item(), rel=1e-5)
    called = (judged.logits > 0) & (mask > 0)
    assert output.sums["replaced_share"] == truth.sum()
    assert output.sums["replaced_called"] == called.sum()
    assert output.sums["replaced_found"] == (called & (truth == 1)).sum()
    assert output.sums["replaced_accuracy"] == ((called == (truth == 1)) & (mask > 0)).sum()

    loss_of(output).backward()
    (guess.loss + 50 * judged.loss).backward()
    for name, p in net.named_parameters():
        wanted = [
            torch.cat([theirs[kind][peer].grad for peer in names]) for kind, names in sources(name)
        ]
        torch.testing.assert_close(p.grad, sum(wanted), rtol=1e-4, atol=1e-5, msg=name)


# Who learns from what.


def gradients(net: PretrainNet, batch: Batch, term: str) -> dict[str, Tensor | None]:
    total = net(batch).terms[term].total
    named = dict(net.named_parameters())
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


def test_the_detector_s_loss_does_not_reach_the_generator_nor_the_other_way():
    net, batch = build(TransformerConfig(**ROTARY)), batch_of([[LENGTH], [7, 9], [5]])
    of_generator = ("head.generator.", "head.widen", "head.projection")
    of_detector = ("backbone.layers.", "backbone.final_norm", "head.dense", "head.classifier")
    detected, masked = (gradients(net, batch, term) for term in ("replaced", "masked"))
    for name in detected:
        if name.startswith(of_generator):
            assert detected[name] is None, name
            assert masked[name] is not None, name
        elif name.startswith(of_detector):
            assert masked[name] is None, name
            assert detected[name] is not None, name
        else:
            assert name == "backbone.embedding.weight"  # shared
            assert masked[name].norm() > 0
            assert detected[name].norm() > 0


@pytest.mark.parametrize("shape", [BERT, ROTARY], ids=["learned", "rotary"])
def test_packed_documents_are_read_as_if_each_had_its_own_row(shape):
    net = build(TransformerConfig(**shape))
    packed = batch_of([[7, 9], [5, 6, 3]])
    whole = net(packed)
    totals, counts = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    for row in range(2):
        for number in range(1, int(packed.documents[row].max()) + 1):
            inside = (packed.documents[row] == number).nonzero()[:, 0]
            start, stop = int(inside[0]), int(inside[-1]) + 1
            here = (packed.targets["slots"][row] >= start) & (packed.targets["slots"][row] < stop)
            targets = {
                "slots": (packed.targets["slots"][row][here] - start).numpy()[None],
                "labels": packed.targets["labels"][row][here].numpy()[None],
                "drawn": packed.targets["drawn"][row][here].numpy()[None],
            }
            tokens = packed.tokens[row, start:stop].numpy()[None]
            ones = np.ones((1, stop - start), np.int64)
            out = net(build_batch(tokens, ones, np.arange(1), targets, 1))
            terms = [out.terms["masked"], out.terms["replaced"]]
            totals += torch.stack([t.total.detach() for t in terms])
            counts += torch.stack([t.count for t in terms])
    for at, name in enumerate(("masked", "replaced")):
        torch.testing.assert_close(whole.terms[name].total.detach(), totals[at])
        assert whole.terms[name].count == counts[at]


def test_an_empty_row_adds_nothing():
    net = build(TransformerConfig(**ROTARY))
    both = batch_of([[LENGTH], []])
    arrays = {name: value[:1].numpy() for name, value in both.targets.items()}
    alone = build_batch(both.tokens[:1].numpy(), np.ones((1, LENGTH)), np.arange(1), arrays, 1)
    one, two = net(alone), net(both)
    for name in ("masked", "replaced"):
        torch.testing.assert_close(one.terms[name].total, two.terms[name].total)
        assert one.terms[name].count == two.terms[name].count
    empty = batch_of([[], []])
    gradients_ = gradients(net, empty, "replaced").values()
    assert all(g is None or not g.any() for g in gradients_)


def test_a_token_drawn_as_it_was_counts_as_original():
    """A generator that is sure, and right: nothing is replaced."""
    net, batch = build(TransformerConfig(**ROTARY)), batch_of([[LENGTH]])
    label = int(batch.targets["labels"][0, 0])
    batch.targets["labels"][batch.targets["labels"] != IGNORE] = label
    with torch.no_grad():
        net.head.projection.bias.fill_(0)
        net.head.projection.bias[label] = 1e4
    assert net(batch).sums["replaced_share"] == 0
    with torch.no_grad():
        net.head.projection.bias[label] = -1e4
    assert net(batch).sums["replaced_share"] == (batch.targets["labels"] != IGNORE).sum()


# Shapes, settings, what is reported.


@pytest.mark.parametrize(
    ("backbone", "width", "depth", "wanted"),
    [
        ({"dim": 256, "depth": 12, "heads": 4}, 0.25, 1.0, (64, 12, 1, 256)),
        ({"dim": 192, "depth": 4, "heads": 3}, 0.25, 0.5, (64, 2, 1, 256)),
        ({"dim": 192, "depth": 4, "heads": 3}, 0.66, 0.1, (128, 1, 2, 512)),
        ({"dim": 64, "depth": 2, "heads": 8, "kv_heads": 4}, 0.5, 1.0, (32, 2, 4, 128)),
        ({"dim": 64, "depth": 2, "heads": 2, "hidden_dim": 100}, 0.5, 1.0, (32, 2, 1, 50)),
        ({"dim": 64, "depth": 4, "heads": 2, "head_dim": 16}, 1.0, 1.0, (64, 4, 2, 256)),
    ],
)
def test_a_generator_has_a_share_of_the_backbone(backbone, width, depth, wanted):
    config = generator_config(TransformerConfig(**backbone), width, depth)
    assert (config.dim, config.depth, config.heads, config.ffn_dim) == wanted
    assert config.head_width == TransformerConfig(**backbone).head_width
    local = TransformerConfig(**backbone, window=4, window_layers=[0, backbone["depth"] - 1])
    blocks = generator_config(local, width, depth).window_layers
    assert blocks == [i for i in (0, backbone["depth"] - 1) if i < config.depth]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rate": 1.0}, "objective.rate is 1.0"),
        ({"weight": 0}, "objective.weight is 0"),
        ({"generator_width": 1.5}, "objective.generator_width is 1.5"),
        ({"generator_depth": 0}, "objective.generator_depth is 0"),
    ],
)
def test_settings_that_cannot_be(settings, told):
    with pytest.raises(UserError, match=re.escape(told)):
        ReplacedTokens(**settings)


def test_the_config_rebuilds_it():
    mine = ReplacedTokens(0.2, 30.0, 0.5, 0.75, True, "example")
    assert ReplacedTokens(**mine.config()).config() == mine.config()


def test_it_needs_a_transformer():
    assert ReplacedTokens().problems({"kind": "transformer"}) == []
    (problem,) = ReplacedTokens().problems({"kind": "bilstm"})
    assert "the backbone is a bilstm" in problem


def test_precision_and_recall():
    means = {
        "masked_loss": np.log(5.0),
        "replaced_share": 0.1,
        "replaced_called": 0.08,
        "replaced_found": 0.06,
    }
    values = ReplacedTokens().summary(means)
    assert values["replaced_precision"] == pytest.approx(0.75)
    assert values["replaced_recall"] == pytest.approx(0.6)
    assert values["perplexity"] == pytest.approx(5.0)
    none = {**means, "replaced_called": 0.0, "replaced_found": 0.0}
    assert ReplacedTokens().summary(none)["replaced_precision"] == 0


def test_the_loss_of_a_first_guess():
    net = build(TransformerConfig(**ROTARY))
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.zero_() if p.ndim > 1 or name.endswith("bias") else p.fill_(1)
    loss = loss_of(net(batch_of([[LENGTH], [LENGTH]])))
    assert loss.item() == pytest.approx(ReplacedTokens().uniform_loss(VOCABULARY), rel=1e-6)


def test_it_learns_more_than_that_nothing_is_replaced(bpe):
    """Rows that count upwards: what breaks the order is found, though most tokens are original."""
    config = TransformerConfig(**{**ROTARY, "depth": 2})
    backbone = Transformer(config, bpe.size)
    objective = ReplacedTokens(0.2, weight=10.0, generator_width=0.5, generator_depth=0.5)
    net = PretrainNet(backbone, objective.build_head(backbone, tied=True))
    torch.manual_seed(0)
    for name, p in net.named_parameters():
        if p.ndim > 1:
            nn.init.normal_(p, 0.0, 0.05)
        else:
            nn.init.constant_(p, 0.0 if name.endswith("bias") else 1.0)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    rng, found = np.random.default_rng(0), []
    for step in range(400):
        starts = rng.integers(0, 10, (16, 1))
        tokens = bpe.ordinary[(starts + np.arange(LENGTH + 1)) % 10]
        documents = np.ones_like(tokens)
        numbers = np.arange(16) + 16 * step
        shown, targets = objective.make(tokens, documents, numbers, 0, bpe)
        output = net(build_batch(shown, documents[:, :-1], numbers, targets, 16))
        optimizer.zero_grad()
        loss_of(output, 10.0).backward()
        optimizer.step()
        found.append({name: float(value) for name, value in output.sums.items()})
    # By chance the first would be about 0.1, and that of calling none the second 0.
    late = {name: sum(sums[name] for sums in found[-50:]) for name in found[0]}
    assert late["replaced_found"] / late["replaced_called"] > 0.6
    assert late["replaced_found"] / late["replaced_share"] > 0.5
