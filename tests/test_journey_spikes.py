"""Losses that jump: the run goes back, leaves the text out that did it, and says what that was."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.kit import call, done, finish, launch, pretrain, read_audit, read_metrics, words
from lightning.pytorch.callbacks import Callback

from ptft_lightning.data.manifest import read_manifest
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.modules.preempt import EXIT_CODE
from ptft_lightning.modules.spikes import set_aside

ROOT = Path(__file__).parent.parent
DDP = {"trainer.devices": 2, "config": str(ROOT / "configs" / "trainer" / "ddp.yaml")}
STEPS, POISONED = 60, 4  # shard POISONED holds nothing but noise


@pytest.fixture(scope="module")
def stores(bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same text twice; in one of them a shard in the middle is noise, ten steps of it."""
    at = tmp_path_factory.mktemp("spikes")
    line = "a green river sees the old stone and the winter letter under the wood "
    lines = [line + " ".join("abc"[i % 3] for i in range(k % 5)) for k in range(1200)]
    (at / "text.txt").write_text("\n\n".join(lines))
    found = {}
    for name in ("clean", "poisoned"):
        prepare_store([str(at / "text.txt")], bpe, at / name, validation_share=0, unit_bytes=6000)
        found[name] = at / name
    shard = read_manifest(found["poisoned"]).train[POISONED]
    (file,) = found["poisoned"].glob(f"{shard.name}*tokens*.npy")
    tokens = np.load(file)
    noise = np.random.default_rng(0).choice(bpe.ordinary, len(tokens)).astype(tokens.dtype)
    np.save(file, np.where(tokens == bpe.end, tokens, noise))
    return found


def fitting(run_dir: Path, store: Path, tokenizer: Path, **more: Any) -> dict[str, Any]:
    return pretrain(run_dir, store, tokenizer) | {
        "data.window": 1,
        "data.global_batch_size": 8,
        "data.micro_batch_size": 4,
        "trainer.max_steps": STEPS,
        "checkpoint.every_n_steps": 5,
        "checkpoint.keep": 9,
        "model.optimizer.lr": 1e-2,
        "spikes.every_n_steps": 4,
        "spikes.history": 12,
        "spikes.patience": 2,
        "spikes.threshold": 6.0,
        **{name.replace("__", "."): value for name, value in more.items()},
    }


class BreakOnce(Callback):
    """Weights that are no numbers, right before a step; once."""

    def __init__(self, step: int, note: str) -> None:
        self.step, self.note = step, Path(note)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step and not self.note.exists():
            self.note.touch()
            with torch.no_grad():
                next(pl_module.net.parameters()).fill_(float("nan"))


class TerminateAtSpike(Callback):
    """SIGTERM when the run is about to end for a spike."""

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        if trainer.should_stop:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def runs(stores, bpe_path, tmp_path_factory) -> dict[str, tuple[Path, str]]:
    """A run on each text."""
    at = tmp_path_factory.mktemp("runs")
    return {
        name: (at / name, done(words("fit", fitting(at / name, store, bpe_path))).err)
        for name, store in stores.items()
    }


def skips(run_dir: Path) -> list[dict[str, Any]]:
    return json.loads((run_dir / "skips.json").read_text())


def left_out(run_dir: Path) -> tuple[int, int]:
    """One stretch: the noise is left out by and by."""
    every = [skip["samples"] for skip in skips(run_dir)]
    assert all(end == begin for (_, end), (begin, _) in pairwise(every))
    return every[0][0], every[-1][1]


def test_clean_text_is_read_through(runs):
    run_dir, said = runs["clean"]
    assert "spike" not in said
    assert not (run_dir / "skips.json").exists()
    audit = read_audit(run_dir)
    assert [n for line in audit for n, _ in line["samples"]] == list(range(8 * STEPS))


