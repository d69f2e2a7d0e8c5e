"""`doctor` runs both phases on this machine, and has a sentence for each thing that is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
import torch
from faults.kit import Run, call

from ptft_lightning.commands import doctor_devices, doctor_run

Usage = namedtuple("Usage", "total used free")


def look(run_dir: Path, **environment: str) -> Run:
    """Without the tiny run."""
    return call(["doctor", "--run_dir", str(run_dir), "--run", "false"], **environment)


def lines(run: Run, level: str) -> list[str]:
    return [line for line in run.out.splitlines() if line.startswith(f"{level}: ")]


def test_both_phases_run_here_and_leave_nothing(tmp_path):
    run = call(["doctor", "--run_dir", str(tmp_path)])
    assert run.code == 0, run.out
    assert lines(run, "problem") == []
    assert "pretrained, fine-tuned and predicted in" in run.out
    assert run.out.endswith("ready to train\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["lightning", "pytorch-lightning"])
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_malware_is_named_and_never_imported(tmp_path, monkeypatch, package, version):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda p: version if p == package else real(p))
    run = look(tmp_path)
    assert run.code == 1
    (problem,) = lines(run, "problem")
    assert f"{package} {version} is malware" in problem
    assert f"{package}>=2.6.6" in problem
    assert len(run.out.splitlines()) == 2  # Python, then nothing was looked at any more
    code = "import sys, ptft_lightning.commands.doctor; print({*sys.modules} & {'torch', package})"
    code = code.replace("package", repr(package.replace("-", "_")))
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout == "set()\n"


def test_old_packages(tmp_path, monkeypatch):
    real = metadata.version
    needed = ["torch>=2.11,<3", "nowhere>=1", "pytest>=9; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda _: needed)
    monkeypatch.setattr(metadata, "version", lambda p: "2.4.0" if p == "torch" else real(p))
    run = look(tmp_path)
    assert run.code == 1
    assert [p.split(":")[1] for p in lines(run, "problem")] == [
        *(" torch 2.4.0 is not <3,>=2.11", " nowhere is missing"),
    ]


def test_an_old_python(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    run = look(tmp_path)
    assert run.code == 1
    assert lines(run, "problem") == ["problem: Python 3.9.1: 3.11 or newer is needed"]


def test_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 5 * 10**8))
    run = look(tmp_path)
    assert run.code == 1
    assert "0.5 GB free" in lines(run, "problem")[0]


def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    run = look(tmp_path / "file" / "runs")
    assert run.code == 1
    assert "cannot be written to (Not a directory): give another --run_dir" in run.out


def test_little_shared_memory(tmp_path, monkeypatch):
    real = shutil.disk_usage
    small = Usage(64 * 2**20, 0, 64 * 2**20)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: small if str(path) == "/dev/shm" else real(path)
    )
    run = look(tmp_path)
    assert run.code == 0
    assert any("--shm-size" in line for line in lines(run, "warning"))


def test_tracking(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    run = look(tmp_path, WANDB_MODE="online", WANDB_BASE_URL="https://wandb.example.org")
    assert run.code == 1
    assert "no key for https://wandb.example.org" in lines(run, "problem")[0]
    assert look(tmp_path, WANDB_MODE="online", WANDB_API_KEY="x").code == 0
    assert "W&B is offline" in look(tmp_path, WANDB_MODE="offline", HF_HUB_OFFLINE="1").out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_driver_without_a_build_of_torch_for_it(tmp_path, monkeypatch):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: 570\n")
    monkeypatch.setattr(doctor_devices, "DRIVER", driver)
    run = look(tmp_path)
    assert run.code == 1
    assert "an NVIDIA driver is here, but torch" in lines(run, "problem")[0]


def test_a_tiny_run_that_fails_is_told(tmp_path, monkeypatch):
    # An empty corpus: no tokenizer can be learned from it.
    monkeypatch.setattr(doctor_run, "write_files", lambda at: (at / "corpus.jsonl").write_text(""))
    run = call(["doctor", "--run_dir", str(tmp_path)])
    assert run.code == 1
    assert "the tiny run failed at tokenizer: error: " in lines(run, "problem")[0]
    assert run.out.endswith("1 problem(s): not ready to train\n")


def test_it_is_not_part_of_a_launch(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "7")
    kept = doctor_run.alone()
    assert "PATH" in kept
    assert [k for k in kept if os.environ.get(k) == "7"] == []
