"""A bundle as a config, for `test` and `predict` where the run's own is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from ptft_lightning.errors import UserError
from ptft_lightning.tasks.base import Task
from ptft_lightning.tuning.base import Tuning

OURS = "ptft_lightning."


def config_of_bundle(directory: Path) -> dict[str, Any]:
    """Model and data of a phase-two bundle, its task, tuning and reading settings; no files.

    Raises:
        UserError: of phase one, or of a task that is not known here.
    """
    config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if config.get("phase") != "finetune":
        raise UserError(f"'{directory}' is no bundle of phase two: give --config FILE")
    head, tuning = config["head"], config["tuning"]
    model = {
        "init_from": str(directory),
        "task": {"class_path": _path(Task, head["name"]), "init_args": head["config"]},
        "tuning": {"class_path": _path(Tuning, tuning["name"]), "init_args": tuning["config"]},
    }
    return {
        "trainer": {},
        "model": {"class_path": "FinetuneModule", "init_args": model},
        "data": {"class_path": "TaskDataModule", "init_args": dict(config["data"])},
    }


def _path(base: type, name: str) -> str:
    """The import path of our own class of that name."""
    # A class made from one of ours has its name, too.
    ours = [kind for kind in _kinds(base) if "name" in vars(kind)]
    known = {cast(Any, kind).name: kind for kind in ours if kind.__module__.startswith(OURS)}
    if name not in known:
        raise UserError(f"the bundle's '{name}' is not one of {', '.join(sorted(known))}")
    return f"{known[name].__module__}.{known[name].__qualname__}"


def _kinds(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return [kind for child in children for kind in (child, *_kinds(child))]
