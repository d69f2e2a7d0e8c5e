"""Filling a net: every tensor placed or named, strictly; frozen parts stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import tiny

from ptft_lightning.backbones.base import initial_value
from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import Bundle, open_bundle, write_bundle
from ptft_lightning.modules.nets import PretrainNet, fill
from ptft_lightning.modules.phase import PhaseModule
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.tuning.frozen import Frozen

CPU = torch.device("cpu")


def meta_net() -> PretrainNet:
    with torch.device("meta"):
        config = TransformerConfig(dim=16, depth=2, heads=2, max_length=8, positions="learned")
        body = Transformer(config, 30)
        return PretrainNet(body, MaskedLM().build_head(body, tied=True))


def test_new_values_are_initial_values() -> None:
    net = meta_net()
    new = fill(net, CPU, lambda name: None, seed=4)
    assert new == [name for name, _ in net.named_parameters()] == list(net.state_dict())
    for name, p in net.named_parameters():
        assert torch.equal(p, initial_value(name, p.shape, 2, seed=4)), name


def test_stored_values_are_placed_and_the_others_named() -> None:
    net = meta_net()
    stored = {
        name: torch.full(p.shape, 0.5, dtype=torch.bfloat16)
        for name, p in net.named_parameters()
        if name.startswith("backbone.")
    }
    new = fill(net, CPU, stored.get, seed=0)
    assert new == [name for name, _ in net.named_parameters() if name.startswith("head.")]
    for name, p in net.named_parameters():
        assert p.dtype == torch.float32
        assert bool((p == 0.5).all()) is (name in stored), name


@pytest.mark.parametrize("shape", [(31, 16), (1, 16), (16,)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    """(1, 16) and (16,) would be spread over the embedding without a word."""
    stored = {"backbone.embedding.weight": torch.zeros(shape)}
    with pytest.raises(UserError) as refused:
        fill(meta_net(), CPU, stored.get, seed=0)
    assert "backbone.embedding.weight" in str(refused.value)
    assert str(shape) in str(refused.value)
    assert "(30, 16)" in str(refused.value)


@pytest.fixture
def masked_bundle(tmp_path: Path, bpe: Tokenizer) -> Path:
    return tiny.bundle(tmp_path / "masked", bpe)


@pytest.fixture
def tuned_bundle(tmp_path: Path, bpe: Tokenizer) -> Path:
    return tiny.bundle(tmp_path / "tuned", bpe, "classification")


@pytest.fixture
def examples_file(tmp_path: Path) -> Path:
    return tiny.write_examples(tmp_path / "train.jsonl")


def rewrite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    bundle = open_bundle(path)
    config = {k: v for k, v in bundle.config.items() if k != "format"}
    write_bundle(path, config, bundle.tokenizer, tensors, {}, "")


def tensors_of(bundle: Bundle) -> dict[str, torch.Tensor]:
    return {name: bundle.tensor(name).clone() for name in bundle.names()}


def start(module: PhaseModule, data: Any) -> dict[str, torch.Tensor]:
    """The values before the first step."""
    seen = tiny.Gradients()
    tiny.fit(module, data, steps=1, callbacks=[seen])
    return seen.initial


def test_pretraining_goes_on_from_all_tensors(
    masked_bundle: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tiny.pretrain(MaskedLM(0.3), backbone=None, init_from=str(masked_bundle))
    initial = start(module, tiny.corpus(store, None))
    wanted = tensors_of(open_bundle(masked_bundle))
    assert sorted(initial) == sorted(wanted)
    assert all(torch.equal(initial[name], value) for name, value in wanted.items())
    assert "new: nothing; unused: nothing" in capsys.readouterr().err


def test_another_masking_rate_keeps_the_head(
    masked_bundle: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Objectives differ by name; a setting of the data side makes no other head."""
    module = tiny.pretrain(MaskedLM(0.2), backbone=None, init_from=str(masked_bundle))
    initial = start(module, tiny.corpus(store, None))
    wanted = tensors_of(open_bundle(masked_bundle))
    assert sorted(initial) == sorted(wanted)
    assert all(torch.equal(initial[name], value) for name, value in wanted.items())
    assert "new: nothing; unused: nothing" in capsys.readouterr().err


