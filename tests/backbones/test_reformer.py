"""LSH attention beside its definition; reversible layers beside plain ones; nothing leaks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from backbones.long_rows import LENGTH, VOCABULARY, build, difference, gradients, packed, weigh
from torch import Tensor

from ptft_lightning.backbones.cache import KeyValueCache
from ptft_lightning.backbones.lsh import bucket_attention, document_line, hash_rotations
from ptft_lightning.backbones.reformer_config import ReformerConfig
from ptft_lightning.tuning.lora import LoRA

directions = pytest.mark.parametrize("causal", [True, False])


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def full_attention(key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Of shared queries and keys, (H, N, D): a token attends to itself where there is no other."""
    length, width = key.shape[1:]
    keys = key / key.square().mean(-1, keepdim=True).sqrt()
    scores = key @ keys.transpose(1, 2) / math.sqrt(width)
    own = torch.eye(length, dtype=torch.bool)
    hidden = torch.ones_like(own).triu(1) if causal else torch.zeros_like(own)
    scores = scores.masked_fill(own, -1e5).masked_fill(hidden, -math.inf)
    return scores.softmax(-1) @ value


@directions
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("chunk", [10, 16])
def test_one_bucket_is_full_attention(causal: bool, rounds: int, chunk: int) -> None:
    key, value = random(2, 10, 4), random(2, 10, 6)[..., :4]
    line, buckets = torch.zeros(10, dtype=torch.long), torch.zeros(rounds, 2, 10).to(torch.int16)
    got = bucket_attention(key, value, line, buckets, 1, chunk, causal, 0.0)
    torch.testing.assert_close(got, full_attention(key, value, causal))


@directions
def test_a_short_document_is_read_by_full_attention(causal: bool) -> None:
    """Through a whole net: the local round and one bucket beside each other."""
    same = [build("reformer-both", causal=causal, buckets=1, chunk_length=c) for c in (24, 40)]
    tokens = packed()[0]
    wanted = same[0](tokens)
    assert difference(same[1](tokens), wanted) < 1e-6
    local = build("reformer-both", causal=causal, hash_rounds=0, chunk_length=24)
    assert difference(local(tokens), wanted) < 1e-6
    narrow = build("reformer-both", causal=causal, hash_rounds=0, chunk_length=3)
    assert difference(narrow(tokens), wanted) > 1e-2


def by_definition(
    key: Tensor, value: Tensor, line: Tensor, buckets: Tensor, chunk: int, causal: bool
) -> Tensor:
    """One head, token by token: (N, D)."""
    out = torch.zeros_like(value)
    for i in range(len(key)):
        logits, values = [], []
        for hashes in buckets.tolist():
            order = sorted(range(len(key)), key=lambda t: (int(line[t]), hashes[t], t))
            rank = {token: place for place, token in enumerate(order)}
            for j in range(len(key)):
                seen = line[i] == line[j] and abs(rank[i] - rank[j]) <= chunk
                if causal:
                    seen = seen and j <= i and hashes[i] == hashes[j]
                if seen:
                    close = float(key[i] @ key[j] / key[j].norm())
                    logits.append(-1e5 if i == j else close)
                    values.append(value[j])
        weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
        out[i] = weights @ torch.stack(values)
    return out


@directions
@pytest.mark.parametrize("chunk", [1, 2, 5, 30])
def test_attention_is_that_of_its_definition(causal: bool, chunk: int) -> None:
    key, value = random(2, 23, 4), random(2, 23, 5)[..., :4]
    line = torch.tensor([0] * 9 + [1] * 2 + [2] * 12)
    buckets = torch.randint(0, 4, (3, 2, 23), generator=torch.Generator().manual_seed(0))
    got = bucket_attention(key, value, line, buckets.to(torch.int16), 4, chunk, causal, 0.0)
    for head in range(2):
        wanted = by_definition(key[head], value[head], line, buckets[:, head], chunk, causal)
        torch.testing.assert_close(got[head], wanted)


def test_near_vectors_hash_alike() -> None:
    """The share of equal buckets falls with the angle."""
    attention = build("reformer-both").layers[0].attention
    config = ReformerConfig(dim=64, heads=1, hash_rounds=200, buckets=16)
    attention.rounds, attention.local = 200, False
    vector, noise = random(2, 1, 64)
    shares = []
    for angle in (0.0, 0.3, 0.8, 1.5):
        other = math.cos(angle) * vector / vector.norm() + math.sin(angle) * noise / noise.norm()
        buckets = attention.hash(torch.stack([vector[0], 3 * other[0]])[None], rotations(config))
        assert buckets.shape == (200, 1, 2)
        assert 0 <= int(buckets.min()) <= int(buckets.max()) < 16
        shares.append(float((buckets[..., 0] == buckets[..., 1]).double().mean()))
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[3] < 0.2 < shares[1]


def rotations(config: ReformerConfig, layer: int = 0, step: int | None = None) -> Tensor:
    found = hash_rotations(config, layer, step)
    assert found is not None
    return found


def test_hashes_depend_on_seed_layer_and_step_alone() -> None:
    config = ReformerConfig()
    wanted = rotations(config)
    torch.manual_seed(9)
    assert torch.equal(rotations(config), wanted)
    assert torch.equal(rotations(config, 0, 4), rotations(config, 0, 4))
    others = [rotations(config, 1), rotations(config, 0, 0), rotations(config, 0, 1)]
    others.append(rotations(ReformerConfig(hash_seed=1)))
    assert not any(torch.equal(a, b) for i, a in enumerate(others) for b in [wanted, *others[:i]])

    net, tokens = build("reformer-causal", chunk_length=1), packed()[0]
    with torch.no_grad():
        trained = []
        for net.step in (1, 2, 1):
            trained.append(net.train()(tokens))
        assert torch.equal(trained[0], trained[2])
        assert not torch.equal(trained[0], trained[1])
        assert torch.equal(net.eval()(tokens), build("reformer-causal", chunk_length=1)(tokens))


