"""Faults of Lightning 2.6.6's command line and trainer, each worked around in commands/train.py."""

from __future__ import annotations

from pathlib import Path

import torch
from faults.kit import call, done, pretrain, read_metrics, words


def test_a_checkpoint_s_hyperparameters_do_not_override_the_command_line(
    store: Path, bpe_path: Path, tmp_path: Path
):
    """They would silently win over flags and files (pytorch-lightning#21455)."""
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__max_steps=2)
    done(words("fit", options))
    file = tmp_path / "run" / "checkpoints" / "step=00000002.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    theirs = {"optimizer": {"lr": 0.77, "schedule": "constant", "warmup": 0.0}}
    theirs["_class_path"] = "ptft_lightning.modules.pretrain.PretrainModule"
    torch.save(checkpoint | {"hyper_parameters": theirs}, file)
    mine = {"model.optimizer": {"lr": 0.0123, "schedule": "constant", "warmup": 0.0}}
    more = {"ckpt_path": str(file), "trainer.max_steps": 3}
    done(words("fit", options | mine | more))
    assert read_metrics(tmp_path / "run")[-1]["lr"] == "0.0123"


def test_slurm_with_fewer_tasks_than_devices_is_refused(
    store: Path, bpe_path: Path, tmp_path: Path
):
    """It would silently train on the tasks there are."""
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__devices=2)
    job = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train"}
    job |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    run = call(words("fit", options | {"trainer.strategy": "ddp"}), **job)
    assert run.code == 2
    assert run.errors == [
        "error: trainer.devices x trainer.num_nodes is 2, this job has 1 processes: give srun "
        "--ntasks-per-node 2"
    ]
