"""Who prepares a token store holds a lock on its plan, so that others can tell slow from dead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ptft_lightning.data.plan import PLAN
from ptft_lightning.errors import UserError

TRIES, PAUSE_S = 20, 0.05  # those who look take the lock for an instant


@contextlib.contextmanager
def preparing(store: Path) -> Iterator[None]:
    """Hold the lock while the context lasts, or until the process dies.

    Raises:
        UserError: another process is at it.
    """
    note = store / PLAN
    with contextlib.ExitStack() as opened:
        for _ in range(TRIES):
            # Afresh: another process may just have put its own plan in place of the first.
            stream = opened.enter_context(open(note, "r+b" if os.access(note, os.W_OK) else "rb"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(stream.fileno()), os.stat(note)):
                    break
            except BlockingIOError:
                time.sleep(PAUSE_S)
            except OSError as error:  # a file system without locks
                _tell(str(store), str(error))
                break
        else:
            raise UserError(
                f"token store '{store}' is being prepared by another process: wait for it, or end "
                "it"
            )
        yield


@cache  # once, though it is asked again and again
def _tell(store: str, error: str) -> None:
    print(
        f"token store '{store}' cannot be locked ({error}): start no second `prepare` of it, "
        "nothing would stop that; and a run that follows it takes a slow `prepare` for a dead one",
        file=sys.stderr,
        flush=True,
    )


def is_being_prepared(store: str | Path) -> bool | None:
    """Whether a process of this machine, or of one that shares its locks, is at work there; None
    where the file system has no locks that tell."""
    note = Path(store) / PLAN
    if not note.is_file():
        return False
    with open(note, "rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:  # as above
            _tell(str(store), str(error))
            return None
    return False
