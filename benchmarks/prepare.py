"""What preparing costs beside bare tokenization, and reading rows beside `datasets`.

`prepare`: the documents of a .jsonl file through `tokenizers`' `encode_batch_fast`, held in memory,
ids thrown away, on all cores; and `prepare` from the file to a finished store on the same cores, by
one process with threads and by a process for each core, their start included. In turns in one run;
medians of wall time, and of CPU time (which other work on the machine disturbs less).

`read`: rows of 1,024 tokens, 16 at a time, no workers, in shuffled order: `RowDataset` with causal
targets (all that training reads, bounds of documents included), `Rows.read` alone, and a `datasets`
data set of the same rows in torch format (`input_ids` alone) behind a DataLoader.

    python benchmarks/prepare.py --files corpus.jsonl --tokenizer tokenizer
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ptft_lightning.data.plan import UNIT_BYTES
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.workers import available_cores

LENGTH, BATCH = 1024, 16
BARE = 2048  # documents a call


def cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def in_turns(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each; the first turn is thrown away."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            began, spent = time.perf_counter(), cpu()
            way()
            seconds[name].append((time.perf_counter() - began, cpu() - spent))
    return {
        name: (statistics.median(w for w, _ in s[1:]), statistics.median(c for _, c in s[1:]))
        for name, s in seconds.items()
    }


def measure_prepare(file: str, tokenizer: Tokenizer, folder: Path, repeats: int) -> dict[str, Any]:
    with open(file, encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    size = sum(len(text.encode()) for text in texts) / 1e6
    cores = available_cores()

    def bare() -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        for i in range(0, len(texts), BARE):
            tokenizer.raw.encode_batch_fast(texts[i : i + BARE], add_special_tokens=False)

    def prepare(workers: int) -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        unit = UNIT_BYTES
        if workers > 1:  # so that the last are not waited for long
            unit = -(-os.path.getsize(file) // (32 * cores))
        prepare_store([file], tokenizer, folder / "store", unit_bytes=unit, workers=workers)

    ways = {
        "bare": bare,
        "1 worker": lambda: prepare(1),
        f"{cores} workers": lambda: prepare(cores),
    }
    found: dict[str, Any] = {"MB": size, "documents": len(texts), "cores": cores}
    for name, (wall, spent) in in_turns(ways, repeats).items():
        found[name] = {"MB/s": size / wall, "CPU s/MB": spent / size}
    return found


def measure_read(tokenizer: Tokenizer, folder: Path, repeats: int) -> dict[str, Any]:
    # Here, because the processes that prepare import this file, too.
    from torch.utils.data import DataLoader

    from ptft_lightning.data.row_batches import RowDataset
    from ptft_lightning.data.rows import Rows
    from ptft_lightning.data.steps import Slots
    from ptft_lightning.data.token_store import TokenStore
    from ptft_lightning.objectives.causal import CausalLM

    store = TokenStore(folder / "store", "train")
    rows = Rows(store, "blocks", LENGTH, tokenizer.pad, 0, 16, shuffle=True)
    count = len(rows) // BATCH
    numbers = np.arange(count * BATCH).reshape(-1, BATCH)
    slots = [Slots(n, n) for n in numbers]
    ours = DataLoader(RowDataset(rows, CausalLM(), tokenizer, 0, audit=False), None, sampler=slots)

    def consume(batches: Any) -> Callable[[], None]:
        def run() -> None:
            for _ in batches:
                pass

        return run

    ways = {
        "RowDataset": consume(ours),
        "Rows.read": lambda: [rows.read(n) for n in numbers],
    }
    try:
        from datasets import Dataset
    except ImportError:
        pass
    else:
        table = rows.read(np.arange(count * BATCH))[0][:, :-1]
        data = Dataset.from_dict({"input_ids": table.astype(np.int32)})
        data.save_to_disk(str(folder / "datasets"))
        data = Dataset.load_from_disk(str(folder / "datasets")).with_format("torch")
        ways["datasets"] = consume(DataLoader(data, BATCH, shuffle=True))
    tokens = count * BATCH * LENGTH
    return {
        name: {"M tokens/s": tokens / wall / 1e6, "of CPU": tokens / spent / 1e6}
        for name, (wall, spent) in in_turns(ways, repeats).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", nargs="+", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["prepare", "read"])
    options = parser.parse_args()
    tokenizer = Tokenizer.load(options.tokenizer)
    for file in options.files:
        with tempfile.TemporaryDirectory() as name:
            found: dict[str, Any] = {"file": file}
            if options.only == "read":
                prepare_store([file], tokenizer, Path(name) / "store")
            else:
                found["prepare"] = measure_prepare(file, tokenizer, Path(name), options.repeats)
            if options.only != "prepare":
                found["read"] = measure_read(tokenizer, Path(name), options.repeats)
        print(json.dumps(found, default=float))


if __name__ == "__main__":
    main()
