"""What is predicted of a step equals what torch counts: parameters, FLOPs, the memory's peak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from ptft_lightning.backbones.base import initial_value
from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.costs import flops
from ptft_lightning.costs.advice import advice, changes, fits, largest_micro_batch, needed
from ptft_lightning.costs.counted import counted_flops
from ptft_lightning.costs.describe import head_costs
from ptft_lightning.costs.job import Job, sizes_of
from ptft_lightning.costs.memory import memory
from ptft_lightning.costs.parameters import backbone_parameters
from ptft_lightning.costs.peak import matmul_peak
from ptft_lightning.data.batch import Batch
from ptft_lightning.modules.nets import PretrainNet
from ptft_lightning.objectives.base import Objective
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.objectives.replaced import ReplacedTokens
from ptft_lightning.tuning.bitfit import BitFit
from ptft_lightning.tuning.frozen import Frozen
from ptft_lightning.tuning.lora import LoRA

SHAPES: dict[str, dict[str, Any]] = {
    "bert": {"norm_first": False, "positions": "learned", "token_types": 2, "embedding_norm": True},
    "roberta": {"norm_first": False, "positions": "learned", "position_start": 2, "token_types": 1},
    "gpt2": {"causal": True, "positions": "learned", "activation": "gelu_tanh"},
    "llama": {
        **{"causal": True, "norm": "rmsnorm", "activation": "swiglu", "bias": False},
        **{"kv_heads": 2, "tie_embeddings": False},
    },
    "qwen": {"causal": True, "norm": "rmsnorm", "qkv_bias": True, "bias": False, "head_dim": 24},
    "qwen3": {"causal": True, "norm": "rmsnorm", "qk_norm": True, "bias": False},
    "modernbert": {
        **{"activation": "geglu", "bias": False, "embedding_norm": True, "first_norm": False},
        **{"window": 8, "window_layers": [1]},
    },
}
LENGTH, ROWS, VOCABULARY, DEPTH = 320, 2, 500, 3
WINDOWED = {"window": 64, "window_layers": [1, 2], "max_length": 1000}


def config_of(shape: str, **more: Any) -> TransformerConfig:
    given = {"dim": 64, "depth": DEPTH, "heads": 4, "max_length": LENGTH}
    return TransformerConfig(**{**given, **SHAPES[shape], **more})


def net_of(
    config: TransformerConfig, device: str, vocabulary: int = VOCABULARY, tuning: Any = None
) -> PretrainNet:
    objective: Objective = CausalLM() if config.causal else MaskedLM()
    with torch.device(device):
        backbone = Transformer(config, vocabulary)
        if tuning is not None:
            tuning.apply(backbone)
        net = PretrainNet(backbone, objective.build_head(backbone, config.tie_embeddings))
    if device != "meta":
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter.copy_(initial_value(name, parameter.shape, DEPTH, 0))
    return net


def batch_of(causal: bool, rows: int = ROWS, length: int = LENGTH) -> Batch:
    tokens = torch.arange(rows * length).view(rows, length) % VOCABULARY
    slots = torch.arange(max(1, round(0.15 * length))).expand(rows, -1)
    masked = {"slots": slots, "labels": tokens.gather(1, slots)}
    targets = {"labels": tokens} if causal else masked
    whole = torch.ones_like(tokens)
    samples = torch.arange(rows)
    return Batch(tokens, whole, None, None, samples, samples, targets, rows, tokens.numel())


def job_of(net: PretrainNet, batch: Batch, **more: Any) -> Job:
    config = net.backbone.config
    assert isinstance(config, TransformerConfig)
    rows, length = batch.tokens.shape
    given: dict[str, Any] = {
        "config": config,
        "vocab_size": net.backbone.vocab_size,
        "sizes": sizes_of(net, "adamw"),
        "rows": rows,
        "length": length,
        "targets": batch.targets["labels"].numel(),
        "head_matrices": 0 if config.causal else config.dim**2,
        "precision": "32-true",
        "device": "cpu",
        "strategy": "single",
        "ranks": 1,
        "global_batch": rows,
        "recompute": net.backbone.recompute,
    }
    return Job(**{**given, **more})


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters(shape):
    config = config_of(shape)
    backbone = net_of(config, "meta").backbone
    assert backbone_parameters(config, VOCABULARY) == sum(p.numel() for p in backbone.parameters())


@pytest.mark.parametrize("shape", SHAPES)
def test_flops_of_pretraining(shape):
    """To the operation, attention and head included."""
    net, batch = net_of(config_of(shape), "meta"), batch_of(config_of(shape).causal)
    assert flops.micro_batch(job_of(net, batch)) == counted_flops(net, batch)


@pytest.mark.parametrize("causal", [False, True])
def test_flops_of_blocks(causal):
    """Long rows of windowed layers: what is computed in blocks, to the operation."""
    config = config_of("modernbert", **WINDOWED, causal=causal)
    net, batch = net_of(config, "meta"), batch_of(causal, length=1000)
    job = job_of(net, batch)
    whole = job_of(net_of(replace(config, window=None, window_layers=None), "meta"), batch)
    assert flops.micro_batch(job) == counted_flops(net, batch) < flops.micro_batch(whole)


@pytest.mark.parametrize("shape", ["bert", "modernbert"])
def test_flops_of_a_generator(shape):
    """ELECTRA's reads every place, as the backbone does, and the detector judges each."""
    config = config_of(shape)
    with torch.device("meta"):
        backbone = Transformer(config, VOCABULARY)
        head = ReplacedTokens(generator_width=0.5, generator_depth=0.7).build_head(backbone, True)
    net, batch = PretrainNet(backbone, head), batch_of(causal=False)
    drawn = torch.zeros_like(batch.targets["labels"])
    batch = replace(batch, targets=batch.targets | {"drawn": drawn})
    other, beside = head_costs(net, LENGTH)
    job = job_of(net, batch, head_matrices=other, beside=beside)
    assert flops.micro_batch(job) == counted_flops(net, batch)


