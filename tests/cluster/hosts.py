"""Two hosts on one machine: network namespaces joined by a cable (veth), an address each.

Needs root and iproute2. The hosts share the file system, as a cluster's do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from faults.kit import ENVIRONMENT, TESTS

PORT = 29400


class Host:
    """One of two."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.card, self.address = f"veth{number}", f"10.231.77.{number + 1}"

    def ip(self, *words: str) -> None:
        """Set the host's network up."""
        run("ip", "-n", self.name, *words)

    def launch(self, options: list[str], restarts: int) -> subprocess.Popen[str]:
        """torchrun with this command; the first host is where all meet."""
        torchrun = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
            *("--nproc-per-node", "1", "--max-restarts", str(restarts), "--rdzv-id", "test"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"10.231.77.1:{PORT}"),
            *("--rdzv-conf", f"is_host={self.number == 0}", "--local-addr", self.address),
            *("-m", "ptft_lightning", *options),
        ]
        path = os.pathsep.join(p for p in (str(TESTS), os.environ.get("PYTHONPATH")) if p)
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *torchrun],
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": self.card},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def run(*words: str) -> None:
    """A command of iproute2."""
    subprocess.run(words, check=True, capture_output=True, text=True)


def why_not() -> str | None:
    """What hinders; None where hosts can be made."""
    if shutil.which("ip") is None:
        return "there is no `ip` (package iproute2)"
    name = f"ptft{os.getpid()}"
    tried = subprocess.run(
        ["ip", "netns", "add", name], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        return f"no right to make network namespaces: {tried.stderr.strip()}"
    run("ip", "netns", "delete", name)
    return None


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Both, joined; taken away at the end."""
    hosts = [Host(f"ptft{os.getpid()}{letter}", n) for n, letter in enumerate("ab")]
    try:
        for host in hosts:
            run("ip", "netns", "add", host.name)
        first, second = hosts
        run(
            *("ip", "link", "add", first.card, "netns", first.name, "type", "veth"),
            *("peer", "name", second.card, "netns", second.name),
        )
        for host in hosts:
            host.ip("address", "add", f"{host.address}/24", "dev", host.card)
            for card in ("lo", host.card):
                host.ip("link", "set", card, "up")
        yield first, second
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True, check=False)


def descendants(process: int) -> list[int]:
    """A process's children and theirs."""
    file = Path(f"/proc/{process}/task/{process}/children")
    children = [int(child) for child in file.read_text().split()] if file.exists() else []
    return [found for child in children for found in (child, *descendants(child))]
