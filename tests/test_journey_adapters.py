"""Runs whose bundles hold only what was trained: with their base, without it, and made whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.kit import (
    assert_same_weights,
    call,
    done,
    finetune,
    pretrain,
    read_json_lines,
    weights,
    words,
    write_examples,
)

from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.interop.adapters import plain
from ptft_lightning.interop.open import open_model

LORA = {"class_path": "LoRA", "init_args": {"rank": 4, "dropout": 0.1}}
OTHER = {"class_path": "LoRA", "init_args": {"rank": 2, "targets": ["query", "down"]}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> Path:
    """A directory with the run `base` of phase one."""
    at = tmp_path_factory.mktemp("runs")
    done(words("fit", pretrain(at / "base", store, bpe_path, trainer__max_steps=3)))
    return at


def tune(runs: Path, files: Path, name: str, tuning: Any, init_from: str = "base", **more: Any):
    options = finetune(runs / name, runs / init_from, files, trainer__max_epochs=2)
    return done(words("fit", options | {"model.tuning": tuning, "model.optimizer.lr": 0.01} | more))


@pytest.fixture(scope="module")
def lora(runs: Path, files: Path) -> Path:
    said = tune(runs, files, "lora", LORA).err
    assert "optimizer: about 37.4 kB of adamw state" in said
    assert "bundle: about 18.7 kB (what is trained; the rest stays in its base)" in said
    assert f"needs its base {open_bundle(runs / 'base').hash} at '../../base/bundle'" in said
    return runs / "lora"


def base_of(run_dir: Path) -> dict[str, str] | None:
    found: dict[str, str] | None = open_bundle(run_dir).config.get("base")
    return found


def test_a_bundle_holds_what_was_trained(lora: Path, runs: Path) -> None:
    stored = weights(lora)
    assert all(n.startswith("head.") or ".lora_" in n for n in stored)
    assert sum(t.nbytes for t in stored.values()) == 18696  # 4 (2 (384 + 384 + 256 + 1280) + 66)
    whole, base = open_model(lora), open_bundle(runs / "base")
    kept = [name for name in base.names() if name.startswith("backbone.")]
    assert set(whole.names()) == set(kept) | set(stored)
    assert all(torch.equal(whole.tensor(name), base.tensor(name)) for name in kept)


def test_merged_it_needs_no_base_and_computes_the_same(
    lora: Path, files: Path, tmp_path: Path
) -> None:
    merged, test = tmp_path / "merged", str(files / "test.jsonl")
    done(["merge", "--init_from", str(lora), "--output", str(merged)])
    assert base_of(merged) is None
    lines = []
    for place in (lora, merged):
        output = tmp_path / f"{place.name}.jsonl"
        options = {"run_dir": str(place), "data.predict": test, "output": str(output)}
        done(words("predict", options))
        lines.append([line["probabilities"] for line in read_json_lines(output.read_text())])
    assert len(lines[0]) == 23
    for mine, wanted in zip(*lines, strict=True):
        assert mine == pytest.approx(wanted, abs=1e-5)
    run = call(["merge", "--init_from", str(lora), "--output", str(merged)])
    assert run.code == 2
    assert "is there already: name another or give --overwrite" in run.errors[0]


def test_a_base_that_is_missing_moved_or_another(
    lora: Path, runs: Path, files: Path, store: Path, bpe_path: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "elsewhere" / "bundle"
    shutil.copytree(lora / "bundle", alone)
    test = ["test", "--run_dir", str(alone), "--data.test", str(files / "test.jsonl")]
    run = call(test)
    assert run.code == 2
    assert "its base is not at '../../base/bundle': put it there or name it with" in run.errors[0]
    wanted = done(["test", "--run_dir", str(lora)]).out
    assert done([*test, "--model.base", str(runs / "base")]).out == wanted
    other = pretrain(tmp_path / "other", store, bpe_path, trainer__max_steps=1)
    done(words("fit", other))
    run = call([*test, "--model.base", str(tmp_path / "other")])
    assert run.code == 2
    hashes = [open_bundle(at).hash for at in (runs / "base", tmp_path / "other")]
    assert f"was trained on the base {hashes[0]}, and" in run.errors[0]
    assert f"is {hashes[1]}: name the one it was trained on with --model.base" in run.errors[0]
    run = call(["merge", "--init_from", str(alone), "--output", str(tmp_path / "whole")])
    assert "--base PATH" in run.errors[0]
    merge = ["merge", "--init_from", str(alone), "--output", str(tmp_path / "whole")]
    done([*merge, "--base", str(runs / "base")])


def test_the_next_run_starts_from_it(lora: Path, runs: Path, files: Path) -> None:
    """The same adapters go on; others, or none, start from the folded ones."""
    said = tune(runs, files, "again", LORA, "lora").err
    assert "new: nothing; unused: nothing" in said
    assert base_of(runs / "again") == base_of(lora), "not the adapters that it began with"
    tune(runs, files, "other", OTHER, "lora")
    assert base_of(runs / "other") == {"hash": open_bundle(lora).hash, "path": "../../lora/bundle"}
    tune(runs, files, "frozen", "Frozen", "other")
    assert base_of(runs / "frozen") == {
        "hash": open_bundle(runs / "other").hash,
        "path": "../../other/bundle",
    }
    folded, still = plain(open_model(runs / "other")), open_model(runs / "frozen")
    for name in folded.names():
        if name.startswith("backbone."):
            assert torch.equal(still.tensor(name), folded.tensor(name)), name
    assert set(weights(runs / "frozen")) == {"head.classifier.weight", "head.classifier.bias"}
    tune(runs, files, "full", {"class_path": "Full", "init_args": {"layer_decay": 0.8}}, "frozen")
    assert base_of(runs / "full") is None
    done(["test", "--run_dir", str(runs / "full")])


def test_a_resume_ends_in_the_same_bits(lora: Path, runs: Path, files: Path) -> None:
    stop = {"class_path": "faults.kit.Terminate", "init_args": {"step": 4}}
    options = finetune(runs / "parts", runs / "base", files, trainer__max_epochs=2)
    options |= {"model.tuning": LORA, "model.optimizer.lr": 0.01}
    assert call(words("fit", options | {"trainer.callbacks": [stop]})).code == 75
    done(words("fit", options | {"ckpt_path": "last"}))
    assert_same_weights(runs / "parts", lora)
    run = call(words("fit", options | {"ckpt_path": "last", "model.tuning": OTHER}))
    assert run.code == 2
    assert "tuning.config.rank was 4, is 2" in run.errors[0]


def test_a_checkpoint_is_no_base(runs: Path, lora: Path, files: Path) -> None:
    """They come and go: what starts from one is written whole."""
    (checkpoint,) = [*(runs / "base" / "checkpoints").iterdir()][-1:]
    tune(runs, files, "whole", LORA, str(checkpoint.relative_to(runs)))
    assert base_of(runs / "whole") is None
    assert set(weights(runs / "whole")) == set(open_model(lora).names())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_path": "LoRA", "init_args": {"targets": ["q_proj"]}}, "'q_proj' matches no layer"),
        ({"class_path": "LoRA", "init_args": {"rank": -1}}, "tuning.rank is -1: give 1 or more"),
        ({"class_path": "LoRA", "init_args": {"quantize": "nf4"}}, "needs a CUDA device"),
        ({"class_path": "Full", "init_args": {"layer_decay": 0}}, "tuning.layer_decay is 0"),
    ],
)
def test_mistakes(change: Any, said: str, runs: Path, files: Path, tmp_path: Path) -> None:
    options = finetune(tmp_path / "run", runs / "base", files) | {"model.tuning": change}
    run = call(words("fit", options))
    assert run.code == 2
    assert len(run.errors) == 1
    assert said in run.errors[0]
