"""How much memory a rank takes to get its part of a bundle; a script for ranks.

`torchrun -m ranks.memory BUNDLE OUT` writes for each rank, as OUT-RANK.json: the bytes of the whole
model, of the rank's part, of the largest tensor, and the most that the process grew by meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor, init_device_mesh

from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.modules.nets import TaskNet, build_backbone, fill, shard
from ptft_lightning.tasks.classification import Classification


def anonymous() -> int:
    """Bytes of memory that belong to this process alone; pages of mapped files are not among
    them."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class Watch(threading.Thread):
    """The most there was while it ran."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.over = 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.0005):
            self.most = max(self.most, anonymous())


def load(path: str) -> dict[str, int]:
    """Build, shard and fill a net of phase two from a bundle."""
    bundle = open_bundle(path)
    with torch.device("meta"):
        backbone = build_backbone(**bundle.config["backbone"])
        head = Classification().build_head(backbone, ["a", "b"])
        net = TaskNet(backbone, head)
    shard(net, init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    names = set(bundle.names())
    before, watch = anonymous(), Watch()
    watch.start()
    fill(net, torch.device("cpu"), lambda n: bundle.tensor(n) if n in names else None, seed=0)
    watch.over.set()
    watch.join()
    parameters = list(net.parameters())
    mine = sum(p.to_local().nbytes for p in parameters if isinstance(p, DTensor))
    assert all(isinstance(p, DTensor) for p in parameters)
    return {
        "whole": sum(p.nbytes for p in parameters),
        "part": mine,
        "largest": max(p.nbytes for p in parameters),
        "grew": watch.most - before,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    found = load(sys.argv[1])
    Path(f"{sys.argv[2]}-{os.environ['RANK']}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
