"""From a phase's module, its data and the trainer's options to a `Job`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import Namespace

from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.costs.flops import attention_of_row
from ptft_lightning.costs.job import Job, Strategy, sizes_of
from ptft_lightning.data.module import PhaseData
from ptft_lightning.errors import UserError
from ptft_lightning.modules.nets import Net, PretrainNet
from ptft_lightning.modules.phase import PhaseModule
from ptft_lightning.modules.pretrain import PretrainModule
from ptft_lightning.objectives.replaced import ReplacedHead

SHARDED = ("fsdp2", "ShardedStrategy", "ModelParallelStrategy")


def job_of(
    module: PhaseModule,
    net: Net,
    data: PhaseData,
    precision: str,
    device: str,
    strategy: Strategy,
    ranks: int,
) -> Job:
    """The job of a net, which may stand on the meta device.

    Phase one's rows are full. An example of phase two fills a row of its own, which is the most:
    packing makes it less.

    Raises:
        UserError: the backbone is no Transformer.
    """
    if net.backbone.config_class is not TransformerConfig:
        raise UserError("what a fit costs is known of Transformers alone")
    config: Any = net.backbone.config
    length, rows = int(cast(Any, data).length), data.micro_batch_size
    targets = other = beside = 0
    if isinstance(net, PretrainNet) and isinstance(module, PretrainModule):
        targets = rows * module.objective.slots(length)
        other, beside = head_costs(net, length)
    return Job(
        config=config,
        vocab_size=net.backbone.vocab_size,
        sizes=sizes_of(net, module.optimizer_config.kind),
        rows=rows,
        length=length,
        targets=targets,
        head_matrices=other,
        beside=beside,
        precision=precision,
        device=device,
        strategy=strategy,
        ranks=ranks,
        global_batch=data.global_batch_size,
        recompute=module.activation_checkpointing,
    )


def head_costs(net: PretrainNet, length: int) -> tuple[int, int]:
    """A job's `head_matrices`, and its `beside` in rows of `length` tokens."""
    head = net.head
    matrices = [(n, p) for n, p in head.named_parameters() if p.ndim == 2]
    sizes = {n: p.numel() for n, p in matrices if len(p) != net.backbone.vocab_size}
    if not isinstance(head, ReplacedHead):
        return sum(sizes.values()), 0
    every = sum(n for name, n in sizes.items() if not name.startswith("widen."))
    generator = head.generator.config
    attention = attention_of_row(generator, length) // length
    return head.widen.weight.numel(), 2 * every + attention


# What a config's trainer says, without building one.


def precision_of(option: Any) -> str:
    """Lightning's own names: 32 -> 32-true, bf16 -> bf16-mixed."""
    text = "32" if option is None else str(option)
    if "-" in text:
        return text
    return f"{text}-mixed" if text in ("bf16", "16") else f"{text}-true"


def device_of(accelerator: Any) -> str:
    """cpu or cuda; `auto` is what is here."""
    if accelerator in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu" if accelerator == "cpu" else "cuda"


def devices_of(option: Any, device: str) -> int:
    """Devices of a machine; `auto` is how many are here."""
    if isinstance(option, list):
        return len(option)
    text = str(option)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    if text in ("None", "auto", "-1"):
        return max(1, torch.cuda.device_count()) if device == "cuda" else 1
    return int(text)


def strategy_of(option: Any, ranks: int) -> Strategy:
    """Which of the three a config's strategy is."""
    path = option.class_path if isinstance(option, Namespace) else str(option)
    if str(path).rpartition(".")[2] in SHARDED:
        return "fsdp2"
    return "ddp" if ranks > 1 else "single"


def memory_here(device: str, processes: int) -> float | None:
    """Bytes a rank has: a device's own, or its share of the machine's; None: not known here."""
    if device == "cuda":
        found = torch.cuda.is_available()
        return float(torch.cuda.get_device_properties(0).total_memory) if found else None
    facts = Path("/proc/meminfo")
    if not facts.is_file():
        return None
    total = facts.read_text().split(maxsplit=2)[1]
    return float(total) * 1024 / processes
