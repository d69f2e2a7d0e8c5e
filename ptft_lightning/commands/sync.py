"""`sync`: upload a run that was recorded offline, then link it to what it comes from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ptft_lightning.commands.tool import run_tool
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import Bundle, open_bundle
from ptft_lightning.tracking.artifacts import (
    artifact_name,
    inputs_of,
    reason,
    upload,
    use_inputs,
)
from ptft_lightning.tracking.identity import NOTE, PROJECT, has_key


def sync(run_dir: str, entity: str | None = None, dry_run: bool = False) -> None:
    """Upload a run's W&B records, its bundle as an artifact, and the edge to what it started from.

    W&B records offline what a run logs, not what it comes from: that is read from the bundle's
    lineage.json. Take the earlier phase first, so that its artifact is there. What was uploaded
    before is not uploaded again.

    Args:
        run_dir: The run.
        entity: W&B's name of a user or team; default: that of the key.
        dry_run: List what would be done, and do nothing.
    """
    place = Path(run_dir)
    ident = _id_of(place)
    files = [file for file in records(place) if not _is_synced(file)]
    bundle = open_bundle(place / "bundle") if (place / "bundle").is_dir() else None
    for line in planned(ident, files, bundle):
        print(line)
    if bundle is None:
        print(f"no bundle in '{place}' yet: nothing to link", file=sys.stderr)
    if dry_run:
        return
    if not has_key():
        raise UserError(
            "there is no key for W&B here: `wandb login`, or set WANDB_API_KEY (and "
            "WANDB_BASE_URL for a server of your own)"
        )
    _try_server()
    _upload_records(files, entity)
    if bundle is not None:
        names = {"project": PROJECT, **bundle.lineage.get("tracking", {})}
        _link(place, bundle, ident, entity or names.get("entity"), names["project"])


def _id_of(run_dir: Path) -> str:
    file = run_dir / NOTE
    if not file.is_file():
        raise UserError(f"--run_dir '{run_dir}' has no W&B run: it has no file '{NOTE}'")
    return file.read_text().strip()


def records(run_dir: Path) -> list[Path]:
    """What W&B recorded offline, the oldest first; one file for each start of the run."""
    return sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))


def _is_synced(file: Path) -> bool:
    return file.with_name(f"{file.name}.synced").is_file()


def planned(ident: str, files: list[Path], bundle: Bundle | None) -> list[str]:
    """What there is to do, a line each."""
    lines = [f"upload {file}" for file in files]
    if bundle is not None:
        lines += [f"use {name}" for name in inputs_of(bundle.lineage)]
        lines.append(f"log {artifact_name(ident)}:{bundle.hash} {bundle.path}")
    return lines


def _try_server() -> None:
    """W&B's own sync never gives up on a server that is out of reach."""
    import wandb

    try:
        wandb.Api()
    except Exception as error:  # W&B's own, those of the network
        raise UserError(f"W&B cannot be used: {reason(error)}") from error


def _upload_records(files: list[Path], entity: str | None) -> None:
    if not files:
        return
    command = [sys.executable, "-m", "wandb", "sync", *map(str, files)]
    command += ["--entity", entity] if entity else []
    # A mode of offline would end it before it begins; its log goes to the run's.
    own = {"WANDB_MODE": "online", "WANDB_DIR": str(files[0].parents[2])}
    done = subprocess.run(command, env={**os.environ, **own}, check=False)
    if left := [str(file) for file in files if not _is_synced(file)]:
        raise UserError(
            f"`wandb sync` ended with {done.returncode} and left {', '.join(left)}: see above"
        )


def _link(run_dir: Path, bundle: Bundle, ident: str, entity: str | None, project: str) -> None:
    """Open the uploaded run again for what could not be recorded."""
    import wandb

    quiet = wandb.Settings(x_disable_stats=True, console="off", mode="online", silent=True)
    names: dict[str, Any] = {"entity": entity, "project": project, "id": ident}
    try:
        with wandb.init(**names, dir=run_dir, resume="must", settings=quiet) as run:
            print(f"uploaded as {upload(run, bundle)}")
            use_inputs(run, bundle.lineage)
    except Exception as error:  # W&B's own, those of the network
        first = (
            "; if an artifact that it uses is not there, sync the run that made it first (a bundle "
            "that is in no run's directory any more, or a checkpoint, is no artifact)"
        )
        raise UserError(f"'{run_dir}' was not linked: {reason(error)}{first}") from error


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, sync, args, positional=False)
