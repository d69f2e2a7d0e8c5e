"""`export` writes what transformers computes the same from, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from faults.kit import call, done
from interop.conftest import PEERS, build_peer
from safetensors.torch import load_file
from torch import Tensor

from ptft_lightning.handoff.bundle import open_bundle, write_bundle
from ptft_lightning.interop.open import open_model

TEXTS = ["Water learns a river.", "的一是了我不人", "The  data, model"]


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, however many files they are in."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        out = model.eval()(input_ids=ids)
    return out[0] if "logits" not in out else out.logits


@pytest.mark.parametrize("name", PEERS)
def test_there_and_back(name: str, folder_of: Any, tmp_path: Path) -> None:
    """Bit by bit the same tensors, under the same names; tied ones once."""
    peer = build_peer(name)
    source = folder_of(name, tmp_path / "source", peer)
    run = done(["export", "--init_from", source, "--output", tmp_path / "out"])
    assert "as transformers computes it" in run.out
    before = tensors_of(source)
    if name == "bert with sentence pairs":  # written as BertForMaskedLM, with what it did not need
        assert [n for n in before if "seq_relationship" in n or "pooler" in n]
    assert_same_tensors(tensors_of(tmp_path / "out"), before)
    again = type(peer).from_pretrained(tmp_path / "out")
    ids = torch.arange(10, 22)[None]
    torch.testing.assert_close(logits(again, ids), logits(peer, ids), atol=1e-6, rtol=0)
    assert changed(peer.config.to_dict(), again.config.to_dict()) == {}


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Settings of a config that came back otherwise."""
    free = {
        *("architectures", "_name_or_path", "classifier_dropout"),
        *("n_inner", "max_window_layers", "problem_type"),  # what was implied is said
        *(key for key in after if key.endswith("token_id")),  # those of the tokenizer
    }
    found = {}
    for key in before.keys() - free:
        was, now = before[key], after.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            now = {k: v for k, v in now.items() if k in was}
        if was != now:
            found[key] = (was, now)
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_are_kept(dtype: torch.dtype, folder_of: Any, tmp_path: Path) -> None:
    source = folder_of("llama", tmp_path / "source", build_peer("llama").to(dtype))
    done(["export", "--init_from", source, "--output", tmp_path / "out"])
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors_of(source))
    assert {t.dtype for t in tensors_of(tmp_path / "out").values()} == {dtype}
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert again.dtype == dtype


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen3", "roberta classifier", "electra"])
def test_through_a_bundle_and_back(name: str, folder_of: Any, tmp_path: Path) -> None:
    source = folder_of(name, tmp_path / "source", build_peer(name))
    theirs = open_model(source)
    tensors = {n: theirs.tensor(n) for n in theirs.names()}
    write_bundle(tmp_path / "bundle", theirs.config, theirs.tokenizer, tensors, {}, "")
    assert type(open_model(tmp_path / "bundle")) is type(open_bundle(tmp_path / "bundle"))
    done(["export", "--init_from", tmp_path / "bundle", "--output", tmp_path / "out"])
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors_of(source))


@pytest.mark.parametrize("name", ["llama tied", "bert"])
def test_shards_both_ways(name: str, folder_of: Any, tmp_path: Path) -> None:
    peer = build_peer(name)
    source = folder_of(name, tmp_path / "source", peer, max_shard_size="40KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    out = tmp_path / "out"
    done(["export", "--init_from", source, "--output", out, "--shard_gb", "0.00004"])
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 2
    largest = max(t.numel() * 4 for t in tensors_of(source).values())
    assert all(file.stat().st_size < max(40_000, largest) + 5_000 for file in files)
    assert_same_tensors(tensors_of(out), tensors_of(source))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * t.numel() for t in tensors_of(out).values())
    again = type(peer).from_pretrained(out)
    ids = torch.arange(10, 22)[None]
    torch.testing.assert_close(logits(again, ids), logits(peer, ids), atol=1e-6, rtol=0)
    assert_same_tensors(
        {n: open_model(out).tensor(n) for n in open_model(out).names()},
        {n: open_model(source).tensor(n) for n in open_model(source).names()},
    )


def test_the_tokenizer_is_theirs_too(folder_of: Any, tmp_path: Path) -> None:
    for name in ("bert", "roberta", "llama", "modernbert classifier"):
        source = folder_of(name, tmp_path / name / "source", build_peer(name))
        done(["export", "--init_from", source, "--output", tmp_path / name / "out"])
        ours = open_model(source).tokenizer
        auto = transformers.AutoTokenizer.from_pretrained(tmp_path / name / "out")
        assert auto.pad_token_id == ours.pad
        assert auto.mask_token_id == ours.mask
        assert (auto.bos_token_id, auto.eos_token_id) == (ours.begin, ours.end)
        for text, ids in zip(TEXTS, ours.encode(TEXTS), strict=True):
            assert auto(text, add_special_tokens=False)["input_ids"] == ids
            framed = [ours.begin, *ids] if name == "llama" else ours.frame(ids)
            assert auto(text)["input_ids"] == framed, name
        batch = auto(TEXTS, padding=True, return_tensors="pt")
        assert set(batch) <= {"input_ids", "attention_mask", "token_type_ids"}
        assert ("token_type_ids" in batch) == (name == "bert")


