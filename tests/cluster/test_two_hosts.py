"""Two hosts with a network between them: what a cluster does to a run, and the run survives.

Takes minutes, root and iproute2: `pytest -m slow tests/cluster`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.hosts import Host, descendants, two_hosts, why_not
from faults.kit import done, pretrain, read_audit, read_metrics, wait_for_lines, words

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 24
SHAPE = {"dim": 32, "depth": 2, "heads": 2, "max_length": 32, "causal": True}


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    reason = why_not()
    if reason is not None:
        pytest.skip(f"two hosts cannot be made here: {reason}")
    with two_hosts() as made:
        yield made


def options(run_dir: Path, store: Path, tokenizer: Path, **more: Any) -> dict[str, Any]:
    given = pretrain(run_dir, store, tokenizer, trainer__max_steps=STEPS)
    # Without dropout, whose seed holds the rank.
    return given | {"model.backbone": SHAPE, "trainer.val_check_interval": STEPS, **more}


@pytest.fixture(scope="module")
def undisturbed(store: Path, bpe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on one host, alone."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    done(words("fit", options(run_dir, store, bpe_path)))
    return run_dir


CLUSTER = {"trainer.num_nodes": 2, "trainer.devices": 1, "ckpt_path": "last"}


@contextlib.contextmanager
def started(
    hosts: tuple[Host, Host], given: dict[str, Any], restarts: int
) -> Iterator[list[subprocess.Popen[str]]]:
    """A run on both; whatever is left of it is ended."""
    processes = [host.launch(words("fit", given), restarts) for host in hosts]
    try:
        yield processes
    finally:
        for process in processes:
            for left in (process.pid, *descendants(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)
            process.communicate()


def end(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What both said; they must end well."""
    said = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return said


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The training processes of a host."""
    found = []
    for child in descendants(process.pid):
        command = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if "ptft_lightning" in command and "torch.distributed.run" not in command:
            found.append(child)
    return found


def assert_same(one: Path, other: Path) -> None:
    assert read_audit(one) == read_audit(other)
    losses = []
    for run_dir in (one, other):
        rows = [row for row in read_metrics(run_dir) if row["train_loss"]]
        losses.append({row["step"]: float(row["train_loss"]) for row in rows})
    assert losses[0].keys() == losses[1].keys()
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), rel=1e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_killed_process_is_restarted_at_the_last_checkpoint(
    hosts, undisturbed, store, bpe_path, tmp_path, strategy
):
    run_dir = tmp_path / "run"
    given = options(run_dir, store, bpe_path, **CLUSTER, **{"trainer.strategy": strategy})
    with started(hosts, given, restarts=3) as processes:
        wait_for_lines(processes[0], run_dir / "audit", 8)
        (worker,) = workers(processes[1])
        os.kill(worker, signal.SIGKILL)
        said = end(processes)
    assert re.search(r"resuming from .*step=0000000[36]", "\n".join(said))
    assert_same(undisturbed, run_dir)


def test_a_cable_that_is_pulled_and_put_back(hosts, undisturbed, store, bpe_path, tmp_path):
    """Nothing is lost: the run waits, and goes on."""
    run_dir, (_, second) = tmp_path / "run", hosts
    given = options(run_dir, store, bpe_path, **CLUSTER)
    with started(hosts, given, restarts=0) as processes:
        wait_for_lines(processes[0], run_dir / "audit", 5)
        second.ip("link", "set", second.card, "down")
        time.sleep(1)
        before = len(read_audit(run_dir))
        time.sleep(4)
        assert len(read_audit(run_dir)) == before < STEPS
        second.ip("link", "set", second.card, "up")
        end(processes)
    assert_same(undisturbed, run_dir)