def test_finetuning_takes_the_backbone_and_names_the_rest(
    masked_bundle: Path, examples_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tiny.finetune(init_from=str(masked_bundle))
    initial = start(module, tiny.examples(examples_file, None))
    wanted = tensors_of(open_bundle(masked_bundle))
    for name, value in initial.items():
        if name.startswith("backbone."):
            assert torch.equal(value, wanted[name]), name
        else:
            assert torch.equal(value, initial_value(name, value.shape, 2, seed=3)), name
    said = capsys.readouterr().err
    assert "new: head.classifier.weight, head.classifier.bias; unused: " in said
    assert "head.dense.weight" in said.partition("unused: ")[2]


def test_a_tuned_bundle_brings_its_head(tuned_bundle: Path, examples_file: Path) -> None:
    module = tiny.finetune(init_from=str(tuned_bundle))
    initial = start(module, tiny.examples(examples_file, None))
    wanted = tensors_of(open_bundle(tuned_bundle))
    assert all(torch.equal(initial[name], value) for name, value in wanted.items())


def test_from_scratch_takes_nothing(masked_bundle: Path, examples_file: Path) -> None:
    module = tiny.finetune(init_from=str(masked_bundle), from_scratch=True)
    initial = start(module, tiny.examples(examples_file, None))
    for name, value in initial.items():
        assert torch.equal(value, initial_value(name, value.shape, 2, seed=3)), name


@pytest.mark.parametrize("lost", ["backbone.layers.1.ffn.up.weight", "head.classifier.bias"])
def test_a_missing_tensor_is_refused(tuned_bundle: Path, examples_file: Path, lost: str) -> None:
    tensors = tensors_of(open_bundle(tuned_bundle))
    del tensors[lost]
    rewrite(tuned_bundle, tensors)
    with pytest.raises(UserError, match=f"has no tensor '{lost}'"):
        start(tiny.finetune(init_from=str(tuned_bundle)), tiny.examples(examples_file, None))


def test_a_missing_head_of_the_same_objective_is_refused(masked_bundle: Path, store: Path) -> None:
    tensors = tensors_of(open_bundle(masked_bundle))
    del tensors["head.dense.weight"]
    rewrite(masked_bundle, tensors)
    module = tiny.pretrain(MaskedLM(0.3), backbone=None, init_from=str(masked_bundle))
    with pytest.raises(UserError, match=r"has no tensor 'head\.dense\.weight'"):
        start(module, tiny.corpus(store, None))


def test_a_surplus_tensor_of_the_backbone_is_refused(
    masked_bundle: Path, examples_file: Path
) -> None:
    tensors = tensors_of(open_bundle(masked_bundle))
    tensors["backbone.layers.2.ffn.up.bias"] = torch.zeros(3)
    rewrite(masked_bundle, tensors)
    with pytest.raises(UserError, match=r"no place for: backbone\.layers\.2\.ffn\.up\.bias"):
        start(tiny.finetune(init_from=str(masked_bundle)), tiny.examples(examples_file, None))


def test_frozen_backbone_stays_and_the_head_moves(masked_bundle: Path, examples_file: Path) -> None:
    seen = tiny.Gradients()
    module = tiny.finetune(init_from=str(masked_bundle), tuning=Frozen())
    tiny.fit(module, tiny.examples(examples_file, None), steps=3, callbacks=[seen])
    for name, value in tiny.parameters(module).items():
        assert torch.equal(value, seen.initial[name]) is name.startswith("backbone."), name
    assert [list(step) for step in seen.steps] == [
        ["head.classifier.weight", "head.classifier.bias"]
    ] * 3
    held = module.trainer.optimizers[0].param_groups
    assert sum(len(group["params"]) for group in held) == 2


def test_full_tuning_moves_everything(masked_bundle: Path, examples_file: Path) -> None:
    seen = tiny.Gradients()
    module = tiny.finetune(init_from=str(masked_bundle))
    tiny.fit(module, tiny.examples(examples_file, None), steps=1, callbacks=[seen])
    for name, value in tiny.parameters(module).items():
        assert not torch.equal(value, seen.initial[name]), name


def test_module_options_keep_names_and_gradients(store: Path, bpe_path: Path) -> None:
    def run(**options: bool) -> tiny.Gradients:
        seen = tiny.Gradients()
        module = tiny.pretrain(CausalLM(), shape={"dropout": 0.1}, **options)
        data = tiny.corpus(store, bpe_path, global_batch_size=4, micro_batch_size=2)
        tiny.fit(module, data, steps=1, callbacks=[seen])
        return seen

    plain, recomputed = run(), run(activation_checkpointing=True)
    assert list(plain.steps[0]) == list(recomputed.steps[0])
    for name, gradient in plain.steps[0].items():
        assert torch.equal(gradient, recomputed.steps[0][name]), name


@pytest.mark.slow
def test_compiled_run_keeps_names_and_gradients(store: Path, bpe_path: Path) -> None:
    results = []
    for compiled in (False, True):
        seen = tiny.Gradients()
        module = tiny.pretrain(CausalLM(), compile_layers=compiled)
        data = tiny.corpus(store, bpe_path, global_batch_size=4, micro_batch_size=2)
        tiny.fit(module, data, steps=1, callbacks=[seen])
        results.append(seen.steps[0])
        assert not [name for name in module.state_dict() if "_orig_mod" in name]
    plain, same = results
    assert list(plain) == list(same)
    for name, gradient in plain.items():
        torch.testing.assert_close(same[name], gradient, atol=1e-6, rtol=1e-4)