def test_special_tokens_of_other_names(folder_of: Any, tmp_path: Path) -> None:
    """Told by their tokenizer_config.json, kept in our tokenizer, told again."""
    peer = build_peer("llama")
    source = folder_of("llama", tmp_path / "source", peer)
    text = (source / "tokenizer.json").read_text()
    for ours, theirs in (("[SEP]", "<stop>"), ("[PAD]", "<blank>")):
        text = text.replace(ours, theirs)
    (source / "tokenizer.json").write_text(text)
    named = {"eos_token": "<stop>", "pad_token": "<blank>"}
    (source / "tokenizer_config.json").write_text(json.dumps(named))
    theirs = open_model(source)
    assert (theirs.tokenizer.pad, theirs.tokenizer.end) == (0, 2)
    tensors = {n: theirs.tensor(n) for n in theirs.names()}
    write_bundle(tmp_path / "bundle", theirs.config, theirs.tokenizer, tensors, {}, "")
    done(["export", "--init_from", tmp_path / "bundle", "--output", tmp_path / "out"])
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (auto.eos_token, auto.pad_token) == ("<stop>", "<blank>")


def test_a_tokenizer_that_converts_first(folder_of: Any, tmp_path: Path) -> None:
    source = folder_of("llama", tmp_path / "source", build_peer("llama"))
    content = json.loads((source / "tokenizer.json").read_text())
    content["ptft_lightning"] = {"first": ["nfkc"]}
    (source / "tokenizer.json").write_text(json.dumps(content))
    run = call(["export", "--init_from", source, "--output", tmp_path / "out"])
    assert run.code == 2
    assert "converts text by nfkc before it encodes" in run.errors[0]
    assert {p.name for p in tmp_path.iterdir()} == {"source"}


def test_a_generator_says_where_to_stop(folder_of: Any, tmp_path: Path) -> None:
    source = folder_of("llama", tmp_path / "source", build_peer("llama"))
    done(["export", "--init_from", source, "--output", tmp_path / "out"])
    found = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    ours = open_model(source).tokenizer
    assert (found.eos_token_id, found.pad_token_id) == (ours.end, ours.pad)


# What is refused.


def test_a_model_of_no_family(store: Path, bpe_path: Path, tmp_path: Path) -> None:
    from faults.kit import pretrain, words

    run_dir = tmp_path / "run"
    done(words("fit", pretrain(run_dir, store, bpe_path, causal=False, trainer__max_steps=1)))
    run = call(["export", "--init_from", run_dir, "--output", tmp_path / "out"])
    assert run.code == 2
    (line,) = run.errors
    assert "the nearest is modernbert" in line
    assert "backbone.activation is 'gelu' and would have to be 'geglu'" in line
    run = call(["export", "--init_from", run_dir, "--output", tmp_path / "out", "--family", "bert"])
    (line,) = run.errors
    assert "backbone.positions is 'rotary' and would have to be 'learned'" in line
    assert not (tmp_path / "out").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


def test_a_folder_that_disagrees_is_not_kept(
    folder_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison is with transformers' own reading of the folder: here, a wrong epsilon."""
    from ptft_lightning.interop.decoders import Llama

    source = folder_of("llama", tmp_path / "source", build_peer("llama"))
    real = Llama.write
    monkeypatch.setattr(Llama, "obstacles", lambda *_: {})
    monkeypatch.setattr(Llama, "write", lambda self, c: {**real(self, c), "rms_norm_eps": 0.5})
    run = call(["export", "--init_from", source, "--output", tmp_path / "out"])
    assert run.code == 2
    assert "computes other logits" in run.errors[0]
    assert {p.name for p in tmp_path.iterdir()} == {"source"}


def test_what_is_there_stays(folder_of: Any, tmp_path: Path) -> None:
    source = folder_of("gpt2", tmp_path / "source", build_peer("gpt2"))
    args = ["export", "--init_from", source, "--output", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    done(args)  # into an empty directory
    before = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    assert "give --overwrite" in call(args).errors[0]
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns == before
    done([*args, "--overwrite", "true"])
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    run = call([*args[:-1], tmp_path / "mine", "--overwrite", "true"])
    assert "is no earlier export" in run.errors[0]
    assert (tmp_path / "mine" / "thesis.txt").is_file()
