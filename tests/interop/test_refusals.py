"""A folder that is not whole, or holds what our nets do not compute, is one clear sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interop.conftest import build_peer, edit_config
from safetensors.torch import load_file, save_file

from ptft_lightning.errors import UserError
from ptft_lightning.interop.open import open_model

ROPE = {"rope_type": "default", "rope_theta": 1e4}


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        open_model(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture(scope="module")
def sources(folder_of: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = (
        *("bert", "bert classifier", "modernbert", "electra"),
        *("gpt2", "llama", "llama tied", "qwen3"),
    )
    place = tmp_path_factory.mktemp("sources")
    return {
        name: folder_of(name, place / name.replace(" ", "-"), build_peer(name)) for name in names
    }


@pytest.fixture
def copy_of(sources: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def copy(name: str) -> Path:
        folder = tmp_path / "folder"
        folder.mkdir()
        for file in sources[name].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    return copy


# name -> (folder, changes of config.json, words of the message).
SETTINGS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "unknown model type": (
        "llama",
        {"model_type": "mixtral"},
        ("model_type 'mixtral'", "reads modernbert, bert"),
    ),
    "no model type": ("llama", {"model_type": None}, ("no model_type",)),
    "unknown architecture": (
        "bert",
        {"architectures": ["BertForMultipleChoice"]},
        ("'BertForMultipleChoice'", "BertForMaskedLM", "BertModel"),
    ),
    "no architecture": ("bert", {"architectures": None}, ("no architectures", "BertModel")),
    "missing size": ("llama", {"hidden_size": None}, ("config.json' has no 'hidden_size'",)),
    "a word for a size": ("llama", {"hidden_size": "wide"}, ("wrong kind",)),
    "partial rotary": ("llama", {"partial_rotary_factor": 0.5}, ("partial_rotary_factor 0.5",)),
    "partial rotary inside": (
        "llama",
        {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
        ("partial_rotary_factor 0.5",),
    ),
    "dynamic angles": (
        "llama",
        {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}},
        ("'dynamic'", "linear, llama3, yarn"),
    ),
    "untruncated yarn": (
        "llama",
        {"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 2.0, "truncate": False}},
        ("truncate False",),
    ),
    "another activation": ("bert", {"hidden_act": "relu"}, ("hidden_act 'relu'", "'gelu'")),
    "another activation in ELECTRA": (
        "electra",
        {"hidden_act": "gelu_new"},
        ("hidden_act 'gelu_new'", "'gelu'"),
    ),
    "another gate": ("llama", {"hidden_act": "gelu_pytorch_tanh"}, ("'silu' or 'gelu'",)),
    "cross attention": ("gpt2", {"add_cross_attention": True}, ("add_cross_attention True",)),
    "a decoder of an encoder": ("bert", {"is_decoder": True}, ("is_decoder True",)),
    "experts": ("llama", {"num_local_experts": 8}, ("num_local_experts 8",)),
    "capped logits": ("llama", {"final_logit_softcapping": 30.0}, ("softcapping 30.0",)),
    "quantized": ("llama", {"quantization_config": {"bits": 4}}, ("quantization_config",)),
    "code of its own": ("llama", {"auto_map": {"AutoModel": "m.M"}}, ("auto_map",)),
    "biases of attention alone": ("llama", {"attention_bias": True}, ("mlp_bias False", "True")),
    "biases in Qwen3": ("qwen3", {"attention_bias": True}, ("attention_bias True",)),
    "norms alone with biases": ("modernbert", {"norm_bias": True}, ("attention_bias False",)),
    "relative positions": (
        "bert",
        {"position_embedding_type": "relative_key"},
        ("'relative_key'", "'absolute'"),
    ),
    "scaled by layer": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True},
        ("scale_attn_by_inverse_layer_idx True",),
    ),
    "several labels at once": (
        "bert classifier",
        {"problem_type": "multi_label_classification"},
        ("multi_label_classification with 3 labels",),
    ),
    "one label": (
        "bert classifier",
        {"id2label": {"0": "score"}},
        ("regression with 1 labels",),
    ),
    "another size": ("llama", {"vocab_size": 9}, ("shape (620, 32)", "(9, 32)", "embed_tokens")),
    "another depth": ("llama", {"num_hidden_layers": 2}, ("no part of a LlamaForCausalLM",)),
    "more layers": ("llama", {"num_hidden_layers": 4}, ("no tensor 'model.layers.3.",)),
    "tied by mistake": ("llama", {"tie_word_embeddings": True}, ("tie_word_embeddings true",)),
    "untied by mistake": (
        "llama tied",
        {"tie_word_embeddings": False},
        ("no tensor 'lm_head.weight'",),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, copy_of: Callable[[str], Path]) -> None:
    source, changes, parts = SETTINGS[name]
    folder = copy_of(source)
    edit_config(folder, **changes)
    said = refusal(folder)
    assert [part for part in parts if part not in said] == [], said
    assert str(folder) in said


def test_a_foreign_tensor(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("llama")
    change_tensors(folder, lambda t: t.update({"model.layers.0.self_attn.sinks": torch.ones(4)}))
    assert "no part of a LlamaForCausalLM: model.layers.0.self_attn.sinks" in refusal(folder)


def test_tensors_of_older_releases(copy_of: Callable[[str], Path], sources: Any) -> None:
    """BERT's first names of its norms, a buffer, the tied projection written twice."""
    folder = copy_of("bert")

    def older(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "LayerNorm" in name]:
            ending = "gamma" if name.endswith("weight") else "beta"
            tensors[f"{name.rpartition('.')[0]}.{ending}"] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]
        embedding = tensors["bert.embeddings.word_embeddings.weight"]
        tensors["cls.predictions.decoder.weight"] = embedding.clone()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()

    change_tensors(folder, older)
    one, other = open_model(folder), open_model(sources["bert"])
    assert one.names() == other.names()
    assert one.hash == other.hash
    change_tensors(folder, lambda t: t["cls.predictions.decoder.weight"].add_(1))
    assert "set tie_word_embeddings to false" in refusal(folder)


