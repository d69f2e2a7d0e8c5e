"""What docs/clusters.md tells: the SLURM script, the Kubernetes manifest, several machines."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubeflow_trainer_api.models as kubeflow
import pytest
import yaml
from faults.kit import (
    ENVIRONMENT,
    TESTS,
    Run,
    child_of,
    done,
    finish,
    pretrain,
    read_audit,
    read_metrics,
    wait_for_lines,
    weights,
    words,
)

from ptft_lightning.modules.preempt import EXIT_CODE

ROOT = Path(__file__).parent.parent
BATCH = ROOT / "docker" / "slurm" / "fit.sbatch"
MANIFEST = ROOT / "docker" / "kubernetes" / "trainjob.yaml"
SCRIPTS = [BATCH, ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    run = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


# SLURM.

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$(dirname "$0")/scontrol.log"
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Any:
    """`slurm(options)` starts the script as SLURM would, with one process for a job's all."""
    at = tmp_path / "bin"
    at.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (at / name).write_text(text)
        (at / name).chmod(stat.S_IRWXU)
    path = f"{at}{os.pathsep}{os.environ['PATH']}"
    given = {"SLURM_JOB_ID": "7", "PTFT": f"{sys.executable} -m ptft_lightning", "PATH": path}

    def start(options: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(BATCH), *options],
            env={**os.environ, **ENVIRONMENT, **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def test_a_job_that_is_stopped_is_queued_again_and_goes_on(slurm, store, bpe_path, tmp_path):
    log, audit = tmp_path / "bin" / "scontrol.log", tmp_path / "run" / "audit"
    options = pretrain(tmp_path / "run", store, bpe_path)
    job = slurm(words("fit", options | {"trainer.max_steps": 100_000})[1:])
    wait_for_lines(job, audit, 4)
    os.killpg(job.pid, signal.SIGUSR1)  # the shell gets it, too
    run = finish(job)
    assert run.code == 0, run.err
    assert log.read_text() == "requeue 7\n"
    assert f"AGAIN={EXIT_CODE} " in BATCH.read_text()
    saved = len(read_audit(tmp_path / "run"))
    again = finish(slurm(words("fit", options | {"trainer.max_steps": saved + 3})[1:]))
    assert again.code == 0, again.err
    assert "resuming from" in again.err
    assert log.read_text() == "requeue 7\n"
    assert len(read_audit(tmp_path / "run")) == saved + 3
    assert (tmp_path / "run" / "bundle").is_dir()


def test_a_job_that_fails_is_not_queued_again(slurm, tmp_path):
    run = finish(slurm(["--config", str(tmp_path / "none.yaml")]))
    assert run.code == 2
    assert "none.yaml" in run.err
    assert not (tmp_path / "bin" / "scontrol.log").exists()


def test_the_script_starts_as_many_processes_as_the_config_counts():
    """--ntasks-per-node and --gpus-per-node agree, and `fit` is told of both numbers."""
    lines = BATCH.read_text().splitlines()
    given = dict(
        line[10:].split("=", 1) for line in lines if line.startswith("#SBATCH --") if "=" in line
    )
    assert given["ntasks-per-node"] == given["gpus-per-node"]
    assert given["signal"].startswith("USR1@")
    text = BATCH.read_text()
    assert '--trainer.devices "${SLURM_NTASKS_PER_NODE' in text
    assert '--trainer.num_nodes "${SLURM_JOB_NUM_NODES' in text


# Kubernetes.


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def as_read(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest as Kubeflow's own models read it; what they do not know gets lost."""
    model = getattr(kubeflow, f"TrainerV1alpha1{manifest['kind']}")
    read: dict[str, Any] = model.from_dict(manifest).to_dict()
    return read


def test_kubeflow_understands_every_word_of_the_manifest():
    assert [m["kind"] for m in manifests()] == ["TrainingRuntime", "TrainJob"]
    for manifest in manifests():
        assert as_read(manifest) == manifest


def test_the_check_of_the_manifest_can_fail():
    runtime, job = manifests()
    job["spec"]["trainer"]["nodes"] = 2
    assert as_read(job) != job
    job["spec"]["trainer"]["numNodes"] = "two"
    with pytest.raises(ValueError, match="numNodes"):
        as_read(job)
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    node["template"]["spec"]["template"]["spec"]["containers"][0]["image"] = 3
    with pytest.raises(ValueError, match="image"):
        as_read(runtime)


def test_the_manifest_counts_as_the_command_does():
    runtime, job = manifests()
    trainer = job["spec"]["trainer"]
    said = dict(arg[2:].split("=", 1) for arg in trainer["args"][1:])
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert int(said["trainer.num_nodes"]) == trainer["numNodes"]
    assert int(said["trainer.devices"]) == trainer["numProcPerNode"]
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == said["trainer.devices"]
    assert said["ckpt_path"] == "last"


# Several machines: two launchers that know each other by an address alone.


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def machines(options: list[str], port: int) -> list[subprocess.Popen[str]]:
    """torchrun on two machines, told of each other as Kubeflow does."""
    path = os.pathsep.join(p for p in (str(TESTS), os.environ.get("PYTHONPATH")) if p)
    shared = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1"}
    shared |= {"PET_MASTER_PORT": str(port), "PYTHONPATH": path}
    command = [sys.executable, "-m", "torch.distributed.run", "-m", "ptft_lightning", *options]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT, **shared, "PET_NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in (0, 1)
    ]


@pytest.fixture(scope="module")
def steady() -> dict[str, Any]:
    """Without dropout, whose seed holds the rank."""
    shape = {"dim": 32, "depth": 2, "heads": 2, "max_length": 32, "causal": True}
    return {"model.backbone": shape}


def test_two_machines_are_one(store, bpe_path, tmp_path, steady):
    one = pretrain(tmp_path / "one", store, bpe_path, trainer__max_steps=4) | steady
    two = pretrain(tmp_path / "two", store, bpe_path, trainer__max_steps=4) | steady
    two |= {"trainer.num_nodes": 2, "trainer.devices": 1, "trainer.strategy": "fsdp2"}
    started = machines(words("fit", two), free_port())
    done(words("fit", one))
    runs: list[Run] = [finish(process) for process in started]
    assert [run.code for run in runs] == [0, 0], runs[0].err + runs[1].err
    assert read_audit(tmp_path / "one") == read_audit(tmp_path / "two")
    losses = [[float(r["train_loss"]) for r in read_metrics(tmp_path / n)] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert weights(tmp_path / "one").keys() == weights(tmp_path / "two").keys()
    assert "done: " in runs[0].err
    assert "done: " not in runs[1].err  # rank 0 speaks for all


def test_a_lost_machine_ends_the_job(store, bpe_path, tmp_path, steady):
    """The other one does not hang, and says why it ended."""
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__max_steps=100_000) | steady
    options |= {"trainer.num_nodes": 2, "trainer.devices": 1, "trainer.strategy": "ddp"}
    first, second = machines(words("fit", options), free_port())
    wait_for_lines(first, tmp_path / "run" / "audit", 2)
    worker = child_of(second)  # in a process group of its own
    for lost in (second.pid, worker):
        os.kill(lost, signal.SIGKILL)
    run = finish(first, timeout=90)
    assert run.code not in (0, EXIT_CODE)
    assert "rank" in run.err
    second.communicate()
