"""Work for other processes, which import this file: nothing heavy here."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from ptft_lightning.data.bad_documents import BadDocuments
from ptft_lightning.errors import UserError


def act(task: str, advance: Callable[[int], None]) -> tuple[str, int]:
    """Do what the task's name says; by default, give it back with the process that did it."""
    advance(2)
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "leave":
        os._exit(3)
    if task == "mistake":
        raise UserError("the user's own")
    if task == "full":
        raise OSError(28, "No space left on device", "/full/disk")
    if task == "fault":
        raise ZeroDivisionError("a fault of ours")
    if task == "bad":
        BadDocuments(on_bad="stop").add("broken JSON", "x at byte 5", "not a JSON line")
    return task.upper(), os.getpid()
