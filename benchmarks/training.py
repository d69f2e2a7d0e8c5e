"""Training throughput of three workloads through `fit`, as one JSON line.

| workload | what | small (CPU) | base (GPU) |
|---|---|---|---|
| W1 | causal LM, GPT-2-like | 6 layers, 384 wide, 16 x 256 tokens | 12, 768, 32 x 1024 |
| W2 | masked LM, BERT-like | 6 layers, 384 wide, 32 x 128 tokens | 12, 768, 64 x 512 |
| W3 | classification, lengths lognormal around 30 | 6 layers, 384 wide, 32 texts | 12, 768, 64 |

The whole product is timed: the store, the loader, masking, packing, attention masks between
documents, clipping, logging. A hook after each `optimizer.step()` takes the time. W3 counts real
tokens. `tokens_per_s` is over the median step (W3: all real tokens over all time).

    python benchmarks/training.py --workload W1 --steps 20 --dtype bf16
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.optim.optimizer import register_optimizer_step_post_hook

from ptft_lightning.cli import main
from ptft_lightning.commands import train
from ptft_lightning.data.manifest import FORMAT, Manifest, write_manifest
from ptft_lightning.data.token_store import write_shard
from ptft_lightning.data.tokenizer import Tokenizer as Loaded

SIZES = {
    "small": {"W1": (6, 384, 6, 256, 16), "W2": (6, 384, 6, 128, 32), "W3": (6, 384, 6, 128, 32)},
    "base": {
        "W1": (12, 768, 12, 1024, 32),
        "W2": (12, 768, 12, 512, 64),
        "W3": (12, 768, 12, 128, 64),
    },
}
VOCABULARY = 8192
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class Stop(BaseException):
    """Ends a run when enough steps were timed."""


class Clock:
    """Wall and CPU time after each optimizer step."""

    def __init__(self, steps: int, warmup: int, cuda: bool) -> None:
        self.steps, self.warmup, self.cuda = steps, warmup, cuda
        self.count = 0
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.parameters = 0
        register_optimizer_step_post_hook(self.tick)

    def tick(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.count += 1
        if self.count < self.warmup:
            return
        if self.cuda:
            torch.cuda.synchronize()
        if not self.wall:
            groups = optimizer.param_groups
            self.parameters = sum(p.numel() for g in groups for p in g["params"])
            self.machine = machine_busy(), own_busy()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if len(self.wall) > self.steps:
            self.foreign = machine_busy() - self.machine[0] - (own_busy() - self.machine[1])
            raise Stop


def machine_busy() -> float:
    """Seconds all cores were busy since the machine started."""
    line = Path("/proc/stat").read_text().splitlines()[0]
    fields = [int(x) for x in line.split()[1:9]]
    return (sum(fields) - fields[3] - fields[4] - fields[7]) / os.sysconf("SC_CLK_TCK")


def own_busy() -> float:
    """CPU seconds of this process and its children."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def write_tokenizer(directory: Path) -> Loaded:
    """A word-level tokenizer of VOCABULARY ids: words are `t5` .. `t8191`."""
    ids = {name: i for i, name in enumerate(SPECIALS)}
    ids |= {f"t{i}": i for i in range(len(SPECIALS), VOCABULARY)}
    raw = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(SPECIALS)
    tokenizer = Loaded(raw.to_str())
    tokenizer.save(directory)
    return tokenizer


