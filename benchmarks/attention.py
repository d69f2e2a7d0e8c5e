"""Attention kernels on the CPU: plain batched products against torch SDPA, forward and backward.

The table in `ptft_lightning/backbones/attention.py` follows from this. Prints milliseconds (median)
for the same number of tokens at each length, with the mask of packed rows.

    python benchmarks/attention.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ptft_lightning.backbones.attention import _plain, attention_mask

TOKENS, HEADS, WIDTH, REPEATS = 4096, 6, 64, 9


def median_ms(work: Callable[[], None]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def main() -> None:
    print(f"{'dtype':10} {'length':>6} {'plain':>8} {'sdpa':>8}")
    for dtype in (torch.float32, torch.bfloat16):
        for length in (64, 128, 256, 512, 1024):
            rows = TOKENS // length
            shape = (rows, HEADS, length, WIDTH)
            q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
            documents = (torch.arange(length) // 40 + 1).expand(rows, length)
            mask = attention_mask(documents, False, dtype, (length, length))

            def plain() -> None:
                _plain(q, k, v, mask, False, 0.0).sum().backward()  # noqa: B023

            def sdpa() -> None:
                F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()  # noqa: B023

            name = str(dtype).removeprefix("torch.")
            print(f"{name:10} {length:6} {median_ms(plain):8.1f} {median_ms(sdpa):8.1f}")


if __name__ == "__main__":
    main()
