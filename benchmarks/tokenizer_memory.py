"""Peak memory of `ptft_lightning tokenizer` per byte of text it learns from.

    python benchmarks/tokenizer_memory.py TEXT.jsonl.gz [--vocab_size 16384] [--mb 2 4 8]

For each kind and each amount of text one process is run; printed is what its peak resident set
exceeds that of a process with hardly any text by, divided by the bytes of text. The figures in
`ptft_lightning/commands/tokenizer.py` are the largest seen, rounded up.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = """
import re, sys
from ptft_lightning.cli import main
main(sys.argv[1:])
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def peak(file: Path, kind: str, vocab_size: int) -> tuple[float, float]:
    """Peak bytes and seconds of one run over all of `file`."""
    with tempfile.TemporaryDirectory() as directory:
        words = ["tokenizer", "--files", f"[{file}]", "--output", directory, "--kind", kind]
        words += ["--vocab_size", str(vocab_size), "--max_mb", "1e6"]
        began = time.monotonic()
        command = [sys.executable, "-c", CHILD, *words]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(run.stdout.split()[-1]) * 1024, time.monotonic() - began


def cut(text: Path, mb: float, target: Path) -> int:
    """The first `mb` megabytes of documents; returns their bytes."""
    size = 0
    opened = gzip.open if text.suffix == ".gz" else open
    with opened(text, "rt", encoding="utf-8") as source, open(target, "w") as out:
        for line in source:
            document = json.loads(line)["text"]
            out.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
            size += len(document.encode())
            if size >= mb * 1e6:
                break
    return size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("--vocab_size", type=int, default=16384)
    parser.add_argument("--mb", type=float, nargs="+", default=[2, 4, 8])
    parser.add_argument("--kinds", nargs="+", default=["bpe", "wordpiece", "unigram"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "text.jsonl"
        for kind, mb in itertools.product(options.kinds, [0.02, *options.mb]):
            size = cut(options.text, mb, file)
            used, seconds = peak(file, kind, options.vocab_size)
            if mb == 0.02:
                base = used
                print(f"{kind}: {base / 1e6:.0f} MB with {size} bytes of text", flush=True)
                continue
            print(
                f"{kind}: {size / 1e6:.1f} MB of text, {used / 1e6:.0f} MB peak, "
                f"{(used - base) / size:.1f} bytes a byte, {seconds:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
