"""What a run tells: metrics.csv, Weights & Biases, other loggers, progress on the terminal."""

from __future__ import annotations

import csv
import json
import math
import os
import pty
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from faults.kit import (
    BACKBONE,
    TESTS,
    done,
    finetune,
    finish,
    launch,
    pretrain,
    read_metrics,
    wandb_records,
    weights,
    words,
    write_examples,
)

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.commands import trainer_options
from ptft_lightning.data.plan import held_out
from ptft_lightning.data.tokenizer import Tokenizer

BOTH = {
    *("step", "train_loss", "train_accuracy", "train_perplexity", "lr", "grad_norm", "samples"),
    *("tokens", "padding_waste", "val_loss", "val_accuracy", "val_perplexity"),
}
SHARE = 0.2


@pytest.fixture(scope="module", params=["causal", "masked"])
def run_dir(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    store: Path,
    bpe_path: Path,
) -> Path:
    """A phase-one run of 8 steps, validated after 6."""
    at = tmp_path_factory.mktemp(request.param) / "run"
    done(words("fit", pretrain(at, store, bpe_path, causal=request.param == "causal")))
    return at


# metrics.csv.


def test_phase_one_s_columns(run_dir):
    rows = read_metrics(run_dir)
    causal = run_dir.parent.name.startswith("causal")
    per_byte = {"train_bits_per_byte", "val_bits_per_byte"} if causal else set()
    assert set(rows[0]) == BOTH | per_byte
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 9)]
    assert [row["samples"] for row in rows] == [str(6 * step) for step in range(1, 9)]
    assert [row["step"] for row in rows if row["val_loss"]] == ["6"]
    for row in rows:
        assert all(row[name] for name in row if not name.startswith("val_"))
        assert float(row["train_perplexity"]) == pytest.approx(
            math.exp(float(row["train_loss"])), rel=1e-5
        )
    with open(run_dir / "metrics.csv", newline="") as stream:
        clocks = [float(row["tokens_per_s"]) for row in csv.DictReader(stream)]
    assert min(clocks) > 0


def test_tokens_and_padding_waste_are_counted(run_dir, store):
    """Two micro-batches of 4 rows for 6 samples: a quarter is padding, beside the shards' ends."""
    shards = json.loads((store / "manifest.json").read_text())["train"]
    rows = read_metrics(run_dir)
    total = 0
    for row, before in zip(rows, [0, *(float(r["tokens"]) for r in rows)], strict=False):
        total = float(row["tokens"])
        assert float(row["padding_waste"]) == pytest.approx(1 - (total - before) / (8 * 32))
    short = sum(-shard["tokens"] % 32 for shard in shards)  # at most, in the shards' last rows
    assert 8 * 6 * 32 - short <= total <= 8 * 6 * 32


def test_phase_two_s_columns(run_dir, tmp_path):
    options = finetune(tmp_path / "run", run_dir, write_examples(tmp_path), trainer__max_epochs=1)
    done(words("fit", options))
    rows = read_metrics(tmp_path / "run")
    assert set(rows[0]) == {
        *("step", "train_loss", "lr", "grad_norm", "samples", "tokens", "padding_waste"),
        *("val_loss", "val_accuracy", "val_macro_f1", "val_mcc"),
    }
    assert [row["samples"] for row in rows] == ["14", "28", "42", "56", "60"]
    assert [row["step"] for row in rows if row["val_accuracy"]] == ["5"]


def test_rows_are_means_over_the_steps_between(store, bpe_path, tmp_path):
    every = read_metrics_of(tmp_path / "one", store, bpe_path, 1)
    third = read_metrics_of(tmp_path / "three", store, bpe_path, 3)
    assert [row["step"] for row in third] == ["3", "6"]
    for row in third:
        last = int(row["step"])
        parts = [float(r["train_accuracy"]) for r in every[last - 3 : last]]
        # All micro-batches of this run have about as many targets.
        assert float(row["train_accuracy"]) == pytest.approx(np.mean(parts), abs=5e-3)
        assert row["tokens"] == every[last - 1]["tokens"]


def read_metrics_of(run_dir: Path, store: Path, tokenizer: Path, every: int) -> list[Any]:
    options = pretrain(run_dir, store, tokenizer, trainer__log_every_n_steps=every)
    done(words("fit", options | {"trainer.max_steps": 6}))
    return read_metrics(run_dir)