def test_document_line() -> None:
    documents = torch.tensor([[1, 1, 2, 0], [1, 2, 2, 3]])
    line = document_line(documents, 2, 4, documents.device)
    assert line.tolist() == [0, 0, 1, 2, 3, 4, 4, 5]
    assert document_line(None, 2, 3, documents.device).tolist() == [0, 0, 0, 1, 1, 1]


# Nothing leaks.


@pytest.mark.parametrize("kind", ["reformer-causal", "reformer-learned"])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_later_tokens_change_nothing(kind: str, chunk: int) -> None:
    """Neither their values nor where they are sorted; nor whether they are there at all."""
    net, tokens = build(kind, chunk_length=chunk).double(), packed()[0]
    with torch.no_grad():
        before = net(tokens)
        for place in (1, 7, 15, 23):
            for change in (1, 5, 17):
                changed = tokens.clone()
                changed[:, place:] = (changed[:, place:] + change) % VOCABULARY
                after = net(changed)
                assert difference(after[:, :place], before[:, :place]) < 1e-12
                assert difference(after[:, place:], before[:, place:]) > 1e-3
            assert difference(net(tokens[:, :place]), before[:, :place]) < 1e-12


def test_no_gradient_from_later_tokens() -> None:
    net, tokens = build("reformer-causal"), packed()[0]
    embeds = net.embedding(tokens).detach().requires_grad_()
    hidden = net(tokens, embeds=embeds)
    (gradient,) = torch.autograd.grad(weigh(hidden[:, 9]), embeds)
    assert gradient[:, 9].any()
    assert not gradient[:, 10:].any()


@pytest.mark.parametrize("kind", ["reformer-causal", "reformer-learned"])
def test_with_a_cache_pieces_equal_the_whole(kind: str) -> None:
    net, tokens = build(kind).double(), packed()[0]
    with torch.no_grad():
        whole = net(tokens)
        cache = KeyValueCache(3, LENGTH)
        pieces = [net(part, cache=cache) for part in tokens.split([5, 1, 1, 9, 8], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def test_rows_padded_on_the_left_equal_rows_alone() -> None:
    net, tokens = build("reformer-causal").double(), packed()[0][:2, :16]
    documents = torch.ones_like(tokens)
    documents[1, :6] = 0
    positions = (documents.cumsum(1) - 1).clamp(min=0)
    cache, got = KeyValueCache(3, 16), []
    with torch.no_grad():
        for span in (slice(0, 9), slice(9, 10), slice(10, 16)):
            fields = (x[:, span] for x in (tokens, documents, positions))
            got.append(net(*fields, cache=cache))
        alone = [net(tokens[:1]), net(tokens[1:, 6:])]
    rows = torch.cat(got, dim=1)
    torch.testing.assert_close(rows[:1], alone[0])
    torch.testing.assert_close(rows[1:, 6:], alone[1])


# Reversible layers.


def trained(kind: str, reversible: bool, dtype: torch.dtype, **more: Any) -> Any:
    """Hidden states, gradients and the next random number of a pass in training."""
    net = build(kind, reversible=reversible, **more).train()
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden = net(*packed())
    weigh(hidden.float()).backward()
    return hidden.detach(), gradients(net), torch.rand(3)


@directions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_reversible_equals_plain(causal: bool, dtype: torch.dtype, dropout: float) -> None:
    more = {"causal": causal, "dropout": dropout}
    hidden, found, noise = trained("reformer-both", False, dtype, **more)
    again, others, after = trained("reformer-both", True, dtype, **more)
    assert torch.equal(again, hidden)
    assert torch.equal(after, noise)  # the backward pass leaves random numbers as they were
    assert list(others) == list(found)
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    for name, gradient in found.items():
        assert difference(others[name], gradient) < limit, name


def test_reversible_layers_keep_nothing_of_a_layer() -> None:
    """What the backward pass is given grows with the depth where activations are kept."""

    def kept(**shape: Any) -> int:
        sizes: dict[int, int] = {}

        def note(x: Tensor) -> Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        net = build("reformer-both", **shape)
        mine = {p.untyped_storage().data_ptr() for p in net.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            alive = net(*packed())
        assert alive.requires_grad
        return sum(size for place, size in sizes.items() if place not in mine)

    plain = [kept(depth=d, reversible=False) for d in (2, 6)]
    back = [kept(depth=d, reversible=True) for d in (2, 6)]
    assert plain[1] > 2 * plain[0]
    assert back[1] == back[0] < plain[0]


def test_a_second_backward_pass_and_accumulation() -> None:
    net = build("reformer-both")
    loss = weigh(net(*packed()))
    loss.backward(retain_graph=True)
    once = gradients(net)
    loss.backward()
    weigh(net(*packed())).backward()
    for name, gradient in gradients(net).items():
        assert difference(gradient, 2 * once[name]) < 1e-5, name


def test_adapters_train_in_reversible_layers() -> None:
    results = []
    for reversible in (True, False):
        net = build("reformer-both", reversible=reversible)
        LoRA(rank=2, targets=["query_key", "value", "up"]).apply(net)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, p in net.named_parameters():
                if "lora" in name:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        weigh(net(*packed())).backward()
        results.append(gradients(net))
    assert len(results[0]) == 3 * 3 * 2
    assert list(results[0]) == list(results[1])
    for name, gradient in results[1].items():
        assert difference(results[0][name], gradient) < 1e-4, name
