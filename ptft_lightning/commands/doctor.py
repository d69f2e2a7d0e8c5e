"""`doctor`: is this machine fit to train? Versions, devices, disk, and a tiny run of both phases.

Nothing here imports torch or lightning before their versions are known to be harmless.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from ptft_lightning.commands.doctor_devices import check_devices, check_network
from ptft_lightning.commands.doctor_run import two_phases
from ptft_lightning.commands.tool import run_tool

PYTHON = (3, 11)
# Published by thieves on 2026-04-30: they send away what credentials they find.
MALWARE = dict.fromkeys(("lightning", "pytorch-lightning"), ("2.6.2", "2.6.3"))
LEAST_ROOM, LITTLE_ROOM = 1e9, 10e9  # bytes of disk
LITTLE_SHARED = 1e9  # bytes of shared memory, through which loader workers hand batches over
WRITTEN = 2**24  # bytes of the write test


class Finding(NamedTuple):
    """One thing that was looked at."""

    level: str
    """ok, warning or problem."""
    text: str


Findings = Iterator[Finding]


def doctor(run_dir: str = "runs", run: bool = True) -> None:
    """Look at this machine, one line a finding; exit code 1 where something will not work.

    Args:
        run_dir: A directory on the disk that runs will be written to.
        run: Also pretrain and fine-tune a tiny model, which takes less than a minute.
    """
    place, problems = Path(run_dir), 0
    first = list(check_python()) + list(check_malware())
    checks: list[Callable[[], Findings]] = [
        *(check_packages, lambda: named(check_devices()), lambda: named(check_network())),
        *(lambda: check_disk(place), lambda: check_writing(place), check_shared_memory),
        check_tracking,
    ]
    for finding in first:
        problems += tell(finding)
    if problems:  # the rest would import what must not be imported
        sys.exit(1)
    for check in checks:
        problems += sum(tell(finding) for finding in check())
    if run and not problems:
        problems += sum(tell(finding) for finding in check_phases(place))
    if problems:
        print(f"{problems} problem(s): not ready to train")
        sys.exit(1)
    print("ready to train")


def tell(finding: Finding) -> bool:
    """Print a finding; whether it is a problem."""
    print(f"{finding.level}: {finding.text}", flush=True)
    return finding.level == "problem"


def named(found: Iterator[tuple[str, str]]) -> Findings:
    """Plain pairs as findings."""
    return (Finding(*pair) for pair in found)


def check_python() -> Findings:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON:
        yield Finding(
            "problem", f"Python {version}: {'.'.join(map(str, PYTHON))} or newer is needed"
        )
    else:
        yield Finding("ok", f"Python {version} ({sys.executable})")


def version_of(package: str) -> str | None:
    """The version of an installed package, which is not imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_malware() -> Findings:
    """Versions that must not even be imported."""
    for package, bad in MALWARE.items():
        version = version_of(package)
        if version in bad:
            yield Finding(
                "problem",
                f"{package} {version} is malware that steals credentials (GHSA-w37p-236h-pfx3): "
                f"uninstall it, change every key this machine has, install {package}>=2.6.6",
            )


def check_packages() -> Findings:
    """What this program needs, in the versions it was written for."""
    from packaging.requirements import Requirement

    try:
        needed = metadata.requires("ptft-lightning") or []
    except metadata.PackageNotFoundError:
        needed = []
        yield Finding("warning", "ptft-lightning is not installed: versions were not compared")
    wrong = []
    for line in needed:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    for text in wrong:
        yield Finding("problem", f"{text}: pip install --upgrade ptft-lightning")
    if not wrong:
        have = ", ".join(f"{name} {version_of(name)}" for name in ("torch", "lightning", "wandb"))
        yield Finding("ok", have)


def existing(place: Path) -> Path:
    """The directory, or the nearest above it that is there."""
    place = place.absolute()
    return next(path for path in (place, *place.parents) if path.exists())


def check_disk(place: Path) -> Findings:
    """Room where runs go."""
    import shutil

    free = shutil.disk_usage(existing(place)).free
    text = f"{free / 1e9:.1f} GB free for '{place}'"
    if free < LEAST_ROOM:
        yield Finding("problem", f"{text}: make room, or name another disk with --run_dir")
    elif free < LITTLE_ROOM:
        yield Finding("warning", f"{text}: `plan` says what a run takes")
    else:
        yield Finding("ok", text)


def check_writing(place: Path) -> Findings:
    """Write, sync, rename and lock, as checkpoints and runs do."""
    import fcntl

    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-") as directory:
            file, began = Path(directory) / "one", time.perf_counter()
            with open(file, "wb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stream.write(bytes(WRITTEN))
                stream.flush()
                os.fsync(stream.fileno())
            speed = WRITTEN / (time.perf_counter() - began)
            os.replace(file, Path(directory) / "other")
    except OSError as error:
        said = error.strerror or str(error)
        yield Finding("problem", f"'{place}' cannot be written to ({said}): give another --run_dir")
        return
    yield Finding("ok", f"'{place}' is written at {speed / 1e6:.0f} MB/s")


def check_shared_memory() -> Findings:
    """Where loader workers hand batches over."""
    import shutil

    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield Finding("warning", "there is no /dev/shm: leave data.workers at 0")
        return
    size = shutil.disk_usage(shared).total
    text = f"/dev/shm has {size / 1e9:.2f} GB"
    if size < LITTLE_SHARED:
        fix = "start the container with --shm-size 8g (Kubernetes: an emptyDir of medium Memory)"
        yield Finding("warning", f"{text}: {fix}, or leave data.workers at 0")
    else:
        yield Finding("ok", text)


def check_tracking() -> Findings:
    """Where runs are reported to."""
    mode = os.environ.get("WANDB_MODE", "offline")
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    hub = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    if mode != "online":
        yield Finding("ok", f"W&B is {mode}: nothing leaves this machine{hub}")
        return
    from ptft_lightning.tracking.identity import has_key

    if has_key():
        yield Finding("ok", f"W&B is online at {server}")
    else:
        yield Finding(
            "problem", f"WANDB_MODE is online, and there is no key for {server}: wandb login"
        )


def check_phases(place: Path) -> Findings:
    """Text -> tokenizer -> pretrain -> fine-tune -> predict, on what this machine has."""
    with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-") as directory:
        began = time.perf_counter()
        failed = two_phases(Path(directory))
        seconds = time.perf_counter() - began
    if failed is None:
        yield Finding("ok", f"pretrained, fine-tuned and predicted in {seconds:.0f} s")
    else:
        yield Finding("problem", f"the tiny run failed at {failed}")


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, doctor, args, positional=False)
