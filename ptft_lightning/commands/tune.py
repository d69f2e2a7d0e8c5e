"""`tune`: look for a learning rate or a micro-batch size by short fits that leave no checkpoint.

Lightning's Tuner (2.6.6) is not used. Its range test takes a step's last micro-batch for the step
and the slope per unit of a rate that spans decades; its batch-size search does not know that here
the accumulation follows from the sizes.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error

from ptft_lightning.commands.train import CLI, start
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.modules.optimizers import OptimizerConfig
from ptft_lightning.modules.phase import PhaseModule

SMOOTHED = 9  # steps averaged around each of a range test
DIVERGED = 2.0  # times the least loss so far
MICRO_STEPS = 4  # of a trial; the first sets memory up
AS_FAST = 0.95  # of the best tokens/s: then the smaller size will do


class TuneTrainer(L.Trainer):
    """A trainer with the subcommand's name."""

    def tune(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Look for a learning rate or a micro-batch size; nothing else is kept.

        Args:
            model: What to fit.
            datamodule: On what.
            ckpt_path: Not used; it stands in the config of a run.
            weights_only: Not used; it stands in the config of a run.
        """
        self.fit(model, datamodule=datamodule)


class Recorder(Callback):
    """The values of each step; stops when the loss runs away."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Take what the last step logged: callbacks end a batch before the module does."""
        self._take(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Take the last step's."""
        self._take(trainer, pl_module)

    def _take(self, trainer: L.Trainer, module: PhaseModule) -> None:
        if trainer.global_step == len(self.steps) or module.logged_step != trainer.global_step:
            return
        self.steps.append(module.train_values)
        rate, loss = module.train_values["lr"], module.train_values["train_loss"]
        if len(self.steps) % 10 == 0 and trainer.is_global_zero:
            say(f"step {len(self.steps)}/{trainer.max_steps}: lr {rate:.3g}, loss {loss:.4f}")
        least = min(step["train_loss"] for step in self.steps)
        if not loss <= DIVERGED * least:  # NaN, too
            trainer.should_stop = True


class Tune(CLI):
    """A fit without checkpoints, audit, validation and loggers."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The one."""
        return {"tune": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What to look for, and where."""
        super().add_arguments_to_parser(parser)
        add = parser.add_argument
        add("--what", type=Literal["lr", "micro_batch_size"], help="What to look for.")
        add("--min_lr", type=float, default=1e-5, help="lr: where the range begins.")
        add("--max_lr", type=float, default=1.0, help="lr: where the range ends.")
        add("--steps", type=int, default=100, help="lr: steps from one end to the other.")

    def complete_options(self) -> None:
        """Nothing but the steps that are looked at."""
        options, trainer = self.options, self.options.trainer
        if options.what is None:
            raise UserError("what to look for? give --what lr or --what micro_batch_size")
        if not 0 < options.min_lr < options.max_lr:
            raise UserError(
                f"--min_lr {options.min_lr} and --max_lr {options.max_lr}: the first must be above "
                "0 and below the second"
            )
        if options.steps < 2 * SMOOTHED:
            raise UserError(f"--steps is {options.steps}: give {2 * SMOOTHED} or more")
        trainer.max_steps, trainer.max_epochs = options.steps, -1
        trainer.limit_val_batches, trainer.log_every_n_steps = 0, 1
        trainer.callbacks, options.data.init_args.audit = None, None

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Leave out what a run has beside its trainer."""
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.world_size > 1:
            raise UserError(
                f"tune works on one device, this config takes {trainer.world_size}: give "
                "--trainer.devices 1 --trainer.strategy auto"
            )
        self.recorder = Recorder()
        cast(Any, trainer).callbacks = [self.recorder]
        return trainer

    def tune(self, model: PhaseModule, **kwargs: Any) -> None:
        """Look, print, write a picture and the numbers."""
        found = self._range_test() if self.options.what == "lr" else self._sizes()
        directory = Path(self.options.run_dir) / "tune"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{self.options.what}.json").write_text(json.dumps(found, indent=1) + "\n")
        draw(found, directory / f"{self.options.what}.png")
        say(f"picture and numbers: {directory / self.options.what}.png, .json")
        print(json.dumps({self.options.what: found["suggestion"]}))

    def _fit(self) -> list[dict[str, float]]:
        cast(TuneTrainer, self.trainer).tune(self.model, self.datamodule)
        return self.recorder.steps

    def _range_test(self) -> dict[str, Any]:
        """Raise the rate step by step from one end to the other (Smith 2017)."""
        low, high = self.options.min_lr, self.options.max_lr

        def rising(config: OptimizerConfig, step: int, total: int) -> float:
            return float(low * (high / low) ** (step / (total - 1)))

        self.model.schedule = rising
        steps = self._fit()
        rates, losses = ([step[name] for step in steps] for name in ("lr", "train_loss"))
        return {"x": "lr", "y": "loss", "suggestion": suggest_rate(rates, losses)} | {
            "points": list(zip(rates, losses, strict=True))
        }

    def _sizes(self) -> dict[str, Any]:
        """Double the size until memory or the global batch ends; take the smallest of the fast."""
        data = self.options.data.init_args
        whole: int = data.global_batch_size
        sizes = [2**n for n in range(whole.bit_length()) if 2**n < whole] + [whole]
        speeds: list[tuple[int, float]] = []
        for size in sizes:
            speed = self._speed(size)
            if speed is None:
                say(f"micro_batch_size {size}: out of memory")
                break
            say(f"micro_batch_size {size}: {speed:,.0f} tokens/s")
            speeds.append((size, speed))
        if not speeds:
            raise UserError("not even a micro-batch of 1 fits into memory: shorten the rows")
        best = max(speed for _, speed in speeds)
        suggestion = next(size for size, speed in speeds if speed >= AS_FAST * best)
        found = {"x": "micro_batch_size", "y": "tokens/s", "suggestion": suggestion}
        return found | {"largest": speeds[-1][0], "points": speeds}

    def _speed(self, size: int) -> float | None:
        """Tokens/s with two micro-batches a step; None when they do not fit."""
        options = self.options
        options.data.init_args.micro_batch_size = size
        options.data.init_args.global_batch_size = 2 * size
        options.trainer.max_steps = MICRO_STEPS
        self.instantiate_classes()
        garbage_collection_cuda()  # of the size before
        try:
            steps = self._fit()
        except RuntimeError as error:
            if not is_oom_error(error):
                raise
            return None
        return statistics.median(step["tokens_per_s"] for step in steps[1:])


def suggest_rate(rates: list[float], losses: list[float]) -> float:
    """Where the smoothed loss falls most steeply per decade of the rate.

    Raises:
        UserError: the loss never falls.
    """
    kept = [(r, loss) for r, loss in zip(rates, losses, strict=True) if math.isfinite(loss)]
    if len(kept) < 2 * SMOOTHED:
        raise UserError("the loss ran away at once: give a smaller --min_lr")
    x, y = np.log10([r for r, _ in kept]), np.array([loss for _, loss in kept])
    window = np.ones(SMOOTHED) / SMOOTHED
    x, y = np.convolve(x, window, "valid"), np.convolve(y, window, "valid")
    slopes = np.gradient(y, x)
    steepest = int(np.argmin(slopes))
    if slopes[steepest] >= 0:
        raise UserError("the loss never falls: give a wider range with --min_lr and --max_lr")
    return float(f"{10 ** x[steepest]:.3g}")


def draw(found: dict[str, Any], file: Path) -> None:
    """A picture of the points and the suggestion."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*found["points"], strict=True), marker=".", color="tab:blue")
    label = f"suggestion {found['suggestion']:g}"
    axes.axvline(found["suggestion"], color="tab:red", linestyle="--", label=label)
    axes.set(xscale="log", xlabel=found["x"], ylabel=found["y"])
    axes.legend()
    figure.savefig(file, dpi=120)


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    start(Tune, command, args, TuneTrainer)
