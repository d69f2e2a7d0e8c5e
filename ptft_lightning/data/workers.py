"""Tasks shared out among processes; knows nothing of what they do.

Whatever runs them, the results come in the order of the tasks, and the work hears `advance(n)` when
it has done n more bytes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ptft_lightning.errors import UserError

Advance = Callable[[int], None]
Work = Callable[[Any, Advance], Any]


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_workers(workers: int | None, cluster: str | None, unit_bytes: int) -> None:
    """Refuse what cannot be meant.

    Raises:
        UserError: no worker at all, two places to work, or units of nothing.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}: give 1 or more")
    if workers is not None and cluster is not None:
        raise UserError("--workers and --cluster: name one, the cluster knows its cores")
    if unit_bytes < 1:
        raise UserError(f"--unit_bytes is {unit_bytes}: give 1 or more")


def share_out(
    work: Work,
    tasks: Sequence[Any],
    advance: Advance,
    name: Callable[[Any], str],
    workers: int = 1,
    cluster: str | None = None,
) -> list[Any]:
    """Do all tasks: here, in `workers` processes of this machine, or on a Ray cluster.

    `name` says what a task is, for the message when the process that did it died.

    Raises:
        UserError: a process died, or `cluster` cannot be used.
    """
    if cluster is not None:
        from ptft_lightning.data.cluster import run_on_cluster

        return run_on_cluster(work, tasks, advance, name, cluster)
    if workers > 1 and len(tasks) > 1:
        return _Pool(work, tasks, advance, name, workers).run()
    return [work(task, advance) for task in tasks]


class _Pool:
    """Processes that are given one task after another.

    Ours, because `concurrent.futures` cannot tell which task killed a process. They are started
    afresh (spawn): a fork of a process with threads may hang.
    """

    def __init__(
        self,
        work: Work,
        tasks: Sequence[Any],
        advance: Advance,
        name: Callable[[Any], str],
        workers: int,
    ) -> None:
        self.work, self.tasks, self.advance, self.name = work, tasks, advance, name
        self.workers = min(workers, len(tasks))
        self.waiting = iter(range(len(tasks)))
        self.results: list[Any] = [None] * len(tasks)
        self.running: dict[Connection, tuple[BaseProcess, int]] = {}

    def run(self) -> list[Any]:
        try:
            for _ in range(self.workers):
                pipe, process = self._start()
                self._give(pipe, process)
            while self.running:
                ready: list[Any] = wait(list(self.running))
                for heard in ready:
                    self._hear(heard)
        finally:  # after a mistake or Ctrl-C, too
            for process, _ in self.running.values():
                process.terminate()
            for process, _ in self.running.values():
                process.join()
        return self.results

    def _start(self) -> tuple[Connection, BaseProcess]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, available_cores() // self.workers)
        process = context.Process(target=_serve, args=(theirs, self.work, threads), daemon=True)
        process.start()
        theirs.close()  # so that its end is heard
        return ours, process

    def _give(self, pipe: Connection, process: BaseProcess) -> None:
        """The next task, or nothing more, which ends the process."""
        index = next(self.waiting, None)
        if index is None:
            pipe.close()
            process.join()
            return
        self.running[pipe] = process, index
        with contextlib.suppress(OSError):  # it is dead: `_hear` will say so
            pipe.send(self.tasks[index])

    def _hear(self, pipe: Connection) -> None:
        process, index = self.running[pipe]
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):
            process.join()
            raise UserError(_died(process, self.name(self.tasks[index]))) from None
        if kind == "advance":
            self.advance(value)
        elif kind == "failed":
            raise value
        else:
            self.results[index] = value
            del self.running[pipe]
            self._give(pipe, process)


def _died(process: BaseProcess, task: str) -> str:
    code = process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    hint = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
    return (
        f"a process that worked on {task} {how}{hint}: what is finished is kept, run the command "
        "again, with fewer --workers where memory is short"
    )


def _serve(pipe: Connection, work: Work, threads: int) -> None:
    """The life of a process: tasks in; what it does, results or an error out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends us
    limit_threads(threads)
    try:
        while True:
            task = pipe.recv()
            try:
                done = work(task, lambda count: pipe.send(("advance", count)))
            except Exception as error:  # raised by the parent
                pipe.send(("failed", _portable(error)))
                return
            pipe.send(("done", done))
    except (EOFError, OSError):  # the parent needs no more, or is gone
        return


def limit_threads(threads: int) -> None:
    """How many threads `tokenizers` takes in this process."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"


def _portable(error: Exception) -> Exception:
    """What the command line can say in a line as it is, all else with its traceback."""
    if isinstance(error, (UserError, OSError)):
        return error
    return RuntimeError("".join(traceback.format_exception(error)))