def test_a_resumed_run_keeps_earlier_rows_and_repeats_none(store, bpe_path, tmp_path):
    """The steps after the checkpoint are done again; their old rows go."""
    options = pretrain(tmp_path / "run", store, bpe_path, checkpoint__keep=9)
    done(words("fit", options))
    before = read_metrics(tmp_path / "run")
    middle = tmp_path / "run" / "checkpoints" / "step=00000003.ckpt"
    done(words("fit", options | {"ckpt_path": str(middle), "trainer.max_steps": 5}))
    after = read_metrics(tmp_path / "run")
    assert [row["step"] for row in after] == ["1", "2", "3", "4", "5"]
    assert after[:3] == before[:3]


# Loss and bits-per-byte against a slow recomputation.


@pytest.fixture(scope="module")
def short_documents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A corpus whose documents all fit into a row, and those of its held-out part."""
    rng = random.Random(1)
    letters = ["river", "stone", "été", "模型", "green", "letter"]
    texts = [f"{number} " + " ".join(rng.choices(letters, k=3)) for number in range(200)]
    file = tmp_path_factory.mktemp("short") / "short.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file, [text for text in texts if held_out(text, SHARE)]


@pytest.fixture(scope="module")
def short_run(
    tmp_path_factory: pytest.TempPathFactory,
    short_documents: tuple[Path, list[str]],
    bpe_path: Path,
) -> Path:
    file, _ = short_documents
    at = tmp_path_factory.mktemp("short_run")
    options = pretrain(at / "run", at / "store", bpe_path, data__files=[str(file)])
    more = {"data.layout": "documents", "data.validation_share": SHARE}
    done(words("fit", options | more | {"trainer.max_steps": 4, "trainer.val_check_interval": 4}))
    return at / "run"


def negative_log_likelihoods(run_dir: Path, tokenizer: Tokenizer, texts: list[str]) -> list[float]:
    """Of every token but the first, one document at a time, in float64, without packing."""
    backbone = Transformer(TransformerConfig(**{**BACKBONE, "causal": True}), tokenizer.size)
    state = {k.removeprefix("backbone."): v for k, v in weights(run_dir).items()}
    backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")})
    backbone = backbone.double().eval()
    losses: list[float] = []
    for ids in tokenizer.encode(texts):
        row = torch.tensor([tokenizer.frame(ids)])
        logits = backbone(row)[0, :-1] @ backbone.embedding.weight.T
        losses += F.cross_entropy(logits, row[0, 1:], reduction="none").tolist()
    return losses


def test_loss_and_bits_per_byte_are_right(short_run, short_documents, bpe):
    _, texts = short_documents
    assert len(texts) > 20
    with torch.no_grad():
        losses = negative_log_likelihoods(short_run, bpe, texts)
    row = read_metrics(short_run)[-1]
    assert float(row["val_loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    text_bytes = sum(len(text.encode()) for text in texts)
    bits = sum(losses) / math.log(2) / text_bytes
    assert float(row["val_bits_per_byte"]) == pytest.approx(bits, rel=1e-5)


# Weights & Biases.


def recorded(file: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, float]]]:
    """What an offline run says of itself, its config and its history; it tells once of its end."""
    records = wandb_records(file)
    (about,) = (record["run"] for record in records if record["type"] == "run")
    alerts = [record["alert"]["title"] for record in records if record["type"] == "alert"]
    assert alerts == ["run finished"]
    config: dict[str, Any] = {}
    for record in records:
        config |= record.get("config", {}).get("update", {})
    return about, config, [r["history"]["item"] for r in records if r["type"] == "history"]


def test_wandb_offline_by_default_one_run_across_ranks_and_resumes(store, bpe_path, tmp_path):
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__max_steps=3)
    anywhere = {"WANDB_MODE": None, "WANDB_API_KEY": None, "HOME": str(tmp_path)}
    ranks = {"trainer.devices": 2, "trainer.strategy": "ddp"}
    more = {"ckpt_path": "last", "trainer.max_steps": 5}
    for part in (options | ranks, options | more):
        run = finish(launch(words("fit", part), **anywhere))
        assert run.code == 0, run.err
    ident = (tmp_path / "run" / "wandb_id").read_text().strip()
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{ident}.wandb"] * 2, "one a command, one id"
    (about, config, first), (again, _, second) = map(recorded, files)
    for one in (about, again):
        assert (one["run_id"], one["run_group"], one["job_type"]) == (ident, ident, "pretrain")
    assert int(config["config"]["trainer"]["devices"]) == 2
    assert config["config"]["data"]["init_args"]["global_batch_size"] == 6
    assert config["config"]["model"]["init_args"]["backbone"]["init_args"]["dropout"] == 0.1
    policy = {k: v for k, v in config["config"]["checkpoint"].items() if v}
    assert policy == {"every_n_steps": 3, "keep": 2}
    logged = [[row["trainer/global_step"] for row in part] for part in (first, second)]
    assert logged == [[1, 2, 3], [4, 5]]
    rows = read_metrics(tmp_path / "run")
    losses = [row["train_loss"] for row in (*first, *second)]
    assert losses == pytest.approx([float(row["train_loss"]) for row in rows], rel=1e-6)


def test_another_logger_in_its_place(store, bpe_path, tmp_path):
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "other")}}
    logger["class_path"] = "lightning.pytorch.loggers.CSVLogger"
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__logger=logger)
    done(words("fit", options), WANDB_MODE="offline")
    (file,) = (tmp_path / "other").rglob("metrics.csv")
    with open(file, newline="") as stream:
        theirs = [row for row in csv.DictReader(stream) if row["train_loss"]]
    ours = read_metrics(tmp_path / "run")
    assert [row["step"] for row in theirs] == [row["step"] for row in ours]
    assert [float(r["train_loss"]) for r in theirs] == pytest.approx(
        [float(r["train_loss"]) for r in ours], rel=1e-6
    )
    assert not (tmp_path / "run" / "wandb").exists()


def test_no_logger_but_metrics_csv(store, bpe_path, tmp_path):
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__logger=False)
    done(words("fit", options | {"trainer.max_steps": 2}), WANDB_MODE="offline")
    assert len(read_metrics(tmp_path / "run")) == 2
    assert not (tmp_path / "run" / "wandb").exists()


# Progress.


def test_plain_lines_where_there_is_no_terminal(store, bpe_path, tmp_path):
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__log_every_n_steps=4)
    lines = done(words("fit", options)).err.splitlines()
    assert "training: steps 0 to 8" in lines
    steps = [line for line in lines if line.startswith(("step 4/8: ", "step 8/8: "))]
    assert len(steps) == 2
    for line in steps:
        for part in ("loss ", "bits_per_byte ", "lr ", "grad_norm ", " tokens/s, ", " s left"):
            assert part in line
    assert [line for line in lines if line.startswith("step 6: val_loss ")]
    assert lines[-1] == f"done: {tmp_path / 'run' / 'bundle'}"
    assert not [line for line in lines if "\x1b" in line]


def test_a_bar_in_a_terminal(corpus_file, bpe_path, tmp_path):
    """The commands with a bar, each with a terminal for its messages."""
    store = tmp_path / "store"
    prepare = {"files": [str(corpus_file)], "tokenizer": str(bpe_path), "output": str(store)}
    assert "\x1b[" in in_terminal(words("prepare", prepare))
    shown = in_terminal(words("fit", pretrain(tmp_path / "run", store, bpe_path)))
    assert "\x1b[" in shown
    assert "8/8" in shown
    assert "val_loss" in shown
    assert f"done: {tmp_path.name}" not in shown
    assert len(read_metrics(tmp_path / "run")) == 8


def in_terminal(args: list[str]) -> str:
    """What a command shows in a terminal of its own; it must succeed."""
    mine, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    environment |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "ptft_lightning", *args]
    process = subprocess.Popen(command, stdout=its, stderr=its, env=environment)
    os.close(its)
    shown = b""
    while True:
        try:
            part = os.read(mine, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(mine)
    assert process.wait(60) == 0, shown.decode()
    return shown.decode()


@pytest.mark.parametrize(
    ("flags", "precision", "told"),
    [
        ("avx2", "bf16-mixed", True),
        ("avx2 avx512_bf16", "bf16-mixed", False),
        ("avx2", "32-true", False),
    ],
)
def test_imitated_bfloat16_is_told(flags, precision, told, store, bpe_path, tmp_path, monkeypatch):
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"flags\t: fpu {flags}\n")
    monkeypatch.setattr(trainer_options, "CPU_FACTS", facts)
    monkeypatch.setattr(trainer_options.platform, "machine", lambda: "x86_64")
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__max_steps=1)
    run = done(words("fit", options | {"trainer.precision": precision}))
    assert ("does not compute in bfloat16" in run.err) is told
