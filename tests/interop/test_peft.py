"""Adapters to and from Hugging Face's peft, against peft itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from faults.kit import call, done, finetune, words, write_examples
from interop.conftest import build_peer
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import Bundle
from ptft_lightning.interop.adapters import plain
from ptft_lightning.interop.compare import _batch, _logits
from ptft_lightning.interop.families import build_parts
from ptft_lightning.interop.open import open_model
from ptft_lightning.tuning.lora import LoRA

ROWS = [[7, 8, 9, 300, 11, 12], [40, 5, 66], [90]]
TASKS = {
    "bert bare": {"pooling": "first", "transform": "tanh"},
    "roberta": {"pooling": "first", "transform": "tanh"},
    "modernbert": {"pooling": "mean", "transform": "gelu"},
    "gpt2": {"pooling": "last", "bias": False},
    "llama": {"pooling": "last", "bias": False},
}
# Their layers with adapters: those of a fused one, those of separate ones, some of the layers.
TARGETS: dict[str, dict[str, Any]] = {
    "bert": {"target_modules": ["query", "value"]},
    "bert bare": {"target_modules": ["query", "key", "value", "output.dense"]},
    "bert classifier": {"target_modules": ["value"], "layers_to_transform": [1]},
    "roberta": {"target_modules": ["query", "intermediate.dense"]},
    "modernbert": {"target_modules": ["Wqkv", "Wi", "Wo"]},
    "electra classifier": {"target_modules": ["key", "intermediate.dense"]},
    "gpt2": {"target_modules": ["c_attn", "mlp.c_proj"]},
    "llama": {"target_modules": ["q_proj", "v_proj", "up_proj"], "use_rslora": True},
    "qwen3": {"target_modules": ["k_proj", "o_proj", "gate_proj", "down_proj"]},
}


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("examples"))


def write_adapters(folder: Path, peer: Any, **settings: Any) -> Any:
    """Adapters that are not zero, as peft writes them; the model that has them."""
    config = peft.LoraConfig(r=3, lora_alpha=5, **settings)
    model = peft.get_peft_model(peer, config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.3, generator=generator)
    model.save_pretrained(folder)
    return model.eval()


def our_logits(bundle: Bundle, head: str | None, adapted: bool = False) -> Tensor:
    """Of a bundle whose adapters are folded in, or stand beside the weights as in training."""
    parts: Any = build_parts(bundle.config).eval()
    if adapted:
        LoRA(**bundle.config["tuning"]["config"]).apply(parts["backbone"])
    weights = {name: bundle.tensor(name) for name in parts.state_dict()}
    parts.load_state_dict(weights, assign=True)
    batch, real = _batch(ROWS, bundle)
    with torch.no_grad():
        (logits,) = _logits(parts, batch, head)
    return logits[real] if logits.ndim == 3 else logits


def their_logits(model: Any, bundle: Bundle) -> Tensor:
    batch, real = _batch(ROWS, bundle)
    with torch.no_grad():
        out = model(input_ids=batch.tokens, attention_mask=real.long())
    logits: Tensor = out.logits if "logits" in out else out.last_hidden_state
    return logits[real] if logits.ndim == 3 else logits


def assert_near(mine: Tensor, wanted: Tensor) -> None:
    assert float((mine - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("name", TARGETS)
def test_what_peft_wrote_computes_the_same_here(name: str, folder_of: Any, tmp_path: Path) -> None:
    source = folder_of(name, tmp_path / "source", build_peer(name))
    auto = transformers.AutoConfig.from_pretrained(source).architectures[0]
    peer = getattr(transformers, auto).from_pretrained(source)
    bare = their_logits(peer.eval(), open_model(source))
    model = write_adapters(tmp_path / "adapters", peer, **TARGETS[name])
    bundle = open_model(tmp_path / "adapters", str(source))
    wanted = their_logits(model, bundle)
    assert (wanted - bare).abs().max() > 0.01, "the adapters do something"
    head = bundle.config["head"]["name"]
    assert_near(our_logits(plain(bundle), head), wanted)
    assert_near(our_logits(bundle, head, adapted=True), wanted)


@pytest.mark.parametrize("name", TASKS)
def test_what_we_wrote_computes_the_same_in_peft(
    name: str, folder_of: Any, examples: Path, tmp_path: Path
) -> None:
    """Folder -> fit -> peft's folder -> peft, and back here."""
    source = folder_of(name, tmp_path / "source", build_peer(name))
    run_dir, adapters = tmp_path / "run", tmp_path / "adapters"
    lora = {"rank": 2, "rank_stabilised": True, "targets": ["query", "value", "up", "down"]}
    options = finetune(run_dir, source, examples, trainer__max_epochs=1)
    options |= {f"model.task.{key}": value for key, value in TASKS[name].items()}
    options |= {"model.tuning": {"class_path": "LoRA", "init_args": lora}}
    done(words("fit", options | {"model.optimizer.lr": 0.03}))
    export = ["export", "--init_from", str(run_dir), "--output"]
    done([*export, str(adapters), "--format", "peft"])
    auto = transformers.AutoModelForSequenceClassification
    ids = {"num_labels": 2, "pad_token_id": open_model(source).tokenizer.pad}
    if name == "modernbert":
        ids["classifier_pooling"] = "mean"
    bare = auto.from_pretrained(source, dtype=torch.float32, attn_implementation="eager", **ids)
    model = peft.PeftModel.from_pretrained(bare, adapters).eval()
    run = open_model(run_dir)
    mine = our_logits(plain(run), "classification")
    assert_near(their_logits(model, run), mine)
    # And as one model of transformers; export itself compares its logits with the bundle's.
    assert "as transformers computes it" in done([*export, str(tmp_path / "hf")]).out
    back = open_model(adapters)  # it names its base
    assert back.config["tuning"]["config"]["rank"] == 2
    again, first = plain(back), plain(run)
    assert set(again.names()) >= set(first.names())
    for tensor in first.names():
        torch.testing.assert_close(again.tensor(tensor), first.tensor(tensor), rtol=1e-6, atol=1e-6)


