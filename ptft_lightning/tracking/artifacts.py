"""Bundles as W&B artifacts: named, fetched, uploaded, linked to what they come from.

An artifact is named by the run that made it; the bundle's hash is one of its aliases, so that a
bundle that was copied by hand is still found by what it holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import Bundle, open_bundle
from ptft_lightning.tracking.identity import has_key, mode

SCHEME = "wandb://"
PART = r"(?!\.\.?(?:[/:]|$))[^/:\s#?%\\]+"  # neither . nor .., which would leave the cache
ADDRESS = re.compile(rf"(?:{PART}/)?{PART}/{PART}(?::{PART})?")
VERSION = re.compile(rf"({PART}/{PART}/{PART}):(v\d+)")
KIND = "model"
UPLOAD_S = 1500  # other ranks wait for rank 0 no longer than half an hour


def artifact_name(run_id: str) -> str:
    """Of the bundle that a run made."""
    return f"bundle-{run_id}"


def artifact_of(parent: Mapping[str, Any]) -> str | None:
    """Where W&B has a parent named in lineage.json; None if no W&B run made it."""
    if "artifact" in parent:
        return str(parent["artifact"])
    names = parent.get("tracking")
    if names is None:
        return None
    place = [names[key] for key in ("entity", "project") if key in names]
    alias = parent.get("merged_from", parent["hash"])
    return "/".join([*place, f"{artifact_name(names['run'])}:{alias}"])


def inputs_of(lineage: Mapping[str, Any]) -> list[str]:
    """The artifacts that a run of this lineage started from."""
    named = [artifact_of(parent) for parent in lineage.get("parents", [])]
    return [name for name in named if name is not None]


def use_inputs(run: Any, lineage: Mapping[str, Any]) -> None:
    """Draw the edges of the graph that lead to a run, which must be online."""
    for name in inputs_of(lineage):
        run.use_artifact(name)


def upload(run: Any, bundle: Bundle) -> str:
    """Log a bundle's directory as what a run made, wait until it is there; its name.

    The files are read where they are: W&B would make a copy first.
    """
    import wandb

    facts = {
        "hash": bundle.hash,
        "phase": bundle.config["phase"],
        "steps": bundle.lineage.get("steps"),
        "parents": [parent["hash"] for parent in bundle.lineage.get("parents", [])],
    }
    artifact = wandb.Artifact(artifact_name(run.id), KIND, metadata=facts)
    artifact.add_dir(bundle.path, skip_cache=True, policy="immutable")
    run.log_artifact(artifact, aliases=["latest", bundle.hash]).wait(timeout=UPLOAD_S)
    return f"{artifact_name(run.id)}:{bundle.hash}"


def reason(error: Exception) -> str:
    """One line of an error of W&B's."""
    said = str(error).strip().splitlines()
    return said[0] if said else type(error).__name__


def open_artifact(address: str) -> Bundle:
    """The bundle at `wandb://[entity/]project/name[:alias]`, from the cache of this machine where
    it is there under a version, such as `:v3`, which never changes.

    Raises:
        UserError: no such address, W&B is offline, the bundle cannot be fetched or is another one.
    """
    name = address.removeprefix(SCHEME)
    if not ADDRESS.fullmatch(name):
        raise UserError(
            f"init_from '{address}' is no address of an artifact: "
            f"{SCHEME}[entity/]project/name[:alias]"
        )
    if not (VERSION.fullmatch(name) and _place(name).is_dir()):
        name = _fetch(address, name)
    bundle = open_bundle(_place(name))
    bundle.path, bundle.lineage = f"{SCHEME}{name}", {**bundle.lineage, "artifact": name}
    return bundle


def _place(name: str) -> Path:
    """Where the cache has a version; servers may use the same names."""
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "ptft_lightning" / "wandb" / server / name.replace(":", "/")


def _fetch(address: str, name: str) -> str:
    """Put the bundle into the cache; its name, with the version in place of an alias."""
    by_hand = f"`wandb artifact get {name} --root DIR` where it can, and give --model.init_from DIR"
    if mode() != "online":
        raise UserError(
            f"init_from '{address}': W&B is {mode()} here, so nothing is fetched: set "
            f"WANDB_MODE=online, or fetch it by {by_hand}"
        )
    if not has_key():
        raise UserError(
            f"init_from '{address}': there is no key for W&B here: `wandb login`, or fetch it by "
            f"{by_hand}"
        )
    import wandb

    try:
        artifact = wandb.Api().artifact(name)
        bare = artifact.name.partition(":")[0]
        pinned = f"{artifact.entity}/{artifact.project}/{bare}:{artifact.version}"
        _download(artifact, _place(pinned), address)
    except UserError:
        raise
    except Exception as error:  # W&B's own, those of the network, those of the disk
        raise UserError(
            f"init_from '{address}' cannot be fetched: {reason(error)}; or fetch it by {by_hand}"
        ) from error
    return pinned


def _download(artifact: Any, target: Path, address: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # ranks of a machine fetch it once
        if target.is_dir():
            return
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            artifact.download(root=str(temporary), skip_cache=True)
            check_hash(temporary, artifact.metadata.get("hash"), address)
            try:
                temporary.rename(target)
            except OSError:  # another process was quicker
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_hash(directory: Path, wanted: str | None, address: str) -> None:
    """Whether the bundle that came is the one that was uploaded.

    Raises:
        UserError: it is another one.
    """
    if wanted is None:
        print(f"'{address}' says no hash of its bundle: not compared", file=sys.stderr)
        return
    if (found := open_bundle(directory).hash) != wanted:
        raise UserError(
            f"init_from '{address}': its bundle is {found}, and was {wanted} when it was uploaded"
        )
