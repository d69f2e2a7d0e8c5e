"""`check`: before a long fit, look at its data, its first loss and gradients; overfit few samples.

Takes every option of `fit`, runs on one device, and writes nothing but what fit itself prepares.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import replace
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from torch import Tensor

from ptft_lightning.commands import train
from ptft_lightning.commands.check_data import (
    Finding,
    check_data,
    first_batches,
    graded,
    samples_there,
)
from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.data.manifest import has_manifest
from ptft_lightning.data.module import PhaseData
from ptft_lightning.data.sample_order import Segment, Segments
from ptft_lightning.errors import UserError
from ptft_lightning.modules.finetune import FinetuneModule
from ptft_lightning.modules.meter import Meter
from ptft_lightning.modules.phase import PhaseModule
from ptft_lightning.modules.pretrain import PretrainModule

NEAR_GUESS = 0.25  # how far a first loss may be from a uniform guess, as a share of it
NEAR_ZERO, FELL = 0.1, 0.8  # last loss as a share of a guess's, of the first
FEW_BAD = 0.1  # share of steps whose gradient may overflow: float16 begins so
FEWEST = 10  # steps, so that gradients have come everywhere
LISTED = 8  # parameters that are named


class Check(Callback):
    """Looks at the data and the first loss, then watches the trainer overfit a few samples."""

    def __init__(self, steps: int, samples: int, shown: int) -> None:
        self.steps, self.samples, self.shown = steps, samples, shown
        self.console = Console(file=sys.stdout)
        self.findings: list[Finding] = []
        self.losses: list[float] = []
        self.names: list[str] = []
        self.reached = self.bad = torch.zeros(0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What can be said before the first step; then make each step one of the same samples."""
        module = cast(PhaseModule, pl_module)
        self.findings += check_data(module.data, self.console, self.shown)
        self.guess = uniform_loss(module)
        self.findings.append(self._first_loss(trainer, module))
        self._narrow(trainer, module.data)
        module.optimizer_config = replace(
            module.optimizer_config, schedule="constant", warmup=0.1, final=1.0
        )
        trained = [(n, p) for n, p in module.net.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in trained]
        self.whole = len(trained) == len(list(module.net.parameters()))
        self.reached = torch.zeros(len(trained), dtype=torch.bool, device=module.device)
        self.bad = torch.zeros(len(trained), device=module.device)

    def _first_loss(self, trainer: L.Trainer, module: PhaseModule) -> Finding:
        dataset: Any = module.data.train_dataloader().dataset
        batch = next(first_batches(module.data, dataset)).to(module.device)
        meter = Meter()
        module.net.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            meter.add(module.net(batch), batch)
        module.net.train()
        loss = sum(meter.take(trainer.strategy).losses.values())
        return first_loss_finding(loss, self.guess, head_is_loaded(module))

    def _narrow(self, trainer: L.Trainer, data: PhaseData) -> None:
        """Every step takes the same few samples, as one micro-batch."""
        self.samples = min(self.samples, samples_there(data))
        numbers = np.arange(self.samples)
        data.global_batch_size = data.micro_batch_size = self.samples
        data.segments = Segments((Segment(0, 0, self.samples),), period=data.segments.period)
        setattr(data, "step_numbers", lambda step: numbers)  # noqa: B010
        trainer.accumulate_grad_batches = 1
        trainer.fit_loop.epoch_loop.max_steps = self.steps

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Without dropout, which keeps a loss from zero."""
        cast(PhaseModule, pl_module).net.eval()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Which parameters a gradient reaches. Some need a few steps: the first factor of a
        low-rank product has none while the second is zero."""
        net = cast(PhaseModule, pl_module).net
        norms = torch.stack([_norm(p) for p in net.parameters() if p.requires_grad])
        self.reached |= norms.isfinite() & (norms > 0)
        self.bad += ~norms.isfinite()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show the loss ten times; stop where it is near zero."""
        sums = cast(PhaseModule, pl_module).train_meter.take(trainer.strategy)
        self.losses.append(sum(sums.losses.values()))
        trainer.should_stop = is_near_zero(self.losses, self.guess)
        if batch_idx % max(1, self.steps // 10) == 0:
            print(
                f"overfitting {self.samples} samples, step {batch_idx}: {self.losses[-1]:.4f}",
                flush=True,
            )

    def verdict(self) -> list[Finding]:
        """All that was found."""
        bad = self.bad > FEW_BAD * self.steps
        return [
            *self.findings,
            gradient_finding(self._named(~self.reached), self._named(bad), len(self.names)),
            overfit_finding(self.losses, self.samples, self.guess, self.whole),
        ]

    def _named(self, chosen: Tensor) -> list[str]:
        return [name for name, is_in in zip(self.names, chosen.tolist(), strict=True) if is_in]


def _norm(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    return torch.zeros((), device=parameter.device) if gradient is None else gradient.float().norm()


def uniform_loss(module: PhaseModule) -> float | None:
    """Loss of a uniform guess; None where objective or task name none."""
    if isinstance(module, PretrainModule):
        return module.objective.uniform_loss(module.net.backbone.vocab_size)
    assert isinstance(module, FinetuneModule)
    return module.task.uniform_loss(module.labels)


def head_is_loaded(module: PhaseModule) -> bool:
    """Whether a bundle gave the whole net, so that its first loss is a trained one's."""
    names = [name for name, _ in module.net.named_parameters()]
    return module.bundle is not None and all(module.stored(name) is not None for name in names)