def test_a_fit_goes_on_with_peft_s_adapters(folder_of: Any, examples: Path, tmp_path: Path) -> None:
    """The bundle of such a run names the model below, not the adapters it began with."""
    source = folder_of("bert", tmp_path / "source", build_peer("bert"))
    peer = transformers.AutoModelForMaskedLM.from_pretrained(source)
    write_adapters(tmp_path / "adapters", peer, **TARGETS["bert"])
    tuning = {"rank": 3, "alpha": 5.0, "targets": ["query", "value"]}
    run_dir = tmp_path / "run"
    options = finetune(run_dir, tmp_path / "adapters", examples, trainer__max_epochs=1)
    options |= {"model.tuning": {"class_path": "LoRA", "init_args": tuning}}
    said = done(words("fit", options)).err
    assert "new: head.classifier.weight, head.classifier.bias;" in said
    base = json.loads((run_dir / "bundle" / "config.json").read_text())["base"]
    assert (run_dir / "bundle" / base["path"]).resolve() == source
    done(["test", "--run_dir", str(run_dir)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "has peft_type 'LOHA'"),
        ({"use_dora": True}, "has use_dora True"),
        ({"base_model_name_or_path": None}, "name it with --model.base PATH"),
        ({"base_model_name_or_path": "/nowhere/model"}, "not found: '/nowhere/model'"),
    ],
)
def test_other_adapters_are_refused(
    changes: dict[str, Any], said: str, folder_of: Any, tmp_path: Path
) -> None:
    source = folder_of("bert", tmp_path / "source", build_peer("bert"))
    peer = transformers.AutoModelForMaskedLM.from_pretrained(source)
    write_adapters(tmp_path / "adapters", peer, **TARGETS["bert"])
    file = tmp_path / "adapters" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=said):
        open_model(tmp_path / "adapters").names()


def test_tensors_without_a_place_are_named(folder_of: Any, tmp_path: Path) -> None:
    source = folder_of("bert", tmp_path / "source", build_peer("bert"))
    peer = transformers.AutoModelForMaskedLM.from_pretrained(source)
    write_adapters(tmp_path / "adapters", peer, **TARGETS["bert"])
    file = tmp_path / "adapters" / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.strange.weight": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=r"no part of a bert: strange\.weight"):
        open_model(tmp_path / "adapters", str(source))


def test_a_run_without_adapters_is_not_written_for_peft(
    folder_of: Any, examples: Path, tmp_path: Path
) -> None:
    source = folder_of("bert", tmp_path / "source", build_peer("bert"))
    output = str(tmp_path / "out")
    run = call(["export", "--init_from", str(source), "--output", output, "--format", "peft"])
    assert run.code == 2
    assert "has no low-rank adapters" in run.errors[0]
    assert not Path(output).exists()
