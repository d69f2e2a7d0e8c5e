"""How the training commands read their config, say what is wrong with it, and save it whole."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, cast

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from ptft_lightning import backbones, objectives, tasks, tuning
from ptft_lightning.backbones.config import BackboneConfig
from ptft_lightning.commands.mistakes import Context, ParserError, buried, explain, read_configs
from ptft_lightning.commands.runs import config_files
from ptft_lightning.data.module import PhaseData
from ptft_lightning.errors import UserError
from ptft_lightning.modules.phase import PhaseModule
from ptft_lightning.objectives.base import Objective
from ptft_lightning.tasks.base import Task
from ptft_lightning.tuning.base import Tuning

# The classes to choose from, for each key that takes one.
BASES: dict[str, type] = {
    "model": PhaseModule,
    "data": PhaseData,
    "objective": Objective,
    "task": Task,
    "tuning": Tuning,
    "backbone": BackboneConfig,
}


def import_parts() -> None:
    """Every backbone, objective, task and tuning, so that their short names are known."""
    for package in (backbones, objectives, tasks, tuning):
        for part in iter_modules(package.__path__, f"{package.__name__}."):
            import_module(part.name)


class Parser(LightningArgumentParser):
    """Leaves it to `CLI` to say what is wrong, instead of printing a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Hand the complaint on."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ParserError(message) from ex


class ConfigCLI(LightningCLI):
    """Lightning's CLI, its complaints in one line."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Say what is wrong in one line."""
        command, *words = args
        options = [action.dest for action in self._subcommand_parsers[command]._actions]
        configs = config_files(words)
        read_configs(configs, options)
        try:
            super().parse_arguments(parser, args)
        except ParserError as error:
            raise UserError(explain(error, Context(options, BASES, configs, words))) from error

    def instantiate_classes(self) -> None:
        """Bring to light what a class refused."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise buried(error) or error from error


class SaveConfig(SaveConfigCallback):
    """The whole config: config.yaml in the run directory, and in every logger."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Too early: what is wrong may still come to light, and an earlier config would be lost."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write on rank 0."""
        if not trainer.is_global_zero or cast(Any, trainer).fast_dev_run:
            return
        text = self.parser.dump(self.config, skip_none=False, format="yaml")
        run_dir = Path(self.config["run_dir"])
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(text)
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": yaml.safe_load(text)})