# What is well and what is not.


def first_loss_finding(loss: float, guess: float | None, loaded: bool) -> Finding:
    """The loss before training beside that of a uniform guess."""
    if not math.isfinite(loss):
        return Finding(
            "problem", f"the first loss is {loss}: try trainer.precision 32 or another init_from"
        )
    said = "the loaded model's loss" if loaded else "the first loss"
    if guess is None:
        return Finding("ok", f"{said} is {loss:.4f} (what a guess would give is not known here)")
    text = f"{said} is {loss:.4f}, a uniform guess gives {guess:.4f}"
    if loaded:
        fix = "the bundle does not fit this data: look at its tokenizer and text"
        return graded(loss > (1 + NEAR_GUESS) * guess, text, fix)
    fix = "an untrained model should know nothing: look at the backbone's shape and the targets"
    return graded(abs(loss - guess) > NEAR_GUESS * guess, text, fix)


def gradient_finding(missing: list[str], bad: list[str], total: int) -> Finding:
    """Whether every trained parameter got a finite gradient that is not zero."""
    for names, what, fix in (
        (bad, "is not finite", "lower optimizer.lr or use another trainer.precision"),
        (missing, "is missing or zero", "the loss does not depend on them: freeze or remove them"),
    ):
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            listed = ", ".join(names[:LISTED]) + more
            text = f"the gradient {what} for {len(names)} of {total} parameters ({listed})"
            return Finding("problem", f"{text}: {fix}")
    return Finding("ok", f"every one of {total} trained parameters gets a finite gradient")


def last_loss(losses: list[float]) -> float:
    """The mean of the last five."""
    return sum(losses[-5:]) / len(losses[-5:])


def is_near_zero(losses: list[float], guess: float | None) -> bool:
    """Whether the last losses are a small part of a guess's (or of the first)."""
    return len(losses) >= FEWEST and last_loss(losses) <= NEAR_ZERO * (guess or losses[0])


def overfit_finding(losses: list[float], samples: int, guess: float | None, whole: bool) -> Finding:
    """Whether the loss of the same few samples fell near zero; `whole`: all parameters train."""
    first, last = losses[0], last_loss(losses)
    text = f"overfitting {samples} samples for {len(losses)} steps: loss {first:.4f} -> {last:.4f}"
    if is_near_zero(losses, guess):
        return Finding("ok", text)
    if last <= FELL * first:  # False of NaN
        fix = "it falls, not near zero: give --overfit_steps more, or a higher optimizer.lr"
        # A frozen backbone's features set a bound.
        return graded(whole, text, fix)
    return Finding(
        "problem",
        f"{text}: it does not fall; try a lower optimizer.lr (then a higher one), and look at the "
        "sample above",
    )


class CheckCLI(train.CLI):
    """The options of fit, put to another use."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The one whose options are read."""
        return {"fit": train.CLI.subcommands()["fit"]}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.add_argument(
            "--overfit_steps", type=int, default=100, help="Most steps on the same few samples."
        )
        parser.add_argument("--overfit_samples", type=int, default=4, help="How many samples.")
        parser.add_argument("--show", type=int, default=40, help="Positions shown of a sample.")
        return parser

    def complete_options(self) -> None:
        """Always step 0, on one device; the run directory is neither read nor written."""
        options, trainer = self.options, self.options.trainer
        for name in ("overfit_steps", "overfit_samples", "show"):
            if options[name] < 1:
                raise UserError(f"--{name} is {options[name]}: give 1 or more")
        devices = trainer.devices
        trainer.devices = devices[:1] if isinstance(devices, list) else 1
        trainer.num_nodes, trainer.strategy, trainer.fast_dev_run = 1, "auto", False
        trainer.limit_train_batches, trainer.limit_val_batches, trainer.overfit_batches = 1.0, 0, 0
        trainer.logger, trainer.profiler, options.ckpt_path = False, None, None

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Without what writes."""
        trainer = super().instantiate_trainer(**kwargs)
        options = self.options
        self.check = Check(options.overfit_steps, options.overfit_samples, options.show)
        cast(Any, trainer).callbacks, trainer.loggers = [self.check], []
        return trainer

    def fit(self, model: PhaseModule, datamodule: PhaseData, **kwargs: Any) -> None:
        """Run the check in the trainer's own loop, then say what was found."""
        datamodule.workers, datamodule.audit = 0, None
        cast(Any, self.trainer).log_every_n_steps = sys.maxsize  # the meter is read here
        corpus = datamodule if isinstance(datamodule, CorpusDataModule) else None
        new = corpus is not None and not has_manifest(corpus.store)
        self.trainer.fit(model, datamodule=datamodule)
        made = "nothing"
        if corpus is not None and new:
            made = f"the token store '{corpus.store}', as fit would"
            if corpus.growing:
                begun = corpus.growing_store.preparation is not None
                made = f"{made}, whose preparation goes on" if begun else "nothing"
        print(f"made: {made}")

    def after_fit(self) -> None:
        """The verdict; a problem is exit code 1."""
        findings = self.check.verdict()
        for finding in findings:
            print(f"{finding.level}: {finding.text}")
        if Counter(finding.level for finding in findings)["problem"]:
            sys.exit(1)


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    train.start(CheckCLI, "fit", args)
