"""What both phases share: building the net, one step for train/validate/test, the optimizer."""

from __future__ import annotations

import time
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ptft_lightning.data.batch import Batch
from ptft_lightning.data.module import PhaseData
from ptft_lightning.data.sample_order import random_key
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import CHECKPOINT_KEY
from ptft_lightning.handoff.lineage import parent_of, versions
from ptft_lightning.handoff.preflight import check_resume
from ptft_lightning.modules import optimizers
from ptft_lightning.modules.lightning_edges import correct_batch_progress, whole_mesh
from ptft_lightning.modules.meter import Meter
from ptft_lightning.modules.nets import Net, as_number, fill, shard
from ptft_lightning.modules.optimizers import OptimizerConfig, apply_settings, build_optimizer
from ptft_lightning.terms import Output
from ptft_lightning.tuning.base import Tuning
from ptft_lightning.tuning.full import Full


class PhaseModule(L.LightningModule):
    """Base of `PretrainModule` and `FinetuneModule`.

    `net` holds every parameter; it is built in `configure_model` from what the data module knows.
    """

    phase: str
    net: Net

    def __init__(
        self,
        optimizer: OptimizerConfig,
        init_from: str | None,
        compile_layers: bool,
        activation_checkpointing: bool,
        seed: int,
        base: str | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        super().__init__()
        self.optimizer_config, self.seed = optimizer, seed
        self.schedule = optimizers.learning_rate
        self.compile_layers = compile_layers
        self.activation_checkpointing = activation_checkpointing
        self.tuning = tuning or Full()
        from ptft_lightning.interop.adapters import open_start  # a leaf

        self.bundle = open_start(init_from, base, self.tuning.described)
        self.built, self.factors = False, dict[Tensor, float]()
        self.train_meter, self.eval_meter = Meter(), Meter()
        self.tokens_seen, self.rate = 0, 0.0
        self.grad_norm: Tensor | None = None
        self.clock, self.logged_step, self.unlogged = time.perf_counter(), 0, False
        self.train_values, self.eval_names = dict[str, float](), set[str]()

    # What a phase says of itself.

    def build_net(self, data: PhaseData) -> Net:
        """The net on the current device, its values not yet set."""
        raise NotImplementedError

    def stored(self, name: str) -> Tensor | None:
        """The bundle's value of a parameter; None for a new one."""
        raise NotImplementedError

    def bundle_config(self) -> dict[str, Any]:
        """config.json of the bundle this phase writes."""
        raise NotImplementedError

    def preflight(self, data: PhaseData) -> None:
        """Check what crosses between data, bundle and model."""
        raise NotImplementedError

    @property
    def data(self) -> PhaseData:
        """The data module beside us."""
        return cast(PhaseData, cast(Any, self.trainer).datamodule)

    # Building.

    def configure_model(self) -> None:
        """Build the net on the meta device, shard it if asked, then fill it with values."""
        if self.built:
            return
        strategy = self.trainer.strategy
        with torch.device("meta"):
            self.net = self.build_net(self.data)
        self.net.backbone.recompute = self.activation_checkpointing
        if self.compile_layers:
            for layer in self.net.backbone.layers:
                layer.compile()  # in place, so that key names stay clean
        if isinstance(strategy, ModelParallelStrategy):
            shard(self.net, whole_mesh(strategy, self.trainer.world_size))
        new = fill(self.net, strategy.root_device, self.stored, self.seed)
        self.net.train()  # Lightning leaves modes as they are; a frozen backbone's is evaluation
        fixed = {name for name, p in self.net.named_parameters() if not p.requires_grad}
        self.untouched, unused = fixed.difference(new), self._unused(new)
        self.tuning.settle(self.net.backbone)
        self.built = True
        if self.trainer.is_global_zero:
            from ptft_lightning.modules.footprint import describe  # a leaf

            describe(self, new, unused, fitting=self.trainer.state.fn == TrainerFn.FITTING)

    def _unused(self, new: list[str]) -> list[str]:
        """The bundle's tensors that found no place; those of a loaded backbone must."""
        if self.bundle is None:
            return []
        placed = {name for name, _ in self.net.named_parameters()}.difference(new)
        unused = [name for name in self.bundle.names() if name not in placed]
        lost = [name for name in unused if name.startswith("backbone.")]
        if placed and lost:
            raise UserError(
                f"the bundle '{self.bundle.path}' has tensors its config has no place for: "
                f"{', '.join(lost)}"
            )
        return unused

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Fused, but not under a gradient scaler, which would unscale behind clipping."""
        layers, fused = len(self.net.backbone.layers), self.trainer.precision != "16-mixed"
        named = self.net.named_parameters()
        self.factors = {p: self.tuning.rate_factor(name, layers) for name, p in named}
        return build_optimizer(self.net, self.optimizer_config, fused, self.factors)

    # Training.

    def on_fit_start(self) -> None:
        """The clock of tokens/s starts with the work."""
        self.train_meter = Meter(self.data.source_names)
        self.clock, self.logged_step = time.perf_counter(), self.global_step

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by place: Lightning saves no random state."""
        place = (self.seed, self.global_step, batch_idx % self.trainer.accumulate_grad_batches)
        torch.manual_seed(random_key("step", *place, self.global_rank) % 2**63)
        self.net.backbone.step = self.global_step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss whose gradient, summed over micro-batches and ranks, is the step's."""
        output: Output = self.net(batch)
        self.train_meter.add(output, batch)
        # Lightning divides by the accumulation, the strategy averages over ranks: undo both.
        whole = self.trainer.accumulate_grad_batches * self.trainer.world_size
        losses = [t.share(batch.step_samples, batch.step_targets) for t in output.terms.values()]
        return whole * torch.stack(losses).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Settings of this step, whatever state was restored."""
        self.rate = self.schedule(self.optimizer_config, self.global_step, self.trainer.max_steps)
        apply_settings(optimizer, self.optimizer_config, self.rate, self.factors)
        self.unlogged = True

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm. Lightning 2.6.6 refuses this for fused optimizers in mixed precision
        (pytorch-lightning#21435), and does not keep the norm."""
        if gradient_clip_algorithm not in (None, "norm"):
            raise UserError("trainer.gradient_clip_algorithm: only 'norm' is supported")
        parameters = [p for p in self.net.parameters() if p.grad is not None]
        if gradient_clip_val:
            norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.grad_norm = norm

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log every `log_every_n_steps` steps; nothing is read from the device between."""
        self._log_training()

    def _log_training(self) -> None:
        every = max(1, cast(Any, self.trainer).log_every_n_steps)
        if self.global_step % every or not self.unlogged:
            return
        sums, now = self.train_meter.take(self.trainer.strategy), time.perf_counter()
        self.tokens_seen += int(sums.tokens)
        self.train_values = values = {
            **{f"train_{k}": v for k, v in self.summary(sums.losses, sums.metrics).items()},
            **{f"train_{k}": v for k, v in sums.sources.items()},
            "lr": self.rate,
            "grad_norm": as_number(self.grad_norm),
            "samples": float(self.data.segments.span(self.global_step)[0]),
            "tokens": float(self.tokens_seen),
            "tokens_per_s": sums.tokens / max(now - self.clock, 1e-9),
            "data_stall": self.data.take_waited() / max(now - self.clock, 1e-9),
            "padding_waste": 1 - sums.tokens / max(sums.places, 1.0),
            "seconds_per_step": (now - self.clock) / max(1, self.global_step - self.logged_step),
        }
        self.clock, self.logged_step, self.unlogged = now, self.global_step, False
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=self.global_step)

    def summary(self, losses: dict[str, float], metrics: dict[str, float]) -> dict[str, float]:
        """What is reported of loss terms and metric sums (means over targets)."""
        return {"loss": sum(losses.values()), **metrics}

    # Evaluation.

    def evaluate(self, batch: Batch) -> Output:
        """The one step of validation and test."""
        output: Output = self.net(batch)
        self.eval_meter.add(output, batch)
        return output

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """See `evaluate`."""
        self.evaluate(batch)

    test_step = validation_step

    def eval_values(self) -> dict[str, float]:
        """Metrics of the pass that ended, over all ranks."""
        sums = self.eval_meter.take(self.trainer.strategy)
        return self.summary(sums.losses, sums.metrics)

    def on_validation_epoch_start(self) -> None:
        """Validation time does not count in tokens/s."""
        self.validation_began = time.perf_counter()

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_evaluation("val")
        self.clock += time.perf_counter() - self.validation_began

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_evaluation("test")

    def _log_evaluation(self, prefix: str) -> None:
        values = {f"{prefix}_{name}": value for name, value in self.eval_values().items()}
        for gone in self.eval_names.difference(values):  # of a tag that nothing has any more
            self.trainer.callback_metrics.pop(gone, None)
        self.eval_names = set(values)
        # Already the same on every rank; `log_dict` feeds callbacks and the test table. The step
        # Lightning 2.6.6 gives to loggers is one too low, and one lower yet after a resume.
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        self.log_dict(values, logger=not fitting, rank_zero_only=False, sync_dist=False)
        for logger in self.trainer.loggers if fitting else []:
            logger.log_metrics(values, step=self.global_step)

    # Checkpoints and the handoff.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Embed what is needed to start another phase from the checkpoint alone."""
        self._log_training()  # first: a checkpoint must not know a step that metrics.csv does not
        lineage = self.lineage()
        checkpoint[CHECKPOINT_KEY] = {
            "config": {"format": 1, **self.bundle_config()},
            "tokenizer": self.data.tokenizer.text,
            "lineage": lineage,
        }
        checkpoint["tokens_seen"] = lineage["tokens"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model; repair what Lightning restores wrongly."""
        mine = self.bundle_config() | {"seed": self.seed, "optimizer": self.optimizer_config.kind}
        check_resume(checkpoint.get(CHECKPOINT_KEY), mine | {"parents": self.parents()})
        self.tokens_seen = checkpoint["tokens_seen"]
        correct_batch_progress(checkpoint, self.trainer.accumulate_grad_batches)

    def lineage(self) -> dict[str, Any]:
        """Facts of this run for lineage.json; every rank must call it."""
        from ptft_lightning.tracking.identity import tracking  # a leaf

        mine = torch.tensor(self.train_meter.tokens, device=self.device)  # since the last report
        unreported = self.trainer.strategy.reduce(mine, reduce_op="sum")
        return {
            "steps": self.global_step,
            "samples": self.data.segments.span(self.global_step)[0],
            "tokens": self.tokens_seen + int(unreported),
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "seed": self.seed,
            "optimizer": self.optimizer_config.kind,
            "lr": self.rate,
            "data": self.data.identity(),
            "segments": self.data.segments.state(),
            "stores": self.data.places,
            "metrics": {k: float(v) for k, v in self.trainer.callback_metrics.items()},
            "versions": versions(),
            "parents": self.parents(),
            **tracking(self.trainer.loggers),
        }

    def parents(self) -> list[dict[str, Any]]:
        """What lineage.json says of the bundle that the run started from."""
        return [] if self.bundle is None else [parent_of(self.bundle)]
