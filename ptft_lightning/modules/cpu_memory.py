"""Keep freed memory on CPUs: the C library would give large tensors back after every use."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors instead of returning it to the kernel.

    By default each tensor over 32 MB is mapped anew, page fault by page fault, at every step:
    a third of the CPU time of a small causal model (docs/results.md). The price is a higher
    peak, from fragmentation. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