def test_six_flops_a_parameter():
    """Kaplan et al.'s rule, where the embedding is small beside the layers and rows are short."""
    config = config_of("gpt2", dim=256, depth=6)
    net, batch = net_of(config, "meta", 50), batch_of(True, length=8)
    job = job_of(net, batch)
    assert flops.micro_batch(job) == pytest.approx(6 * job.sizes.total * job.tokens, rel=0.02)


@pytest.mark.parametrize("tuning", [Frozen(), LoRA(), LoRA(targets=["query"]), BitFit()])
@pytest.mark.parametrize("shape", ["bert", "gpt2", "qwen3"])
def test_flops_of_what_trains_in_part(shape, tuning, monkeypatch):
    if isinstance(tuning, BitFit) and shape == "qwen3":
        tuning = LoRA(targets=["down"])  # it has no biases
    net, batch = net_of(config_of(shape), "meta", tuning=tuning), batch_of(shape != "bert")
    job = job_of(net, batch, targets=0)
    monkeypatch.setattr("ptft_lightning.costs.counted.PretrainNet", type(None))
    assert flops.micro_batch(job) == counted_flops(net, batch)


def test_logits_in_chunks_are_counted_again(monkeypatch):
    """Four passes over the vocabulary instead of three."""
    net, batch = net_of(config_of("llama"), "meta"), batch_of(True)
    whole = flops.micro_batch(job_of(net, batch))
    for module in ("terms", "costs.job"):
        monkeypatch.setattr(f"ptft_lightning.{module}.CHUNK_ELEMENTS", 100 * VOCABULARY)
    job = job_of(net, batch)
    assert job.chunked
    assert counted_flops(net, batch) == flops.micro_batch(job) > whole


def peak_of(net: PretrainNet, batch: Batch, precision: str) -> int:
    """Bytes at the fullest moment of a second step, as torch's tracker sees them."""
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision.endswith("mixed")):
            (term,) = net(batch).terms.values()
        term.total.backward()
        optimizer.step()
        optimizer.zero_grad()

    tracker = MemTracker()
    tracker.track_external(net, optimizer)
    with tracker:
        step()
        tracker.reset_mod_stats()
        step()
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


CASES = [(shape, precision, {}) for shape in SHAPES for precision in ("32-true", "bf16-mixed")]
CASES += [("bert", "bf16-true", {}), ("llama", "bf16-true", {})]
CASES += [("gpt2", "32-true", {"dropout": 0.1}), ("bert", "bf16-mixed", {"dropout": 0.1})]


