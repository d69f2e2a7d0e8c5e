"""One at a time in a directory: fits, and commands that start runs of their own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError

STOPPED = 75  # as an interrupted fit


@contextlib.contextmanager
def exclusive(command: str, output: Path) -> Iterator[IO[str]]:
    """Hold a directory's lock while the context lasts; SIGTERM ends the program with STOPPED, so
    that its run saves first. A run that gets the lock's file descriptor holds it, too.

    Raises:
        UserError: under torchrun, or something still runs there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{command} starts its own runs: call it without torchrun")
    output.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    try:
        with open(output / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"--output '{output}': another {command}, or a run that one left behind, still "
                    "works there: wait for it or end it"
                ) from error
            yield lock
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Hold a run directory's lock while the context lasts.

    Raises:
        UserError: another fit has it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "w") as lock:
        try:
            fcntl.lockf(
                lock, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # unlike flock, workers do not share it
        except (BlockingIOError, PermissionError) as error:  # what says that it is taken differs
            raise UserError(
                f"--run_dir '{run_dir}': another fit works there: wait for it or end it"
            ) from error
        except OSError as error:
            say(f"no locks here ({error}): start one fit at a time in '{run_dir}'")
        yield
