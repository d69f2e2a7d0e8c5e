"""Options of Lightning's trainer: our defaults, what this program does not take, what is slow."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError

CPU_FACTS = Path("/proc/cpuinfo")

TRAINER_DEFAULTS = {
    "max_epochs": -1,
    "gradient_clip_val": 1.0,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 20,
    "use_distributed_sampler": False,  # the data modules share samples out themselves
    "enable_checkpointing": False,  # Checkpoints does it
    "enable_progress_bar": False,  # TrainingProgress does it
    "enable_model_summary": False,
}


def refuse_unsupported(trainer: Namespace) -> None:
    """What Lightning takes and this program does not.

    Raises:
        UserError: naming the option and what to give instead.
    """
    interval, clip = trainer.val_check_interval, trainer.gradient_clip_val
    counted = interval is None or isinstance(interval, (int, float))
    limit = trainer.limit_train_batches
    refusals = (
        (
            "strategy",
            trainer.strategy in ("fsdp", "fsdp_cpu_offload"),
            "sharding here is FSDP2, add --config configs/trainer/fsdp.yaml instead",
        ),
        (
            "val_check_interval",
            not counted or (interval is not None and interval <= 0),
            "give a number of optimizer steps, or a share of an epoch above 0",
        ),
        ("gradient_clip_val", (clip or 0) < 0, "give a norm above 0, or 0 to clip nothing"),
        (
            "gradient_clip_algorithm",
            trainer.gradient_clip_algorithm not in (None, "norm"),
            "only 'norm' is supported",
        ),
        (
            "limit_train_batches",
            not (limit is None or (isinstance(limit, float) and limit == 1)),
            "give trainer.max_steps instead, or data.train_examples",
        ),
        (
            "check_val_every_n_epoch",
            trainer.check_val_every_n_epoch not in (None, 1),
            "give trainer.val_check_interval, in optimizer steps",
        ),
        (
            "max_time",
            trainer.max_time is not None,
            "let the scheduler send SIGUSR1 before its limit (`timeout -s USR1 3h` does so, too): "
            "the run saves, and goes on with --ckpt_path last",
        ),
        ("overfit_batches", trainer.overfit_batches != 0, "use `ptft_lightning check` instead"),
    )
    for name, refused, fix in refusals:
        if refused:
            raise UserError(f"trainer.{name} is {trainer[name]!r}: {fix}")


def refuse_launch(trainer: L.Trainer) -> None:
    """Refuse processes that are fewer than the config says, and peers that nobody would start.

    Raises:
        UserError: with what to start them by.
    """
    devices, nodes = trainer.num_devices, trainer.num_nodes
    # Under SLURM, Lightning 2.6.6 silently trains with the tasks there are.
    if trainer.world_size < devices * nodes:
        raise UserError(
            f"trainer.devices x trainer.num_nodes is {devices * nodes}, this job has "
            f"{trainer.world_size} processes: give srun --ntasks-per-node {devices}"
        )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    # By itself it starts processes on this machine alone, which would wait for the others' peers.
    alone = isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ
    if nodes > 1 and alone:
        raise UserError(
            f"trainer.num_nodes is {nodes}, and nothing tells the machines of each other: start "
            "this on each of them with torchrun or srun, as docs/clusters.md shows"
        )


def tell_slow_precision(trainer: L.Trainer) -> None:
    """bfloat16 is imitated by processors without it, tens of times slower than float32."""
    on_cpu = trainer.strategy.root_device.type == "cpu"
    known = platform.machine() == "x86_64" and CPU_FACTS.is_file()
    if not (on_cpu and known and str(trainer.precision).startswith("bf16")):
        return
    if not {"avx512_bf16", "amx_bf16"}.intersection(CPU_FACTS.read_text().split()):
        say(
            f"trainer.precision is {trainer.precision}, and this processor does not compute in "
            "bfloat16: --trainer.precision 32-true will be much faster"
        )