def write_store(directory: Path, tokenizer: Loaded, tokens: int, file: str | None) -> None:
    """Documents around 400 tokens; ids from a uint16 file (0 ends a document) or random."""
    rng = np.random.default_rng(0)
    if file is not None:
        ids = np.fromfile(file, np.uint16)[:tokens]
        ends = np.flatnonzero(ids == 0) + 1
        ids = np.where(ids == 0, tokenizer.end, np.maximum(ids, len(SPECIALS))).astype(np.uint16)
    else:
        ids = rng.integers(len(SPECIALS), VOCABULARY, tokens).astype(np.uint16)
        lengths = np.maximum(4, rng.lognormal(5.5, 1.0, tokens // 100).astype(np.int64))
        ends = np.cumsum(lengths)
        ends = ends[ends < tokens]
    ends = np.append(ends[ends < len(ids)], len(ids)).astype(np.int64)
    directory.mkdir(parents=True)
    shard = write_shard(directory, "train-00000", ids, ends, len(ids) * 4)
    manifest = Manifest(FORMAT, tokenizer.fingerprint, "uint16", False, {}, 0, [], [shard], [])
    write_manifest(directory, manifest)


def write_examples(file: Path, count: int, length: int) -> list[int]:
    """Labelled texts whose lengths in tokens are lognormal with mean 30; returns the lengths."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.round(rng.lognormal(np.log(30) - 0.7**2 / 2, 0.7, count)), 4, length)
    with open(file, "w") as stream:
        for n in lengths.astype(int):
            words = " ".join(f"t{i}" for i in rng.integers(len(SPECIALS), VOCABULARY, n - 2))
            stream.write(json.dumps({"text": words, "label": str(rng.integers(2))}) + "\n")
    return [int(n) for n in lengths]


def arguments_of(options: argparse.Namespace, folder: Path, batches: int) -> list[str]:
    """The words of the `fit` command."""
    depth, dim, heads, length, batch = SIZES[options.size][options.workload]
    tokenizer = write_tokenizer(folder)
    shape = {"dim": dim, "depth": depth, "heads": heads, "max_length": length}
    gpt = {"causal": True, "positions": "learned", "activation": "gelu_tanh"}
    bert = {"norm_first": False, "positions": "learned", "token_types": 2, "embedding_norm": True}
    backbone = shape | (gpt if options.workload == "W1" else bert)
    optimizer = {"lr": 6e-4, "weight_decay": 0.1, "betas": [0.9, 0.95]}
    data: dict[str, Any] = {"tokenizer": str(folder), "global_batch_size": batch}
    data |= {"micro_batch_size": options.micro or batch, "workers": options.workers}
    model: dict[str, Any] = {"backbone": backbone, "optimizer": optimizer}
    model["compile_layers"] = options.compile
    if options.workload == "W3":
        write_examples(folder / "train.jsonl", batches * batch, length)
        data |= {
            "train": str(folder / "train.jsonl"),
            "max_length": length,
            "validation_share": 0.0,
        }
        classes = "FinetuneModule", "TaskDataModule"
        model["task"] = {"class_path": "Classification", "init_args": {"pooling": "first"}}
    else:
        write_store(folder / "store", tokenizer, batches * batch * length, options.tokens)
        data |= {"store": str(folder / "store"), "length": length}
        classes = "PretrainModule", "CorpusDataModule"
        model["objective"] = "CausalLM" if options.workload == "W1" else "MaskedLM"
    config = {
        "model": {"class_path": classes[0], "init_args": model},
        "data": {"class_path": classes[1], "init_args": data},
        "trainer": {
            "max_steps": batches,
            "accelerator": "gpu" if options.device == "cuda" else "cpu",
            "devices": 1,
            "precision": "bf16-mixed" if options.dtype == "bf16" else "32-true",
            "log_every_n_steps": 10,
        },
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    return ["fit", "--config", str(folder / "config.yaml"), "--run_dir", str(folder / "run")]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the workload until the clock stops it."""
    depth, dim, heads, length, batch = SIZES[options.size][options.workload]
    clock = Clock(options.steps, options.warmup, options.device == "cuda")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = arguments_of(options, folder, options.steps + options.warmup + 4)
        real = count_real_tokens() if options.workload == "W3" else None
        with contextlib.suppress(Stop):
            main(words)
    steps = np.diff(clock.wall)
    median, cpu = float(np.median(steps)), float(np.median(np.diff(clock.cpu)))
    tokens = batch * length
    rate = tokens / median
    if real is not None:
        seen = sum(real[options.warmup : options.warmup + len(steps)])
        rate, tokens = seen / float(steps.sum()), round(seen / len(steps))
        cpu = float(np.diff(clock.cpu).mean())
    return {
        "peer": "ptft_lightning",
        "workload": options.workload,
        "dtype": options.dtype,
        "compiled": options.compile,
        "device": options.device,
        "params": clock.parameters,
        "shape": {"L": depth, "d": dim, "h": heads, "T": length, "B": batch},
        "steps_measured": len(steps),
        "threads": torch.get_num_threads(),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "foreign_cores": round(max(0.0, clock.foreign) / (clock.wall[-1] - clock.wall[0]), 2),
        "ms_per_step": round(median * 1e3, 2),
        "ms_min": round(float(steps.min()) * 1e3, 2),
        "ms_max": round(float(steps.max()) * 1e3, 2),
        "tokens_per_cpu_s": round(tokens / cpu, 1),
        "tokens_per_s": round(rate, 1),
    }


def count_real_tokens() -> list[int]:
    """Note the tokens of each micro-batch (W3 has one per step) as it is trained on."""
    from ptft_lightning.modules.meter import Meter

    seen: list[int] = []
    add = Meter.add

    def noting(self: Meter, output: Any, batch: Any) -> None:
        seen.append(batch.real_tokens)
        add(self, output, batch)

    Meter.add = noting  # type: ignore[method-assign]
    return seen


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workload", choices=["W1", "W2", "W3"], required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--micro", type=int, help="micro-batch size (default: the whole batch)")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--plain-malloc", action="store_true", help="without modules/cpu_memory.py, for comparison"
    )
    parser.add_argument("--tokens", help="a uint16 file of token ids instead of random ones")
    return parser.parse_args()


if __name__ == "__main__":
    options = parse()
    if options.plain_malloc:
        train.keep_freed_memory = lambda: None
    if options.threads:
        torch.set_num_threads(options.threads)
    os.environ["WANDB_MODE"] = "disabled"
    # What `fit` prints goes to standard error; the one JSON line is all of standard output.
    real_stdout = os.dup(1)
    os.dup2(2, 1)
    line = json.dumps(measure(options)) + "\n"
    os.write(real_stdout, line.encode())
    sys.stderr.flush()
