"""What a device multiplies in a second, measured."""

from __future__ import annotations

import time

import torch

SIDES = {"cuda": 8192, "cpu": 1024}  # of square matrices: large enough to be bound by arithmetic
RUNS, WARM_UP = 5, 2


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the best of a few products of square matrices of `dtype`: 2 n^3 each."""
    side = SIDES[device]
    one = torch.full((side, side), 0.5, device=device, dtype=dtype)
    times = []
    for _ in range(WARM_UP + RUNS):
        began = time.perf_counter()
        one @ one
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * side**3 / min(times[WARM_UP:])
