"""What a store's size costs: opening its manifest, placing samples, seeking; a table in markdown.

Manifests without shards are written: nothing here reads a token. Each size is measured in a process
of its own, so that memory is that of this size alone.

    python benchmarks/scaling.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ptft_lightning.data.manifest import FORMAT, Manifest, Shard, read_manifest, write_manifest
from ptft_lightning.data.sample_order import Order

SHARD_TOKENS = 10**7
LENGTH, BATCH, STEPS = 1024, 32, 2000


def megabytes() -> float:
    """Resident now; the peak would be that of the parent."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def write_store(folder: Path, tokens: int) -> None:
    count, size = max(1, tokens // SHARD_TOKENS), min(tokens, SHARD_TOKENS)
    shards = [
        Shard(f"train-{i:05d}", size, size // 500, 4 * size, f"{i:016x}") for i in range(count)
    ]
    held = [Shard(f"validation-{i:05d}", 0, 0, 0, f"{i:016x}") for i in range(count)]
    manifest = Manifest(FORMAT, "t", "uint16", True, {}, 0, [], shards, held)
    write_manifest(folder, manifest)


def measure(folder: str) -> dict[str, float]:
    before, began = megabytes(), time.perf_counter()
    shards = [shard for shard in read_manifest(folder).train if shard.tokens]
    rows = tuple(-(-shard.tokens // LENGTH) for shard in shards)
    order = Order(rows, seed=0)
    found = {"shards": len(shards), "open_s": time.perf_counter() - began}
    began = time.perf_counter()
    order.place(np.arange(10 * order.rows // 3, 10 * order.rows // 3 + BATCH))
    found["seek_s"] = time.perf_counter() - began
    order = Order(rows, seed=0)
    first = order.rows // 3
    began = time.perf_counter()
    for step in range(STEPS):
        order.place(np.arange(first + step * BATCH, first + (step + 1) * BATCH))
    found["place_us"] = (time.perf_counter() - began) / STEPS / BATCH * 1e6
    middle = megabytes()
    for step in range(STEPS):
        order.place(np.arange(first + step * BATCH, first + (step + 1) * BATCH))
    return found | {"memory_mb": middle - before, "growth_mb": megabytes() - middle}


def run() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    print("| tokens | shards | open, s | memory, MB | seek, s | place, us a sample | growth, MB |")
    print("|---|---|---|---|---|---|---|")
    for power in range(6, 13):
        with tempfile.TemporaryDirectory() as folder:
            write_store(Path(folder), 10**power)
            words = [sys.executable, __file__, folder]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
        m = json.loads(done.stdout)
        print(
            f"| 1e{power} | {m['shards']:,} | {m['open_s']:.3f} | {m['memory_mb']:.0f} | "
            f"{m['seek_s']:.4f} | {m['place_us']:.1f} | {m['growth_mb']:.1f} |"
        )


if __name__ == "__main__":
    run()