@pytest.mark.parametrize(("shape", "precision", "more"), CASES, ids=str)
def test_memory(shape, precision, more):
    config = config_of(shape, **more)
    net, batch = net_of(config, "cpu"), batch_of(config.causal)
    net = net.bfloat16() if precision == "bf16-true" else net
    predicted = memory(job_of(net, batch, precision=precision)).peak
    assert predicted == pytest.approx(peak_of(net, batch, precision), rel=0.06)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_memory_of_blocks(precision, causal, dropout):
    config = config_of("modernbert", **WINDOWED, causal=causal, dropout=dropout)
    net, batch = net_of(config, "cpu"), batch_of(causal, length=1000)
    predicted = memory(job_of(net, batch, precision=precision)).peak
    assert predicted == pytest.approx(peak_of(net, batch, precision), rel=0.06)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_memory_of_short_rows_recomputed_layers_and_large_vocabularies(precision):
    net = net_of(config_of("llama"), "cpu")
    short = batch_of(True, rows=4, length=96)  # bfloat16 takes plain products there
    predicted = memory(job_of(net, short, precision=precision)).peak
    assert predicted == pytest.approx(peak_of(net, short, precision), rel=0.06)
    net.backbone.recompute = True
    again = memory(job_of(net, batch_of(True), precision=precision)).peak
    assert again == pytest.approx(peak_of(net, batch_of(True), precision), rel=0.06)
    wide = net_of(config_of("gpt2"), "cpu", vocabulary=8000)
    predicted = memory(job_of(wide, short, precision=precision)).peak
    assert predicted == pytest.approx(peak_of(wide, short, precision), rel=0.06)


# What strategies change.


@pytest.fixture(scope="module")
def large() -> Job:
    """A model of 0.2 G parameters on 8 ranks."""
    config = config_of("llama", dim=1024, depth=12, heads=16, max_length=1024)
    net = net_of(config, "meta", 32000)
    job = job_of(net, batch_of(True, rows=8, length=1024), strategy="ddp", ranks=8, device="cuda")
    return replace(job, global_batch=128)


def test_strategies(large):
    """DDP holds everything and its buckets; FSDP2 a share, and what it gathers."""
    single = memory(replace(large, strategy="single", ranks=1))
    ddp, fsdp = memory(large), memory(replace(large, strategy="fsdp2"))
    whole = 4 * large.sizes.total
    assert (single.weights, single.gradients, single.optimizer) == (whole, whole, 2 * whole)
    assert (ddp.weights, ddp.gradients, ddp.optimizer) == (whole, 2 * whole, 2 * whole)
    assert fsdp.optimizer == 2 * whole / 8
    assert whole / 8 < fsdp.weights < whole
    assert single.activations == ddp.activations == fsdp.activations


def test_gradients_stay_beside_activations_only_where_steps_accumulate(large):
    one = memory(replace(large, global_batch=64))
    several = memory(large)
    assert not one.accumulates
    assert several.accumulates
    assert several.peak == pytest.approx(one.peak + one.gradients)


def test_advice(large):
    """What is advised fits; where nothing is needed nothing is."""
    assert advice(large, needed(large)) == []
    options = dict(changes(large))
    assert set(options) == {
        *("--config configs/trainer/fsdp.yaml", "model.activation_checkpointing true"),
        "trainer.precision bf16-mixed",
    }
    limit = 0.8 * needed(large)
    rows = largest_micro_batch(large, limit)
    assert rows is not None
    assert rows < large.rows
    told = advice(large, limit)
    assert f"data.micro_batch_size {rows} (the step stays the same)" in told
    assert [t for t in told if t in options and not fits(options[t], limit)] == []


def test_advice_puts_several_together_then_asks_for_more(large):
    (told,) = advice(large, 2.5e9)
    assert told.startswith("--config configs/trainer/fsdp.yaml and ")
    (told,) = advice(large, 1e9)
    assert told.startswith("all of these still take ")


def test_a_peak_is_measured():
    """Two square matrices of 1024, at a speed a processor can have."""
    assert 1e8 < matmul_peak("cpu", torch.float32) < 1e14
