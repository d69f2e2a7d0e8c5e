"""Recurrent backbones through both phases, by the command line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.files_tagging import write_tagged
from faults.kit import (
    assert_same_weights,
    call,
    done,
    finetune,
    pretrain,
    read_json_lines,
    read_metrics,
    weights,
    words,
    write_examples,
)

from ptft_lightning.generation.beams import search_beams
from ptft_lightning.generation.continuing import continue_prompts
from ptft_lightning.generation.growth import Limits
from ptft_lightning.generation.model import LanguageModel
from ptft_lightning.generation.sampling import Sampling
from ptft_lightning.modules.loading import load_pretrained

SMALL = {"dim": 32, "depth": 2, "max_length": 32, "dropout": 0.1}
FILTERS = {"input": "characters", "filters": [[1, 8], [2, 8], [3, 16]], "max_characters": 12}
BACKBONES: dict[str, dict[str, Any]] = {
    "BidirectionalLM": SMALL | FILTERS | {"hidden_dim": 24},
    "CausalLM": SMALL | {"causal": True, "tie_embeddings": True},
    "MaskedLM": SMALL | {"cell": "gru"},
}
objectives = pytest.mark.parametrize("objective", BACKBONES)


def options(objective: str, run_dir: Path, store: Path, bpe: Path, **more: Any) -> dict[str, Any]:
    backbone = {"class_path": "LSTMConfig", "init_args": BACKBONES[objective]}
    steep = {"model__optimizer": {"lr": 2e-2, "schedule": "constant", "warmup": 0}}
    given = {"model__objective": objective, "model__backbone": backbone, **steep, **more}
    return pretrain(run_dir, store, bpe, **given)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("runs")
    for objective in BACKBONES:
        done(words("fit", options(objective, at / objective, store, bpe_path)))
    return {objective: at / objective for objective in BACKBONES}


@pytest.fixture(scope="module")
def elmo(runs: dict[str, Path]) -> Path:
    return runs["BidirectionalLM"]


@objectives
def test_phase_one_learns_and_resumes_to_the_same_bits(
    objective: str, runs: dict[str, Path], store: Path, bpe_path: Path, tmp_path: Path
) -> None:
    rows = read_metrics(runs[objective])
    losses = [float(row["train_loss"]) for row in rows if row.get("train_loss")]
    assert losses[-1] < losses[0] - 0.05
    given = options(objective, tmp_path / "run", store, bpe_path)
    done(words("fit", given | {"trainer.max_steps": 5}))
    done(words("fit", given | {"ckpt_path": "last"}))
    assert_same_weights(runs[objective], tmp_path / "run")
    assert read_metrics(tmp_path / "run") == rows


def test_both_directions_are_told_apart(elmo: Path, runs: dict[str, Path]) -> None:
    row, causal = (
        next(row for row in read_metrics(run) if row.get("val_loss"))
        for run in (elmo, runs["CausalLM"])
    )
    forward, backward = float(row["val_forward_loss"]), float(row["val_backward_loss"])
    assert float(row["val_loss"]) == pytest.approx(forward + backward, rel=1e-5)
    assert float(row["val_perplexity"]) == pytest.approx(math.exp(forward), rel=1e-4)
    rate = float(causal["val_bits_per_byte"]) / float(causal["val_loss"])  # the same text
    assert float(row["val_bits_per_byte"]) == pytest.approx(forward * rate, rel=1e-5)
    assert {"val_forward_accuracy", "val_backward_accuracy"} <= row.keys()
    assert not (elmo / "samples.jsonl").exists()
    names = weights(elmo)
    assert names["head.projection.weight"].shape == (
        weights(elmo)["head.projection.bias"].numel(),
        16,
    )
    assert not any("table" in name for name in names)


def test_layers_computed_again_change_nothing(
    elmo: Path, store: Path, bpe_path: Path, tmp_path: Path
) -> None:
    more = {"model__activation_checkpointing": True}
    done(words("fit", options("BidirectionalLM", tmp_path / "run", store, bpe_path, **more)))
    assert_same_weights(elmo, tmp_path / "run")


TUNINGS: dict[str, dict[str, Any]] = {
    "full": {"model.tuning.class_path": "Full", "model.tuning.init_args.layer_decay": 0.9},
    "mix": {"model.tuning": "Frozen", "model.tuning.mix": True, "model.tuning.cache": True},
    "bitfit": {"model.tuning": "BitFit"},
    "prompt": {"model.tuning": "PromptTuning", "model.tuning.init": "random"},
}


@pytest.mark.parametrize("name", TUNINGS)
def test_phase_two_and_its_bundle_alone(name: str, elmo: Path, files: Path, tmp_path: Path) -> None:
    """The fit ends by proving that the bundle gives its validation metrics; moved, it predicts."""
    more = {"trainer__max_epochs": 2, "model__optimizer__lr": 3e-2}
    given = finetune(tmp_path / "run", elmo, files, **more) | TUNINGS[name]
    if name == "prompt":
        given["model.tuning.length"] = 4
    said = done(words("fit", given)).err
    assert "the bundle gives val_accuracy" in said
    shutil.copytree(tmp_path / "run" / "bundle", tmp_path / "moved")
    test = str(files / "test.jsonl")
    measured = []
    for at in (tmp_path / "run", tmp_path / "moved"):
        more = {"run_dir": str(at), "model.base": None if name == "full" else str(elmo)}
        measured.append(json.loads(done(words("test", more | {"data.test": test})).out))
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)
    given = {"run_dir": str(tmp_path / "moved"), "data.predict": test}
    given |= {"output": str(tmp_path / "out.jsonl"), "model.base": more["model.base"]}
    done(words("predict", given))
    assert len(read_json_lines((tmp_path / "out.jsonl").read_text())) == 23


@pytest.mark.parametrize("objective", ["BidirectionalLM", "MaskedLM"])
def test_what_trains(objective: str, runs: dict[str, Path], files: Path, tmp_path: Path) -> None:
    base = weights(runs[objective])
    given = finetune(tmp_path / "run", runs[objective], files, trainer__max_epochs=1)
    done(words("fit", given | {"model.tuning": "BitFit"}))
    trained = weights(tmp_path / "run")
    moved = {n for n in trained if n in base and not torch.equal(trained[n], base[n])}
    assert any("bias_hh" in n for n in moved)
    assert all("bias" in n for n in moved if n.startswith("backbone."))


def test_tagging(runs: dict[str, Path], tmp_path: Path) -> None:
    file = write_tagged(tmp_path)
    given = finetune(tmp_path / "run", runs["BidirectionalLM"], tmp_path, trainer__max_epochs=1)
    given |= {"model.task": "Tagging", **file}
    done(words("fit", given))
    assert "test_f1" in done(words("test", {"run_dir": str(tmp_path / "run")})).out


# Generation.


@pytest.fixture(scope="module")
def speaker(runs: dict[str, Path]) -> LanguageModel:
    net, bundle = load_pretrained(str(runs["CausalLM"]))
    return LanguageModel(net.backbone, net.head, bundle.tokenizer)


def steps_without_a_cache(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    """(n, V) log-probabilities after each of the tokens."""
    with torch.no_grad():
        logits = model.logits(model.backbone(torch.tensor([ids])))[0]
    return logits[:, : model.tokenizer.size].log_softmax(-1)


def test_greedy_text_is_that_of_reading_all_anew(speaker: LanguageModel) -> None:
    texts = ["The river", "a", "Green light and stone or letter"]
    prompts = speaker.tokenizer.encode(texts)
    found = continue_prompts(speaker, prompts, Sampling(temperature=0.0), Limits(12))
    for prompt, one in zip(prompts, found, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12:
            token = int(steps_without_a_cache(speaker, ids)[-1].argmax())
            if token == speaker.end:
                break
            ids.append(token)
        assert one.ids == ids[len(prompt) :]


def test_beams_have_the_scores_of_reading_all_anew(speaker: LanguageModel) -> None:
    prompts = speaker.tokenizer.encode(["The river", "a", "Green light and stone"])
    for prompt, own in zip(prompts, search_beams(speaker, prompts, 3, 6), strict=True):
        assert len(own) == 3
        for one in own:
            ids = [*one.ids, *([speaker.end] if one.ended else [])]
            steps = steps_without_a_cache(speaker, [*prompt, *ids])[len(prompt) - 1 : -1]
            total = steps[torch.arange(len(ids)), torch.tensor(ids)].sum()
            assert one.score == pytest.approx(float(total) / len(ids), rel=1e-4)


def test_the_commands_of_a_language_model(runs: dict[str, Path], files: Path) -> None:
    run = str(runs["CausalLM"])
    for how in ({}, {"beams": 3}):
        options = {"init_from": run, "prompt": "The river", "max_new_tokens": 5, **how}
        assert done(words("generate", options)).out.strip()
    scored = done(words("score", {"init_from": run, "text": "The river reads."}))
    assert "perplexity" in scored.out + scored.err


# Refusals: one sentence each.


def test_a_transformer_is_refused_by_the_bidirectional_objective(
    store: Path, bpe_path: Path, tmp_path: Path
) -> None:
    given = pretrain(tmp_path / "run", store, bpe_path, causal=False)
    run = call(words("fit", given | {"model.objective": "BidirectionalLM"}))
    assert run.code == 2
    (error,) = run.errors
    assert "class_path LSTMConfig" in error


@pytest.mark.parametrize(
    ("objective", "shape", "said"),
    [
        ("BidirectionalLM", {"causal": True}, "needs model.backbone.causal false"),
        ("CausalLM", {}, "needs model.backbone.causal true"),
        ("MaskedLM", {"tie_embeddings": True}, "the head reads 32; set it to false"),
    ],
)
def test_a_backbone_of_the_wrong_kind_is_refused(
    objective: str, shape: dict[str, Any], said: str, store: Path, bpe_path: Path, tmp_path: Path
) -> None:
    backbone = {"class_path": "LSTMConfig", "init_args": SMALL | shape}
    given = {"model__objective": objective, "model__backbone": backbone}
    run = call(words("fit", pretrain(tmp_path / "run", store, bpe_path, **given)))
    assert run.code == 2
    (error,) = run.errors
    assert said in error


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        ({"model.tuning": "PrefixTuning"}, "has no attention"),
        ({"model.tuning": "LoRA"}, "recurrent cells"),
        ({"model.tuning": "PromptTuning"}, "give random"),
    ],
)
def test_a_tuning_that_cannot_be_is_refused(
    tuning: dict[str, Any], said: str, elmo: Path, files: Path, tmp_path: Path
) -> None:
    run = call(words("fit", finetune(tmp_path / "run", elmo, files) | tuning))
    assert run.code == 2
    (error,) = run.errors
    assert said in error


@pytest.mark.parametrize("tuning", ["LoRA", "PrefixTuning"])
def test_what_a_backbone_cannot_do_is_said_before_anything_is_built(tuning, elmo, files, tmp_path):
    """With whatever else does not fit."""
    options = finetune(tmp_path / "run", elmo, files, model__tuning=tuning, data__max_length=999)
    run = call(words("fit", options))
    assert run.code == 2
    (error,) = run.errors
    assert f"model.tuning {tuning.removesuffix('Tuning').lower()}: it " in error
    assert "data.max_length is 999" in error


def test_a_tied_bundle_goes_on_with_its_own_objective_alone(store, bpe_path, tmp_path):
    """The fix that is named can be followed."""
    tied = {"class_path": "LSTMConfig", "init_args": SMALL | {"tie_embeddings": True}}
    first = pretrain(tmp_path / "first", store, bpe_path, model__objective="BidirectionalLM")
    first["trainer.max_steps"] = 1
    done(words("fit", first | {"model.backbone": tied}))
    options = first | {
        "run_dir": str(tmp_path / "next"),
        "model.init_from": str(tmp_path / "first"),
    }
    del options["model.backbone"]
    run = call(words("fit", options | {"model.objective": "MaskedLM"}))
    assert run.code == 2
    (error,) = run.errors
    assert "a bundle's stays: take the objective that it was made with" in error
    done(words("fit", options))


@pytest.mark.parametrize(
    ("objective", "command"),
    [
        ("BidirectionalLM", {"generate": {"prompt": "The river"}}),
        ("BidirectionalLM", {"score": {"text": "The river"}}),
        ("CausalLM", {"export": {"output": "there"}}),
    ],
)
def test_a_command_that_cannot_use_it_says_so(
    objective: str, command: dict[str, Any], runs: dict[str, Path]
) -> None:
    ((name, given),) = command.items()
    run = call(words(name, {"init_from": str(runs[objective]), **given}))
    assert run.code == 2
    (error,) = run.errors
    assert {"export": "only a transformer"}.get(
        name, "learnt 'bidirectional', which predicts no tokens"
    ) in error
