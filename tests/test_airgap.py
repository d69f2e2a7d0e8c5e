"""Both phases with the network cut off: no process of ours asks anything outside this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from faults.kit import finetune, finish, launch, pretrain, words, write_examples

# Found by every Python process as it starts; child processes inherit it through PYTHONPATH.
CUT = textwrap.dedent(
    """
    import ipaddress, os, socket

    FAMILIES = (socket.AF_INET, socket.AF_INET6)

    def refuse(place):
        with open(os.environ["ASKED"], "a") as stream:
            stream.write(f"{place}\\n")
        raise OSError(101, f"the network is cut off: {place}")

    def is_here(host):
        if host in ("", "localhost", socket.gethostname()):
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    class Socket(socket.socket):
        def connect(self, address):
            if self.family in FAMILIES and not is_here(address[0]):
                refuse(address)
            return super().connect(address)

        def connect_ex(self, address):
            if self.family in FAMILIES and not is_here(address[0]):
                refuse(address)
            return super().connect_ex(address)

    find = socket.getaddrinfo

    def getaddrinfo(host, *args, **more):
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and not is_here(name):
            refuse(name)
        return find(host, *args, **more)

    socket.socket, socket.getaddrinfo = Socket, getaddrinfo
    """
)


@pytest.fixture
def offline(tmp_path: Path) -> dict[str, str]:
    """The environment of a process without a network; what it asked for is noted in a file."""
    at = tmp_path / "cut"
    at.mkdir()
    (at / "sitecustomize.py").write_text(CUT)
    path = [str(at), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    asked = str(tmp_path / "asked")
    return {
        "PYTHONPATH": os.pathsep.join(p for p in path if p),
        "ASKED": asked,
        "WANDB_MODE": "offline",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(tmp_path),
    }


def test_the_cut_cuts(offline, tmp_path):
    """Else the test below would show nothing."""
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the network is cut off" in run.stderr
    assert "192.0.2.1" in (tmp_path / "asked").read_text()
    server = socket.create_server(("127.0.0.1", 0))
    code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **offline}, check=True)
    server.close()


def test_both_phases(offline, corpus_file, bpe_path, tmp_path):
    """W&B in its default mode, a store made on the way, loader workers, two ranks."""
    at = write_examples(tmp_path)
    one = pretrain(at / "one", at / "store", bpe_path, trainer__max_steps=2)
    one |= {"data.files": [str(corpus_file)], "data.workers": 1}
    two = finetune(at / "two", at / "one", at, trainer__max_epochs=1)
    two |= {"trainer.devices": 2, "trainer.strategy": "ddp"}
    used = {"run_dir": str(at / "two"), "text": "the old river"}
    for options in (words("fit", one), words("fit", two), words("predict", used)):
        run = finish(launch(options, **offline))
        assert run.code == 0, run.err
    assert run.out.strip()
    assert list((at / "one" / "wandb").glob("offline-run-*"))
    assert not (tmp_path / "asked").exists(), (tmp_path / "asked").read_text()
