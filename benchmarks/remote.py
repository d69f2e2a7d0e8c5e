"""How long training waits for shards that come from an object store of a given bandwidth.

A token store is copied into an object store on loopback (moto's, of the extra `dev`) behind a proxy
that passes so many megabytes a second on, all requests together; a small model trains from there.
Prints the tokens/s and the share of time it waited (`data_stall`) of each logged stretch, the first
of which has the fetching of the first window in it.

    python benchmarks/remote.py --store STORE --tokenizer TOKENIZER --bandwidth 2 --out runs/remote
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fsspec

from ptft_lightning.cli import main

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from faults.object_store import Handler, Proxy, object_store

CHUNK = 2**14


class Line:
    """What all requests share: at most `rate` bytes a second."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free, self.lock = rate, 0.0, threading.Lock()

    def wait(self, count: int) -> None:
        with self.lock:
            begin = max(self.free, time.monotonic())
            self.free = begin + count / self.rate
        time.sleep(max(0.0, self.free - time.monotonic()))


class Slow(Handler):
    """A request whose answer takes its time."""

    line: Line

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        for start in range(0, len(body), CHUNK):
            self.line.wait(len(body[start : start + CHUNK]))
        super().answer(status, headers, body)


def train(args: argparse.Namespace, store: str) -> None:
    words: dict[str, Any] = {
        "run_dir": str(args.out / "run"),
        "model": "PretrainModule",
        "model.objective": "CausalLM",
        "model.backbone": f"{{dim: {args.dim}, depth: 1, heads: 2, max_length: 256, causal: true}}",
        "data": "CorpusDataModule",
        "data.store": store,
        "data.tokenizer": args.tokenizer,
        "data.length": 256,
        "data.window": args.window,
        "data.workers": args.workers,
        "data.cache.directory": str(args.out / "cache"),
        "data.cache.gigabytes": args.gigabytes,
        "data.global_batch_size": 16,
        "data.micro_batch_size": 16,
        "trainer.max_steps": args.steps,
        "trainer.log_every_n_steps": max(1, args.steps // 10),
        "trainer.precision": "32-true",
        "report": "false",
        "samples.count": 0,
    }
    with contextlib.redirect_stderr(io.StringIO()):
        main(["fit", *(word for k, v in words.items() for word in (f"--{k}", str(v)))])


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", type=Path, required=True, help="made anew")
    parser.add_argument("--bandwidth", type=float, default=2.0, help="megabytes a second")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "none")
    os.environ |= {"WANDB_MODE": "disabled", "AWS_DEFAULT_REGION": "us-east-1", **keys}
    with object_store() as server:
        system = fsspec.filesystem("s3", endpoint_url=server)
        system.mkdirs("bucket", exist_ok=True)
        system.put(f"{args.store}/", "bucket/store/", recursive=True)
        Slow.line = Line(args.bandwidth * 1e6)
        proxy = Proxy(server)
        proxy.RequestHandlerClass = Slow
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        fsspec.config.conf["s3"] = {"endpoint_url": proxy.url}
        train(args, "s3://bucket/store")
        proxy.shutdown()
    fetched = {path for path in proxy.asked if ".tokens.npy" in path}
    print(f"{len(fetched)} shards fetched at {args.bandwidth} MB/s")
    print("| step | tokens/s | waited |\n|---|---|---|")
    with open(args.out / "run" / "metrics.csv", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["data_stall"]:
                cells = row["step"], f"{float(row['tokens_per_s']):.0f}"
                print(f"| {' | '.join(cells)} | {float(row['data_stall']):.2%} |")


if __name__ == "__main__":
    run()
