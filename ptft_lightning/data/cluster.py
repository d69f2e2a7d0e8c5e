"""Tasks shared out on a Ray cluster that runs already (extra `cluster`); knows nothing of them.

The nodes need this package, and they read and write what the tasks name: files and directories
that all nodes see under the same paths.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from ptft_lightning.data.workers import Advance, Work, limit_threads
from ptft_lightning.errors import UserError

AHEAD = 4  # tasks that are handed in for each core: none waits for the next one, none floods Ray


def run_on_cluster(
    work: Work,
    tasks: Sequence[Any],
    advance: Advance,
    name: Callable[[Any], str],
    address: str,
) -> list[Any]:
    """Do all tasks on the cluster at `address` (`ray://host:10001`, `host:6379` or `auto`).

    A task whose process or node dies is tried again by Ray, three times.

    Raises:
        UserError: no such cluster, Ray is not installed, or a task's process died again and again.
    """
    ray = _connect(address)
    try:
        return _run(ray, work, tasks, advance, name)
    finally:
        ray.shutdown()  # this program's connection, with its tasks; the cluster stays


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"--cluster {address} needs Ray: pip install 'ptft-lightning[cluster]'"
        ) from error
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # whatever the network and other versions of Ray may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--cluster {address}: no Ray cluster answers there: {reason}") from error
    return ray


def _reach(address: str) -> None:
    """Whether anything listens there: Ray itself takes minutes to say that nothing does."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=10).close()


def _run(
    ray: Any, work: Work, tasks: Sequence[Any], advance: Advance, name: Callable[[Any], str]
) -> list[Any]:
    remote = ray.remote(num_cpus=1)(_work)
    shared, place = [ray.put(work)], os.getcwd()  # in a list Ray leaves it a reference
    results: list[Any] = [None] * len(tasks)
    waiting = iter(range(len(tasks)))
    running: dict[Any, int] = {}
    room = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while True:
        while len(running) < room and (index := next(waiting, None)) is not None:
            running[remote.remote(shared, tasks[index], place)] = index
        if not running:
            return results
        (done,), _ = ray.wait(list(running))
        index = running.pop(done)
        results[index], count = _get(ray, done, name(tasks[index]))
        advance(count)


def _get(ray: Any, reference: Any, task: str) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(
            f"the cluster could not do {task}: {reason}: what is finished is kept, run the command "
            "again"
        ) from error


@lru_cache(maxsize=1)
def _fetch(reference: Any) -> Any:
    """The work, once for each process: it holds a tokenizer."""
    import ray

    return ray.get(reference)


def _work(shared: list[Any], task: Any, place: str) -> tuple[Any, int]:
    """A task on a node, in the directory that relative paths mean; and the bytes it did."""
    limit_threads(1)
    try:
        os.chdir(place)
    except OSError as error:
        raise UserError(
            f"'{place}', where the command runs, is not there on node '{os.uname().nodename}': all "
            "nodes must see the same files under the same paths"
        ) from error
    done: list[int] = []
    return _fetch(shared[0])(task, done.append), sum(done)
