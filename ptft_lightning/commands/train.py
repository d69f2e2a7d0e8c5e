"""`fit`, `validate`, `test`, `predict`: Lightning's command line with a run directory."""

from __future__ import annotations

import gc
import sys
from contextlib import nullcontext
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import lightning as L
import torch
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from ptft_lightning.commands.mistakes import one_line
from ptft_lightning.commands.parser import ConfigCLI, Parser, SaveConfig, import_parts
from ptft_lightning.commands.quiet import quieten
from ptft_lightning.commands.runs import (
    build_loggers,
    bundle_of,
    checkpoint_of,
    config_of,
    global_rank,
    refuse_finished,
)
from ptft_lightning.commands.trainer_options import (
    TRAINER_DEFAULTS,
    refuse_launch,
    refuse_unsupported,
    tell_slow_precision,
)
from ptft_lightning.data.corpus import CorpusDataModule  # noqa: F401 - found by its short name
from ptft_lightning.data.module import PhaseData, say
from ptft_lightning.data.task_data import TaskDataModule
from ptft_lightning.errors import UserError
from ptft_lightning.modules.checkpoints import Checkpoints
from ptft_lightning.modules.cpu_memory import keep_freed_memory
from ptft_lightning.modules.csv_metrics import ForgetRedone
from ptft_lightning.modules.finetune import FinetuneModule
from ptft_lightning.modules.lightning_edges import AtomicCheckpointIO, started_ranks
from ptft_lightning.modules.phase import PhaseModule
from ptft_lightning.modules.preempt import EXIT_CODE, Preempt
from ptft_lightning.modules.pretrain import PretrainModule  # noqa: F401
from ptft_lightning.modules.progress_callback import TrainingProgress

if TYPE_CHECKING:
    from ptft_lightning.modules.spikes import Spikes


