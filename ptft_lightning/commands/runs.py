"""What a run directory holds and what the commands take from it."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.modules.checkpoints import is_whole, last_checkpoint, list_checkpoints
from ptft_lightning.modules.csv_metrics import CsvMetrics
from ptft_lightning.modules.phase import PhaseModule

SHARED_KEYS = ("trainer", "model", "data")  # of a fit's config, those other commands read


def global_rank() -> int:
    """This process's rank, known before a trainer exists."""
    rank: int = getattr(rank_zero_only, "rank", 0)
    return rank


def checkpoint_of(ckpt_path: str | None, run_dir: Path) -> str | None:
    """The checkpoint that `--ckpt_path` means; None to start anew.

    `last` is the newest whole checkpoint of the run; where there is none yet, the run begins, so
    that a scheduler can start and restart a job with the same words.

    Raises:
        UserError: the path is missing, torn, or not a checkpoint.
    """
    if ckpt_path is None:
        return None
    if ckpt_path == "last":
        found = last_checkpoint(run_dir / "checkpoints")
        if found is None:
            say(f"no checkpoint in '{run_dir}': starting at step 0")
        return None if found is None else str(found)
    path = Path(ckpt_path)
    if not path.exists():
        have = [str(p) for p in list_checkpoints(run_dir / "checkpoints")]
        listed = f"; '{run_dir}' has {', '.join(have)}" if have else ""
        raise UserError(f"--ckpt_path not found: '{ckpt_path}'{listed}")
    if not is_whole(path):
        raise UserError(f"--ckpt_path '{ckpt_path}' is torn or not a checkpoint: try 'last'")
    return ckpt_path


def refuse_finished(run_dir: Path, fast: bool) -> None:
    """Keep a new run from writing over an earlier one.

    Raises:
        UserError: the directory holds checkpoints or a bundle.
    """
    taken = list_checkpoints(run_dir / "checkpoints") or (run_dir / "bundle").exists()
    if taken and not fast:
        raise UserError(
            f"--run_dir '{run_dir}' already holds a run: go on with --ckpt_path last, give another "
            "--run_dir, or remove it"
        )


def bundle_of(ckpt_path: str | None, run_dir: Path) -> str:
    """What test and predict load: a named checkpoint, else the run's bundle.

    Raises:
        UserError: there is none.
    """
    if ckpt_path is not None:
        found = checkpoint_of(ckpt_path, run_dir)
        if found is None:
            raise UserError(f"no checkpoint in '{run_dir}'")
        return found
    if (run_dir / "config.json").is_file():
        return str(run_dir)
    if not (run_dir / "bundle").is_dir():
        raise UserError(f"no bundle in '{run_dir}': train there first, or give another --run_dir")
    return str(run_dir / "bundle")


def config_of(command: str, args: list[str]) -> list[str]:
    """Commands after a fit need no config: the run's own is read from its directory."""
    words = [word.partition("=")[0] for word in args]
    if command == "fit" or not {"-c", "--config", "-h", "--help", "--model"}.isdisjoint(words):
        return args
    run_dir = _value(args, "--run_dir")
    if run_dir is None:
        raise UserError(
            f"{command} needs a finished run (--run_dir DIR) or a config (--config FILE)"
        )
    file = Path(run_dir) / "config.yaml"
    if (Path(run_dir) / "config.json").is_file():
        from ptft_lightning.commands.bundle_config import config_of_bundle  # a leaf

        return ["--config", yaml.safe_dump(config_of_bundle(Path(run_dir)), sort_keys=False), *args]
    if not file.is_file():
        raise UserError(f"no run in '{run_dir}': it has no config.yaml; give another --run_dir")
    content = yaml.safe_load(file.read_text())
    kept = {key: content[key] for key in SHARED_KEYS}
    kept["trainer"].pop("logger", None)
    kept["data"]["init_args"]["audit"] = None
    return ["--config", yaml.safe_dump(kept, sort_keys=False), *args]


def config_files(args: list[str]) -> list[str]:
    """The files that --config names, in order; it takes a config's text as well."""
    named = []
    for word, value in pairwise(args):
        named += [value] if word in ("-c", "--config") else []
    named += [word.partition("=")[2] for word in args if word.startswith("--config=")]
    return [file for file in named if "\n" not in file]


def _value(args: list[str], name: str) -> str | None:
    for i, word in enumerate(args):
        if word == name and i + 1 < len(args):
            return args[i + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def build_loggers(given: Any, run_dir: Path, module: PhaseModule) -> list[Logger]:
    """metrics.csv always; W&B unless other loggers were given (False: none)."""
    own: list[Logger] = [CsvMetrics(run_dir / "metrics.csv")]
    if given is False:
        return own
    if given not in (None, True):
        return own + (list(given) if isinstance(given, (list, tuple)) else [given])
    if os.environ.get("WANDB_MODE") == "disabled":
        return own
    from ptft_lightning.tracking.identity import wandb_logger  # a leaf

    return [*own, wandb_logger(run_dir, module.phase, module.parents())]
