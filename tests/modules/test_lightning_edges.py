"""Lightning 2.6.6's faults: each work-around through a Trainer, in a test that fails without it."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from ranks import tiny

from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import load_checkpoint
from ptft_lightning.modules import lightning_edges, phase
from ptft_lightning.modules.checkpoints import Checkpoints, last_checkpoint, list_checkpoints
from ptft_lightning.modules.csv_metrics import CsvMetrics
from ptft_lightning.modules.lightning_edges import AtomicCheckpointIO
from ptft_lightning.modules.optimizers import OptimizerConfig
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedLM

GLOBAL = 6
STEADY = OptimizerConfig(schedule="constant", warmup=0)  # a shorter run has the same rates


@pytest.fixture
def data(store: Path, bpe_path: Path) -> Any:
    def make(micro: int = GLOBAL, **changes: Any) -> CorpusDataModule:
        sizes = {"global_batch_size": GLOBAL, "micro_batch_size": micro}
        return tiny.corpus(store, bpe_path, **sizes, **changes)

    return make


class Consumed(L.Callback):
    """The samples behind each optimizer step."""

    def __init__(self) -> None:
        self.pending: list[int] = []
        self.steps: list[list[int]] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.pending += batch.samples.tolist()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.steps.append(sorted(self.pending))
        self.pending = []


def interrupted(
    data: Any, file: Path, before: int, after: int, stop: int = 3
) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
    """Five steps, saved after `stop` in micro-batches of `before`, resumed in those of `after`."""
    seen, module = Consumed(), tiny.pretrain(MaskedLM(0.3), optimizer=STEADY)
    tiny.fit(module, data(before), steps=stop, callbacks=[seen]).save_checkpoint(file)
    module = tiny.pretrain(MaskedLM(0.3), optimizer=STEADY)
    tiny.fit(module, data(after), steps=5, ckpt_path=file, callbacks=[seen])
    return seen.steps, tiny.parameters(module)


@pytest.mark.parametrize(("before", "after"), [(3, 6), (6, 3), (3, 2), (3, 3)])
def test_accumulation_may_change_on_resume(
    before: int, after: int, data: Any, tmp_path: Path
) -> None:
    seen, module = Consumed(), tiny.pretrain(MaskedLM(0.3), optimizer=STEADY)
    tiny.fit(module, data(), steps=5, callbacks=[seen])
    steps, values = interrupted(data, tmp_path / "x.ckpt", before, after)
    assert [len(step) for step in seen.steps] == [GLOBAL] * 5
    assert steps == seen.steps
    for name, value in tiny.parameters(module).items():
        torch.testing.assert_close(values[name], value, atol=1e-5, rtol=1e-4)


def test_lightning_alone_would_split_a_step(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this fails, Lightning is mended and `correct_batch_progress` can go."""
    monkeypatch.setattr(phase, "correct_batch_progress", lambda *_: None)
    steps, _ = interrupted(data, tmp_path / "x.ckpt", before=6, after=3)
    assert [len(step) for step in steps] != [GLOBAL] * 5


def test_dropout_goes_on_exactly(data: Any, tmp_path: Path) -> None:
    """Lightning saves no random state: without re-seeding a resume draws other masks."""
    results = []
    for stop in (None, 2):
        file = None
        if stop is not None:
            module = tiny.pretrain(CausalLM(), optimizer=STEADY, shape={"dropout": 0.3})
            tiny.fit(module, data(3), steps=stop).save_checkpoint(file := tmp_path / "x.ckpt")
            torch.manual_seed(99)
        module = tiny.pretrain(CausalLM(), optimizer=STEADY, shape={"dropout": 0.3})
        tiny.fit(module, data(3), steps=4, ckpt_path=file)
        results.append(tiny.parameters(module))
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value), name


def test_micro_batches_of_a_step_draw_different_dropout(data: Any) -> None:
    draws = []

    class Draw(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            draws.append(torch.rand(1).item())

    tiny.fit(tiny.pretrain(CausalLM()), data(3), steps=3, callbacks=[Draw()])
    assert len(set(draws)) == len(draws) == 6


class AfterClipping(L.Callback):
    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_with_a_fused_optimizer(precision: str, data: Any, tmp_path: Path) -> None:
    """pytorch-lightning#21435: refused in mixed precision."""
    seen, logger = AfterClipping(), CsvMetrics(tmp_path / "metrics.csv")
    module = tiny.pretrain(CausalLM())
    settings = {"precision": precision, "gradient_clip_val": 0.01, "logger": logger}
    trainer = tiny.fit(module, data(), steps=2, callbacks=[seen], **settings)
    assert trainer.optimizers[0].defaults["fused"] is True
    assert seen.norms == pytest.approx([0.01, 0.01], rel=1e-3)
    with open(tmp_path / "metrics.csv", newline="") as stream:
        logged = [float(row["grad_norm"]) for row in csv.DictReader(stream)]
    assert len(logged) == 2
    assert min(logged) > 0.1  # before clipping


def test_norm_is_logged_without_clipping(data: Any) -> None:
    seen, module = AfterClipping(), tiny.pretrain(CausalLM())
    tiny.fit(module, data(), steps=1, callbacks=[seen])
    assert module.train_values["grad_norm"] == pytest.approx(seen.norms[0])


def test_clipping_by_value_is_refused(data: Any) -> None:
    clipping = {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}
    with pytest.raises(UserError, match="gradient_clip_algorithm: only 'norm'"):
        tiny.fit(tiny.pretrain(CausalLM()), data(), steps=1, **clipping)


def test_a_gradient_scaler_gets_an_unfused_optimizer(
    data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused form unscales inside its step, after clipping."""
    module = tiny.pretrain(CausalLM())
    tiny.fit(module, data(), steps=1)
    monkeypatch.setattr(L.Trainer, "precision", "16-mixed")
    assert not module.configure_optimizers().defaults["fused"]


def test_the_config_decides_the_rate_of_a_resumed_run(data: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    slow = OptimizerConfig(lr=1e-4, schedule="constant", warmup=0)
    tiny.fit(tiny.pretrain(CausalLM(), optimizer=slow), data(), steps=2).save_checkpoint(file)
    fast = OptimizerConfig(lr=1e-2, schedule="constant", warmup=0, weight_decay=0.5)
    module = tiny.pretrain(CausalLM(), optimizer=fast)
    trainer = tiny.fit(module, data(), steps=3, ckpt_path=file)
    assert module.train_values["lr"] == 1e-2
    assert [g["weight_decay"] for g in trainer.optimizers[0].param_groups] == [0.5, 0.0]


# Checkpoints whole or not at all (pytorch-lightning#21253).


def half_save(then: Any) -> Any:
    """A torch.save that stops in the middle."""

    def save(content: Any, stream: Any) -> None:
        stream.write(b"PK half a checkpoint")
        stream.flush()
        then()

    return save


def full_disk() -> None:
    raise OSError(28, "No space left on device")


def test_an_error_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep" / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, file)
    monkeypatch.setattr(lightning_edges.torch, "save", half_save(full_disk))
    for target in (file, file.with_name("y.ckpt")):
        with pytest.raises(OSError, match="No space"):
            AtomicCheckpointIO().save_checkpoint({"step": 2}, target)
    assert torch.load(file, weights_only=True) == {"step": 1}
    assert [p.name for p in file.parent.iterdir()] == ["x.ckpt"]


def test_a_kill_leaves_the_earlier_file(tmp_path: Path) -> None:
    file, other = tmp_path / "x.ckpt", tmp_path / "y.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, file)
    for target in (file, other):
        child = os.fork()
        if not child:
            lightning_edges.torch.save = half_save(lambda: os.kill(os.getpid(), signal.SIGKILL))
            AtomicCheckpointIO().save_checkpoint({"step": 2}, target)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert torch.load(file, weights_only=True) == {"step": 1}
    assert not other.exists()


def test_a_full_disk_leaves_the_run_its_last_checkpoint(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(every_n_steps=1)
    checkpoints.run_dir = tmp_path
    saves = []
    real = torch.save

    def second_fails(content: Any, stream: Any) -> None:
        saves.append(1)
        half_save(full_disk)(content, stream) if len(saves) == 2 else real(content, stream)

    monkeypatch.setattr(lightning_edges.torch, "save", second_fails)
    with pytest.raises(OSError, match="No space"):
        tiny.fit(
            tiny.pretrain(CausalLM()),
            data(),
            steps=3,
            callbacks=[checkpoints],
            plugins=[AtomicCheckpointIO()],
        )
    (whole,) = list_checkpoints(checkpoints.directory)
    assert last_checkpoint(checkpoints.directory) == whole
    assert load_checkpoint(whole)["global_step"] == 1