class CLI(ConfigCLI):
    """With a run directory; the checkpoint-over-config merge is disabled."""

    children: ClassVar[list[Popen[bytes]]] = []

    def _parse_ckpt_path(self) -> None:
        """Lightning 2.6.6 lets a checkpoint's hyperparameters override the command line, and
        silently rebuilds the class that saved it (pytorch-lightning#21455)."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What a run has beside trainer, model and data."""
        from ptft_lightning.modules.early_stopping import StopEarly  # leaves
        from ptft_lightning.modules.samples import Samples
        from ptft_lightning.modules.spikes import Spikes

        parser.add_argument(
            "--run_dir",
            default="runs/default",
            help="Directory of this run: config, metrics, checkpoints, bundle.",
        )
        parser.add_argument(
            "--float32_matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="Precision of float32 matrix products: 'high' uses TF32 on GPUs.",
        )
        parser.add_lightning_class_args(StopEarly, "early_stopping")  # before it is saved
        told = "Write report.html at the end of a fit."
        parser.add_argument("--report", type=bool, default=True, help=told)
        # Before the checkpoints: none must know a validation whose samples are not written.
        parser.add_lightning_class_args(Samples, "samples")
        parser.add_lightning_class_args(Spikes, "spikes")  # before what it spoils is saved
        parser.add_lightning_class_args(Checkpoints, "checkpoint")

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "test":
            told = "Look for the test examples in the pretraining text, where that is still here."
            parser.add_argument("--overlap", type=bool, default=True, help=told)
        if subcommand == "predict":
            told = "A text to predict, or several as a JSON list."
            parser.add_argument("--text", type=str, default=None, help=told)
            told = "File for the predictions (.jsonl)."
            parser.add_argument("--output", type=str | None, help=told)
        return parser

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except (UserError, OSError):
            self._end_children()
            raise

    def _end_children(self) -> None:
        """Before the other ranks complain that this one went away."""
        ranks = started_ranks(self.trainer, self.children)
        for process in ranks:
            process.kill()
        ranks.clear()  # or Lightning kills this process, too

    @property
    def options(self) -> Namespace:
        """The options of the subcommand."""
        return cast(Namespace, self.config[self.subcommand])

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot work, then find the checkpoint or bundle a command means."""
        options = self.options
        torch.set_float32_matmul_precision(options.float32_matmul_precision)
        refuse_unsupported(options.trainer)
        self.complete_options()

    def complete_options(self) -> None:
        """The checkpoint of a fit, or the bundle of what comes after one."""
        options, run_dir = self.options, Path(self.options.run_dir)
        if self.subcommand == "fit":
            options.ckpt_path = checkpoint_of(options.ckpt_path, run_dir)
            if options.ckpt_path is None and global_rank() == 0:
                refuse_finished(run_dir, fast=bool(options.trainer.fast_dev_run))
            return
        options.trainer.logger = False
        phase_two = "FinetuneModule" in options.model.class_path
        if self.subcommand == "predict" and not phase_two:
            raise UserError("predict needs a phase-two run: give --run_dir of a FinetuneModule's")
        model = options.model.init_args
        own = options.ckpt_path is not None or (run_dir / "bundle").is_dir()
        if own or model.init_from is None:
            model.init_from = bundle_of(options.ckpt_path, run_dir)
        model.backbone = None
        options.ckpt_path = None
        if "from_scratch" in model:
            model.from_scratch = False
        if self.subcommand == "predict" and options.text is not None:
            from ptft_lightning.commands.texts import texts_in  # a leaf

            options.data.init_args.text = texts_in(options.text, "text")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add what every run has: metrics.csv, W&B, checkpoints, preemption, progress, audit."""
        options, run_dir = self._get(self.config_init, "trainer"), Path(self.options.run_dir)
        checkpoints: Checkpoints = self._get(self.config_init, "checkpoint")
        self.spikes: Spikes = self._get(self.config_init, "spikes")
        for part in (checkpoints, self.spikes, self._get(self.config_init, "samples")):
            part.run_dir = run_dir
        self.spikes.checkpoints = checkpoints
        self.datamodule.resumes = self.subcommand == "fit" and self.options.ckpt_path is not None
        self.preempt = Preempt(checkpoints)
        self.datamodule.told = lambda: self.preempt.noted
        from ptft_lightning.costs.watch import Costs  # leaves
        from ptft_lightning.modules.audit import Audit
        from ptft_lightning.modules.tracking import Tracking

        # The audit comes first: a checkpoint must not know a step that the audit does not.
        file = None if options.fast_dev_run else self.datamodule.audit
        audit = [] if file is None else [Audit(file)]
        callbacks = [*audit, self.preempt, ForgetRedone(), TrainingProgress(), Costs(run_dir)]
        given = options.callbacks or []
        options.callbacks = [*(given if isinstance(given, list) else [given]), *callbacks]
        plugins = options.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        options.plugins = [*plugins, AtomicCheckpointIO(checkpoints.asynchronous)]
        options.default_root_dir = options.default_root_dir or str(run_dir)
        fitting = self.subcommand == "fit" and not options.fast_dev_run
        options.logger = build_loggers(options.logger, run_dir, self.model) if fitting else False
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
            given = ", ".join(f"{k} {options[k]!r}" for k in ("accelerator", "devices", "strategy"))
            raise UserError(f"trainer ({given}): {one_line(str(error))}") from error
        refuse_launch(trainer)
        self.tracking = Tracking(run_dir, self.spikes, checkpoints)
        cast(Any, trainer).callbacks.append(self.tracking)  # behind those whose files it reads
        return trainer

    def before_fit(self) -> None:
        """Say where the run goes on, and what is slow here."""
        tell_slow_precision(self.trainer)
        if self.options.ckpt_path is not None:
            say(f"resuming from '{self.options.ckpt_path}'")

    def fit(self, model: PhaseModule, datamodule: PhaseData, **kwargs: Any) -> None:
        """Train; one fit at a time works in a run directory."""
        from ptft_lightning.commands.exclusive import held  # a leaf

        writes = global_rank() == 0 and not cast(Any, self.trainer).fast_dev_run
        with held(Path(self.options.run_dir)) if writes else nullcontext():
            self.trainer.fit(model, datamodule=datamodule, **kwargs)

    def after_fit(self) -> None:
        """Tell a preempted run's end from a finished one's."""
        spiked = self.spikes.ended
        if self.preempt.stopped or (spiked and self.preempt.told_to_end(self.trainer)):
            self._leave(EXIT_CODE)
        if spiked and self.spikes.go_back_to is None:
            self._leave(1)
        if spiked:
            raise self.spikes.go_back(started_ranks(self.trainer, self.children))
        if cast(Any, self.trainer).fast_dev_run:
            return
        if self.trainer.is_global_zero:
            from ptft_lightning.commands.report import write_beside  # leaves
            from ptft_lightning.modules.footprint import saved

            if self.options.report:
                write_beside(Path(self.options.run_dir))
            say(saved(Path(self.options.run_dir)))
        if isinstance(self.model, FinetuneModule):
            from ptft_lightning.modules.reproduction import reproduce

            reproduce(self.trainer, self.model, Path(self.options.run_dir))
        self.tracking.finish(self.trainer)
        say(f"done: {Path(self.options.run_dir) / 'bundle'}")

    def _leave(self, code: int) -> None:
        """Lightning kills a process whose child ended in anything but 0."""
        sys.exit(code if self.trainer.local_rank == 0 else 0)

    def test(self, model: L.LightningModule, **kwargs: Any) -> None:
        """Test, and keep the metrics in the run directory."""
        self._measure("test", model, **kwargs)

    def validate(self, model: L.LightningModule, **kwargs: Any) -> None:
        """Validate, and keep the metrics in the run directory."""
        self._measure("validate", model, **kwargs)

    def _measure(self, what: str, model: L.LightningModule, **kwargs: Any) -> None:
        results = getattr(self.trainer, what)(model, **{**kwargs, "verbose": False})
        if not results:
            raise UserError(f"nothing to {what}: name a file with --data.{what}")
        from ptft_lightning.commands.measures import keep_measures  # a leaf

        run_dir, overlap = Path(self.options.run_dir), self.options.get("overlap", False)
        keep_measures(what, model, results[0], run_dir, overlap)

    def predict(self, model: FinetuneModule, **kwargs: Any) -> None:
        """Predict, and write one JSON line per example in the order of the file."""
        from ptft_lightning.commands.predicted import predict  # a leaf

        kwargs |= {"return_predictions": True}
        predict(self.trainer, model, cast(TaskDataModule, self.datamodule), self.options, **kwargs)


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""

    class Command(CLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            """Only the one asked for: building the parsers of all takes longer than the rest."""
            return {command: CLI.subcommands()[command]}

    from ptft_lightning.modules.spikes import GoBack  # a leaf

    import_parts()  # a bundle's config names them
    args = config_of(command, args)
    while True:
        try:
            return start(Command, command, args)
        except GoBack as back:
            args, Command.children = [*args, "--ckpt_path", str(back)], back.children
        gc.collect()  # the ended fit's model, before there is another


def start(
    cli: type[CLI], command: str, args: list[str], trainer: type[L.Trainer] = L.Trainer
) -> None:
    """Read the config and run the command."""
    import_parts()
    quieten()
    keep_freed_memory()
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    cli(
        PhaseModule,
        PhaseData,
        trainer_class=trainer,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=[command, *args],
        parser_class=Parser,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
        trainer_defaults=TRAINER_DEFAULTS,
        seed_everything_default=False,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )
