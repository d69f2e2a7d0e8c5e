"""What `doctor` says of devices and of what connects processes; torch is imported when called."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterator
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/version")
CPU_FACTS = Path("/proc/cpuinfo")
Pairs = Iterator[tuple[str, str]]  # level and text


def check_devices() -> Pairs:
    """GPUs, each tried with a product; else the processor."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield "problem", f"torch cannot be imported ({error}): install it again"
        return
    if not torch.cuda.is_available():
        if DRIVER.is_file():
            built = "is built without CUDA" if torch.version.cuda is None else "finds no device"
            yield (
                "problem",
                (
                    f"an NVIDIA driver is here, but torch {torch.__version__} {built}: install a "
                    "build of torch for CUDA that the driver supports (nvidia-smi says which)"
                ),
            )
        yield from check_processor()
        return
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        text = f"cuda:{number} {facts.name}, {facts.total_memory / 1e9:.0f} GB"
        try:
            one = torch.ones(64, 64, device=f"cuda:{number}")
            right = bool(((one @ one) == 64).all())
        except RuntimeError as error:
            yield "problem", f"{text}: {str(error).splitlines()[0]}"
            continue
        if not right:
            yield "problem", f"{text}: a product came out wrong"
        elif not torch.cuda.is_bf16_supported(including_emulation=False):
            yield "warning", f"{text}: no bfloat16, use --trainer.precision 16-mixed"
        else:
            yield "ok", text


def check_processor() -> Pairs:
    """Cores, and whether they compute in bfloat16."""
    text = f"no GPU, {os.cpu_count()} processor cores ({platform.machine()})"
    words = set(CPU_FACTS.read_text().split()) if CPU_FACTS.is_file() else set[str]()
    if words & {"avx512_bf16", "amx_bf16"}:
        yield "ok", f"{text} with bfloat16"
    else:
        yield "ok", f"{text} without bfloat16: use --config configs/trainer/cpu.yaml"


def check_network() -> Pairs:
    """What several processes talk through: gloo on processors, NCCL on GPUs; this host's name."""
    import torch.distributed as dist
    from torch import cuda

    if not dist.is_available() or not dist.is_gloo_available():
        yield "warning", "torch is built without gloo: several processes cannot train on CPUs"
    if cuda.is_available() and not dist.is_nccl_available():
        yield "problem", "torch is built without NCCL: several GPUs cannot train together"
    elif cuda.is_available():
        version = cuda.nccl.version()  # type: ignore[no-untyped-call]
        yield "ok", f"NCCL {'.'.join(map(str, version))}"
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        yield (
            "warning",
            (
                f"this host's name '{host}' has no address: for runs of several processes set "
                "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, or put it into /etc/hosts"
            ),
        )