# Files.


def sharded(folder_of: Any, folder: Path) -> Path:
    return folder_of("gpt2", folder, build_peer("gpt2"), max_shard_size="30KB")


def test_a_missing_shard(folder_of: Any, tmp_path: Path) -> None:
    folder = sharded(folder_of, tmp_path / "folder")
    (lost, *rest) = sorted(folder.glob("model-*"))
    lost.unlink()
    assert f"lacks {lost.name}, of {len(rest) + 1} files" in refusal(folder)


def test_an_index_that_disagrees(folder_of: Any, tmp_path: Path) -> None:
    folder = sharded(folder_of, tmp_path / "folder")
    first, second = sorted(folder.glob("model-*"))[:2]
    first.write_bytes(second.read_bytes())
    assert "disagree about 'transformer." in refusal(folder)
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}}')
    assert "has no weight_map" in refusal(folder)


def test_a_broken_file(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("gpt2")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert "model.safetensors' cannot be read" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json' is not JSON" in refusal(folder)
    (folder / "config.json").write_text("[]")
    assert "config.json' is not a JSON object" in refusal(folder)


def test_no_config(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("gpt2")
    (folder / "config.json").unlink()
    assert "config.json' is missing" in refusal(folder)


def test_no_weights(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("gpt2")
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "pickle (pytorch_model.bin)" in refusal(folder)
    assert "convert them to safetensors" in refusal(folder)


def test_no_tokenizer(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("gpt2")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        assert open_model(folder).tokenizer


def test_what_is_not_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offline; a fetched copy is opened like any folder."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    said = refusal(Path("someone/no-such-model"))
    assert "'someone/no-such-model' is not a folder here and cannot be fetched" in said
    assert "bundle not found: 'runs/nothing': train it first" in refusal(Path("runs/nothing"))
    (tmp_path / "runs").mkdir()
    assert "bundle not found: 'runs/nothing'" in refusal(Path("runs/nothing"))  # a slip, no id


def test_a_hub_id(monkeypatch: pytest.MonkeyPatch, sources: Any) -> None:
    import huggingface_hub

    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        return str(sources["gpt2"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert open_model("someone/some-model").hash == open_model(sources["gpt2"]).hash
    assert asked == ["someone/some-model"]


def test_exactly_the_families_are_named(sources: Any) -> None:
    """What a config.json says of itself is what the bundle says."""
    for name, folder in sources.items():
        said = open_model(folder).lineage["huggingface"]
        content = json.loads((folder / "config.json").read_text())
        assert said["model_type"] == content["model_type"] == name.split()[0]
        assert said["architecture"] == content["architectures"][0]
