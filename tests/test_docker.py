"""docker/Dockerfile without Docker: what it runs is run here, so that it cannot rot."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
SYSTEM = ("apt-get", "useradd")  # steps that change the system


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of each instruction, comments left out and lines joined."""
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", text)
    return [(w, rest) for w, _, rest in (x.partition(" ") for x in joined.splitlines()) if w]


def all_of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def test_hadolint():
    hadolint = Path(sys.executable).with_name("hadolint")
    command = [hadolint, DOCKER / "Dockerfile"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_it_is_pinned_small_and_has_no_secrets():
    bases = [base.partition(" AS ")[0] for base in all_of("FROM")]
    assert bases == ["${BASE_IMAGE}"] * 2
    (image,) = (a.partition("=")[2] for a in all_of("ARG") if a.startswith("BASE_IMAGE="))
    assert re.search(r":\d+\.\d+", image)
    assert not image.endswith("latest")
    for run in all_of("RUN"):
        assert ("apt-get" in run) == ("rm -rf /var/lib/apt/lists/*" in run)
        assert ("pip install" in run) == ("--no-cache-dir" in run)
    user = [rest for word, rest in instructions() if word in ("USER", "ENTRYPOINT")]
    assert user[0] == "${USER_ID}"  # before anything is started
    words = " ".join(all_of("ARG") + all_of("ENV")).upper()
    assert [w for w in ("TOKEN", "PASSWORD", "SECRET", "API_KEY") if w in words] == []


def test_what_is_copied_reaches_docker_and_nothing_else_does():
    """`.dockerignore` ignores all but what COPY names."""
    kept = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = {s for c in all_of("COPY") if "--from" not in c for s in shlex.split(c)[:-1]}
    assert copied == set(kept)
    assert [source for source in copied if not (ROOT / source).exists()] == []


def copy(source: str, target: Path) -> None:
    """As Docker does, a folder's content; without what `.dockerignore` leaves out."""
    if (ROOT / source).is_dir():
        ignored = shutil.ignore_patterns("__pycache__", "*.py[cod]")
        shutil.copytree(ROOT / source, target, ignore=ignored, dirs_exist_ok=True)
    else:
        shutil.copy(ROOT / source, target)


class Rehearsal:
    """The Dockerfile's steps, with a directory for the image's root."""

    def __init__(self, root: Path, python: str, environment: dict[str, str]) -> None:
        self.root, self.python, self.here = root, python, root
        self.environment = {
            k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        self.environment |= environment
        self.skipped: list[str] = []

    def place(self, text: str) -> str:
        """The image's paths under our root."""
        return re.sub(r"(?<![\w/}])/(opt|workspace|home)\b", rf"{self.root}/\1", text)

    def play(self) -> None:
        for word, rest in instructions():
            if word == "RUN":
                self.run(rest)
            elif word == "WORKDIR":
                self.here = Path(self.place(rest))
                self.here.mkdir(parents=True, exist_ok=True)
            elif word == "COPY" and "--from" not in rest:
                *sources, target = shlex.split(rest)
                for source in sources:
                    copy(source, self.here / target)
            elif word == "ENV":
                for name, value in (pair.split("=", 1) for pair in shlex.split(rest)):
                    old = self.environment.get("PATH", "")
                    self.environment[name] = self.place(value).replace("$PATH", old)

    def run(self, command: str) -> str:
        """As the shell of Docker does; steps that change the system are parsed alone."""
        if any(word in command for word in SYSTEM):
            subprocess.run(["sh", "-n", "-c", command], check=True)
            self.skipped.append(command)
            return ""
        command = self.place(command).replace("python3 -m venv", f"{self.python} -m venv")
        return self.call(["sh", "-c", command])

    def call(self, command: list[str]) -> str:
        run = subprocess.run(
            command,
            cwd=self.here,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
        return run.stdout


def ends_as_it_should(rehearsal: Rehearsal) -> None:
    """ENTRYPOINT and CMD work with the package that was installed, no other."""
    (entry,), (said,) = all_of("ENTRYPOINT"), all_of("CMD")
    assert "  fit " in rehearsal.call([*json.loads(entry), *json.loads(said)])
    where = "import ptft_lightning as p; print(p.__file__)"
    assert rehearsal.call(["python", "-c", where]).startswith(str(rehearsal.root / "opt" / "venv"))
    rehearsal.call(
        [*json.loads(entry), "doctor", "--run_dir", str(rehearsal.root), "--run", "false"]
    )
    assert len(rehearsal.skipped) == 3


def test_the_steps_run_with_the_dependencies_that_are_here(tmp_path):
    """Nothing is downloaded: the environment of the tests lends its packages."""
    quick = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}
    rehearsal = Rehearsal(tmp_path, sys.executable, quick)
    rehearsal.environment["PYTHONPATH"] = sysconfig.get_path("purelib")
    rehearsal.play()
    ends_as_it_should(rehearsal)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_steps_run_from_nothing(tmp_path):
    rehearsal = Rehearsal(tmp_path, sys.executable, {})
    rehearsal.play()
    ends_as_it_should(rehearsal)


def test_compose_names_what_the_dockerfile_has():
    compose: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    arguments = {a.partition("=")[0] for a in all_of("ARG")}
    assert set(compose["services"]) == {"cpu", "gpu"}
    for service in compose["services"].values():
        build = service["build"]
        assert set(build["args"]) <= arguments
        assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
        assert service["volumes"] == ["${PWD:-.}:/workspace"]
        assert "/workspace" in all_of("WORKDIR")
        assert service["shm_size"] == "8gb"
        assert not any(
            "=" in variable for variable in service["environment"]
        )  # no value, no secret
    cpu = compose["services"]["cpu"]["build"]["args"]
    assert not fnmatch.fnmatch(cpu["BASE_IMAGE"], "*cuda*")
