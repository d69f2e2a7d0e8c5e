"""Work-arounds for faults of Lightning 2.6.6, each named, each with a test that fails without it.

Others stand where they act: gradient clipping and re-seeding in phase.py, signals in preempt.py,
the checkpoint-over-config merge in commands/train.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from subprocess import Popen
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning_utilities.core.apply_func import apply_to_collection
from torch.distributed.device_mesh import DeviceMesh

from ptft_lightning.errors import UserError
from ptft_lightning.files import sync_directory


def correct_batch_progress(checkpoint: dict[str, Any], accumulation: int) -> None:
    """Count a restored run's batches in today's accumulation.

    Lightning 2.6.6 restores the number of micro-batches of the run that saved. When the
    accumulation has changed since (other ranks or micro-batch), it would step after part of a
    global batch. It restores that there were no more batches, too, and would begin an epoch.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    progress["is_last_batch"] = False
    batches = checkpoint["global_step"] * accumulation
    for key in ("total", "current"):
        counts = progress[key]
        lag = counts["ready"] - counts["completed"]
        counts.update(ready=batches, started=batches, processed=batches, completed=batches - lag)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place, sync it, rename it.

    Lightning 2.6.6 stages saves in the temporary directory and copies them: where that is another
    filesystem, a kill or a full disk leaves a truncated file under the final name
    (pytorch-lightning#21253). Its AsyncCheckpointIO cannot do
    anything once a checkpoint is written, as to give it its name.

    Args:
        asynchronous: Copy what is to be saved and write it in another thread; where that fails,
            the next `wait` does.
    """

    def __init__(self, asynchronous: bool = False) -> None:
        super().__init__()
        self.asynchronous, self.writer = asynchronous, ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """One of ours, without executing anything in it.

        Raises:
            UserError: it cannot be read, or another program wrote it.
        """
        try:
            checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location, True)
        except (RuntimeError, UnpicklingError) as error:
            what = str(error).splitlines()[0]
            raise UserError(f"--ckpt_path '{path}' cannot be loaded: {what}") from error
        if "loops" not in checkpoint:
            raise UserError(f"--ckpt_path '{path}' is no checkpoint of a run of this program")
        return checkpoint

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save `checkpoint` at `path`, whole or not at all."""
        if not self.asynchronous:
            self._write(checkpoint, Path(path))
            return
        self.wait()
        self.pending = self.writer.submit(self._write, copy_to_host(checkpoint), Path(path))

    def then(self, finish: Callable[[], object]) -> None:
        """Do something when the checkpoint is written."""
        if (written := self.pending) is None:
            finish()
            return

        def after() -> None:
            written.result()
            finish()

        self.pending = self.writer.submit(after)

    def wait(self) -> None:
        """Until the last checkpoint is written.

        Raises:
            OSError: it could not be.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def teardown(self) -> None:
        """End the thread; another one takes over if the trainer fits again."""
        self.writer.shutdown()
        self.writer = ThreadPoolExecutor(1)

    def _write(self, checkpoint: dict[str, Any], target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
            sync_directory(target.parent)
        except RuntimeError as error:
            # What the system said, such as that the disk is full, stands behind torch's complaint.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
        finally:
            temporary.unlink(missing_ok=True)


def copy_to_host(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A copy that training does not change any more."""
    return cast(
        "dict[str, Any]",
        apply_to_collection(checkpoint, torch.Tensor, lambda t: t.detach().to("cpu", copy=True)),
    )


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks.

    Lightning 2.6.6 by default shards over nodes alone and leaves a node's devices to tensor
    parallelism: without any, each device would train a model of its own, silently.

    Args:
        save_distributed_checkpoint: Each rank saves its own part, or rank 0 the whole.
    """

    def __init__(self, save_distributed_checkpoint: bool = True) -> None:
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint)

    def setup_environment(self) -> None:
        """Make a device mesh of all ranks."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()


def whole_mesh(strategy: ModelParallelStrategy, ranks: int) -> DeviceMesh:
    """The device mesh of all ranks.

    Raises:
        UserError: the strategy leaves some of them out.
    """
    mesh = strategy.device_mesh["data_parallel"]
    if mesh.size() != ranks:
        raise UserError(
            f"the strategy shards over {mesh.size()} of {ranks} ranks, the others would train "
            "apart: use configs/trainer/fsdp.yaml"
        )
    return mesh


StrategyRegistry.register("fsdp2", ShardedStrategy, description="FSDP2 over all ranks")


def started_ranks(trainer: L.Trainer, before: list[Popen[bytes]]) -> list[Popen[bytes]]:
    """The ranks that this process started: for this fit, or `before` for one that it goes on from,
    since Lightning 2.6.6 starts none where LOCAL_RANK is set, as it is by then."""
    launcher = trainer.strategy.launcher
    return launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else before