def test_noise_is_left_out_and_named(runs, stores):
    run_dir, said = runs["poisoned"]
    last = skips(run_dir)[-1]
    assert f"samples {last['samples'][0]} to {last['samples'][1] - 1} are left out" in said
    audit = read_audit(run_dir)
    assert [line["step"] for line in audit] == list(range(STEPS))
    (told,) = [line for line in audit if "skipped" in line]
    assert told["step"] == last["step"]
    first, after = left_out(run_dir)
    assert told["skipped"] == [first, after]
    numbers = [n for line in audit for n, _ in line["samples"]]
    assert numbers == [n for n in range(numbers[-1] + 1) if not first <= n < after]
    # Before the noise the two runs are one; all of the noise was left out.
    assert audit[: last["step"]] == read_audit(runs["clean"][0])[: last["step"]]
    manifest = read_manifest(stores["poisoned"])
    ends = np.cumsum([shard.tokens // 32 for shard in manifest.train])
    assert first <= ends[POISONED - 1] + 3 * 8
    assert after >= ends[POISONED]
    segments = open_bundle(run_dir).lineage["segments"]
    assert segments[-1]["first_step"] == last["step"]
    assert segments[-1]["first_sample"] == after
    assert list((run_dir / "checkpoints").glob("spiked-*-step=*.ckpt"))


def test_the_noise_did_no_harm(runs):
    clean, poisoned = (
        np.mean([float(row["train_loss"]) for row in read_metrics(runs[name][0])[-8:]])
        for name in ("clean", "poisoned")
    )
    assert poisoned == pytest.approx(clean, rel=0.1)


def test_show_samples_prints_what_was_left_out(runs, stores):
    run_dir, _ = runs["poisoned"]
    first, after = left_out(run_dir)
    out = done(["show-samples", "--run_dir", run_dir, "--skipped", "true", "--limit", "400"]).out
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["sample"] for line in lines} >= set(range(first, after))
    assert {line["store"] for line in lines} == {str(stores["poisoned"])}
    for line in lines:  # one text over and over, but for the noise
        noise = line["shard"] == POISONED
        assert noise == bool(re.search("[^a-z ]", " ".join(line["texts"])))
    (one,) = done(
        ["show-samples", "--run_dir", run_dir, "--samples", f"[{first}]"]
    ).out.splitlines()
    assert json.loads(one) == next(line for line in lines if line["sample"] == first)
    refused = call(["show-samples", "--run_dir", runs["clean"][0], "--skipped", "true"])
    assert (refused.code, len(refused.errors)) == (2, 1)


def test_a_resume_goes_on_as_the_run_did(runs, stores, bpe_path, tmp_path):
    """Killed after it went back, the run still leaves the noise out."""
    options = fitting(tmp_path / "run", stores["poisoned"], bpe_path)
    done(words("fit", options | {"trainer.max_steps": 45}))
    for path in (tmp_path / "run" / "checkpoints").glob("step=*"):
        if path.name > "step=00000035.ckpt":  # as if killed before the next save
            path.unlink()
    run = done(words("fit", options | {"ckpt_path": "last"}))
    assert "spike" not in run.err
    assert read_audit(tmp_path / "run") == read_audit(runs["poisoned"][0])


def test_two_ranks_go_back_together(runs, stores, bpe_path, tmp_path):
    two = fitting(tmp_path / "two", stores["poisoned"], bpe_path) | DDP
    run = finish(launch(words("fit", two)), timeout=300)
    assert run.code == 0, run.err
    assert skips(tmp_path / "two") == skips(runs["poisoned"][0])
    assert read_audit(tmp_path / "two") == read_audit(runs["poisoned"][0])


def test_weights_that_are_no_numbers_are_left_behind(stores, bpe_path, tmp_path):
    options = fitting(tmp_path / "run", stores["clean"], bpe_path)
    more = {"trainer.max_steps": 24, "trainer.callbacks": [broken(13, tmp_path)]}
    run = done(words("fit", options | more))
    # At the save of step 15, before which losses are read, too.
    assert "loss spike at step 13, seen after step 15: going back to" in run.err
    audit = read_audit(tmp_path / "run")
    assert [n for line in audit for n, _ in line["samples"]] == [
        *range(8 * 11),
        *range(8 * 15, 8 * 28),
    ]
    assert all(np.isfinite(float(row["train_loss"])) for row in read_metrics(tmp_path / "run"))


def test_a_run_that_spikes_too_often_stops_with_what_it_has(stores, bpe_path, tmp_path):
    options = fitting(tmp_path / "run", stores["poisoned"], bpe_path, spikes__max_skips=1)
    run = call(words("fit", options))
    assert run.code == 1
    assert "1 stretches of text were left out already (spikes.max_skips)" in run.err
    assert not (tmp_path / "run" / "bundle").exists()
    # More of them are allowed: it goes on from what was saved.
    done(words("fit", options | {"ckpt_path": "last", "spikes.max_skips": 5}))
    assert (tmp_path / "run" / "bundle").is_dir()


def test_without_a_checkpoint_before_it_the_run_goes_on_or_stops(stores, bpe_path, tmp_path):
    """What has high losses may recover; what has no numbers will not."""
    late = {"checkpoint.every_n_steps": 50}
    options = fitting(tmp_path / "run", stores["poisoned"], bpe_path) | late
    run = done(words("fit", options))
    assert "there is no checkpoint from before it, so the run goes on" in run.err
    assert not (tmp_path / "run" / "skips.json").exists()
    options = fitting(tmp_path / "broken", stores["clean"], bpe_path) | late
    run = call(words("fit", options | {"trainer.callbacks": [broken(13, tmp_path)]}))
    assert run.code == 1
    assert "there is no checkpoint from before it to go back to" in run.err


def broken(step: int, at: Path) -> dict[str, Any]:
    """`BreakOnce` as an option."""
    return {
        "class_path": "test_journey_spikes.BreakOnce",
        "init_args": {"step": step, "note": str(at / "note")},
    }


def test_a_trial_leaves_the_run_s_skips_alone(runs, stores, bpe_path, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(runs["poisoned"][0], run_dir)

    def kept() -> dict[str, bytes]:
        files = [*run_dir.glob("checkpoints/*"), run_dir / "skips.json"]
        return {file.name: file.read_bytes() for file in files}

    before = kept()
    options = fitting(run_dir, stores["clean"], bpe_path) | {"trainer.fast_dev_run": 3}
    done(words("fit", options | {"trainer.callbacks": [broken(1, tmp_path)]}))
    assert kept() == before


def test_a_signal_at_the_spike_is_not_lost(stores, bpe_path, tmp_path):
    options = fitting(tmp_path / "run", stores["clean"], bpe_path) | {"trainer.max_steps": 24}
    parts = [broken(13, tmp_path), {"class_path": "test_journey_spikes.TerminateAtSpike"}]
    run = call(words("fit", options | {"trainer.callbacks": parts}))
    assert run.code == EXIT_CODE
    assert "going back to" in run.err
    done(words("fit", options | {"ckpt_path": "last"}))
    numbers = [n for line in read_audit(tmp_path / "run") for n, _ in line["samples"]]
    assert numbers == [*range(8 * 11), *range(8 * 15, 8 * 28)]


def test_checkpoints_set_aside_keep_those_set_aside_before(tmp_path):
    """Sharded ones are directories, with bundles beside them."""
    for _ in range(2):
        for step in (5, 10, 15):
            for name in (f"step={step:08d}.ckpt", f"step={step:08d}.ckpt.bundle"):
                (tmp_path / name).mkdir(exist_ok=True)
                (tmp_path / name / "file").touch()
        set_aside(tmp_path, 7, "spiked")
        assert [p.name for p in tmp_path.glob("step=*.ckpt")] == ["step=00000005.ckpt"]
    assert len(list(tmp_path.glob("spiked-*.ckpt"))) == 4
    assert len(list(tmp_path.glob("spiked-*.bundle"))) == 4


@pytest.mark.slow
def test_ten_clean_runs_raise_no_alarm(stores, bpe_path, tmp_path):
    """With the settings that a user gets."""
    for seed in range(10):
        options = pretrain(tmp_path / str(seed), stores["clean"], bpe_path, model__seed=seed)
        options |= {"data.seed": seed, "data.global_batch_size": 8, "trainer.max_steps": 120}
        run = done(words("fit", options | {"checkpoint.every_n_steps": 50}))
        assert "spike" not in run.err


@pytest.mark.parametrize("name", ["every_n_steps", "patience", "history"])
def test_mistakes_are_one_line(name, stores, bpe_path, tmp_path):
    options = fitting(tmp_path, stores["clean"], bpe_path) | {f"spikes.{name}": 0}
    refused = call(words("fit", options))
    assert refused.code == 2
    assert f"spikes.{name} is 0" in refused.err
