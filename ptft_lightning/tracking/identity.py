"""Which W&B run a fit is: one id a run directory, its group by lineage, its job type by phase."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger

from ptft_lightning.files import write_atomically

PROJECT = "ptft_lightning"
NOTE = "wandb_id"  # of a run directory


def mode() -> str:
    """How W&B runs; offline unless WANDB_MODE says otherwise, so that no account is needed."""
    return os.environ.get("WANDB_MODE", "offline")


def has_key() -> bool:
    """Whether this machine has a key for W&B, as far as can be told without asking W&B."""
    named = {"WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"} & os.environ.keys()
    kept = (Path(os.environ.get("NETRC", "~/.netrc")), Path("~/_netrc"))
    return bool(named) or any(file.expanduser().is_file() for file in kept)


def records_here() -> bool:
    """Whether this process is the one that records, known before a trainer exists."""
    # Lightning knows of a node beside the first one only when its trainer is there.
    return getattr(rank_zero_only, "rank", 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"


def wandb_logger(run_dir: Path, phase: str, parents: list[dict[str, Any]]) -> WandbLogger:
    """The logger of a run; WANDB_PROJECT, WANDB_RUN_GROUP and WANDB_JOB_TYPE go before its own.

    Args:
        run_dir: Where its records and its id are; a restart finds the id there.
        phase: The module's.
        parents: What the run started from, as in its lineage.json.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_SILENT", "true")
    given: dict[str, Any] = {}
    if records_here():  # the others' loggers record nothing
        ident = _own_id(run_dir)
        kind = "adapt" if phase == "pretrain" and parents else phase
        given = {
            "id": ident,
            "group": os.environ.get("WANDB_RUN_GROUP") or group_of(parents, ident),
            "job_type": os.environ.get("WANDB_JOB_TYPE") or kind,
        }
    return WandbLogger(
        name=run_dir.name,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        save_dir=str(run_dir),
        resume="allow",
        offline=mode() != "online",
        **given,
    )


def _own_id(run_dir: Path) -> str:
    file = run_dir / NOTE
    if not file.is_file():
        write_atomically(file, f"{uuid.uuid4().hex[:8]}\n".encode())
    return file.read_text().strip()


def group_of(parents: list[dict[str, Any]], ident: str) -> str:
    """That of the nearest ancestor that was tracked, else the hash of the first bundle of the line;
    a run without ancestors founds a group."""
    line = list(_ancestors(parents))
    groups = [facts["tracking"]["group"] for facts in line if "tracking" in facts]
    return str([*groups, *(facts["hash"] for facts in reversed(line)), ident][0])


def _ancestors(parents: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for facts in parents:
        yield facts
        yield from _ancestors(facts.get("parents", []))


def wandb_runs(loggers: Sequence[Logger]) -> list[Any]:
    """W&B's runs among a trainer's loggers; none on ranks that record nothing."""
    if not records_here():
        return []
    runs: list[Any] = [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]
    return [run for run in runs if not run.disabled]


def tracking(loggers: Sequence[Logger]) -> dict[str, Any]:
    """The entry of lineage.json that says under what name a run is tracked; empty where it is not.

    An entity is known online only.
    """
    for run in wandb_runs(loggers):
        names = {"run": run.id, "group": run.group or run.id, "project": run.project}
        return {"tracking": names | ({"entity": run.entity} if run.entity else {})}
    return {}
