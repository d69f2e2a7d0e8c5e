"""`plan`: what a fit will cost, before anything is built: parameters, memory, FLOPs, hours, disk.

Takes every option of `fit`, builds the net on torch's meta device alone and starts no trainer, so
that a run of a cluster can be planned on a laptop.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models

from ptft_lightning.commands import train
from ptft_lightning.commands.trainer_options import refuse_unsupported
from ptft_lightning.costs import describe
from ptft_lightning.costs.advice import fits
from ptft_lightning.costs.job import Strategy
from ptft_lightning.costs.peak import matmul_peak
from ptft_lightning.costs.plan import Length, Plan, Speed
from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.manifest import has_manifest, read_manifest
from ptft_lightning.data.module import EPOCHS_UNSET, PhaseData
from ptft_lightning.data.task_data import TaskDataModule
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.tokenizer_training import SENTINEL
from ptft_lightning.errors import UserError
from ptft_lightning.files import write_atomically
from ptft_lightning.modules.checkpoints import Checkpoints
from ptft_lightning.modules.finetune import FinetuneModule
from ptft_lightning.modules.footprint import size
from ptft_lightning.modules.phase import PhaseModule

VOCABULARY = 32_768  # where the tokenizer is not there yet
SENTINELS = 100  # as many as T5's has
MFU = 0.4  # what a well-fed GPU reaches with models of this kind
STRATEGIES: dict[Strategy, str] = {"single": "one device", "ddp": "DDP", "fsdp2": "FSDP2"}


class PlanCLI(train.CLI):
    """The options of fit; nothing runs."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The one whose options are read."""
        return {"fit": train.CLI.subcommands()["fit"]}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        add = parser.add_argument
        add("--output", type=str | None, help="File for the plan (.json).")
        add("--peak_tflops", type=float | None, help="Of a device, instead of measuring it here.")
        add("--mfu", type=float, default=MFU, help="Share of the peak that training reaches.")
        add("--memory_gb", type=float | None, help="Of a device, instead of the one here.")
        add("--vocab_size", type=int | None, help="Where the tokenizer is not there yet.")
        return parser

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot work."""
        options = self.options
        refuse_unsupported(options.trainer)
        for name in ("peak_tflops", "mfu", "memory_gb", "vocab_size"):
            if options[name] is not None and options[name] <= 0:
                raise UserError(f"--{name} is {options[name]}: give more than 0")
        torch.set_float32_matmul_precision(options.float32_matmul_precision)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None: its options say enough, and its devices need not be here."""

    def _run_subcommand(self, subcommand: str) -> None:
        options, module, data = self.options, self.model, self.datamodule
        checkpoints: Checkpoints = self._get(self.config_init, "checkpoint")
        plan = plan_of(options, module, data, checkpoints)
        show(plan)
        if options.output is not None:
            text = json.dumps(plan.record(), indent=1) + "\n"
            Path(options.output).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(options.output), text.encode())


def plan_of(
    options: Namespace, module: PhaseModule, data: PhaseData, checkpoints: Checkpoints
) -> Plan:
    """The plan of a config whose module and data were built, which is little."""
    trainer, assumed = options.trainer, list[str]()
    device = describe.device_of(trainer.accelerator)
    here = describe.devices_of(trainer.devices, device)
    if str(trainer.devices) in ("auto", "-1") and device == "cuda":
        assumed.append(f"trainer.devices is {trainer.devices}: {here} on each machine, as here")
    ranks = here * trainer.num_nodes
    data.tokenizer = tokenizer_of(options, module, data, assumed)
    samples = samples_of(module, data, assumed)
    module.preflight(data)
    with torch.device("meta"):
        net = module.build_net(data)
    job = describe.job_of(
        *(module, net, data, describe.precision_of(trainer.precision), device),
        *(describe.strategy_of(trainer.strategy, ranks), ranks),
    )
    steps = steps_of(trainer, samples, data.global_batch_size)
    if steps is None:
        assumed.append("steps: trainer.max_epochs needs data that is not there yet")
    if module.compile_layers:
        assumed.append("layers are compiled: their activations take less than this")
    if getattr(module.tuning, "quantize", None) is not None:
        assumed.append("weights in 4 bits are counted as if they were not")
    limit = options.memory_gb * 1e9 if options.memory_gb else describe.memory_here(device, here)
    every = checkpoints.keep_every_n_steps
    kept = checkpoints.keep + checkpoints.keep_best + (steps // every if every and steps else 0)
    return Plan(
        job=job,
        length=Length(steps, kept + 1),
        speed=speed_of(options, device, job.dtype),
        limit=limit,
        whole_bundle=module.bundle is None or module.tuning.name == "full",
        assumed=assumed,
    )


def tokenizer_of(
    options: Namespace, module: PhaseModule, data: PhaseData, assumed: list[str]
) -> Tokenizer:
    """The data's, or the bundle's; where neither is there yet, one of so many ids."""
    path: str | None = cast(Any, data).tokenizer_path
    if path is not None and Path(path).exists():
        return Tokenizer.load(path)
    if module.bundle is not None:
        return module.bundle.tokenizer
    known = options.vocab_size or getattr(module, "vocab_size", None)
    assumed.append(
        f"a vocabulary of {known or VOCABULARY:,}: no tokenizer at '{path}' yet"
        + ("" if known else ", give --vocab_size to say another")
    )
    raw = RawTokenizer(models.WordLevel({"": 0}, unk_token=""))
    raw.add_special_tokens([SENTINEL.format(n) for n in range(SENTINELS)])
    special = dict.fromkeys(("pad", "mask", "begin", "end"), 0)
    unknown = {"size": known or VOCABULARY, "extends": None, "fingerprint": None}
    specials = np.arange(SENTINELS + 1)
    return cast(Tokenizer, SimpleNamespace(**special, **unknown, raw=raw, specials=specials))


def samples_of(module: PhaseModule, data: PhaseData, assumed: list[str]) -> int | None:
    """Samples of an epoch, also the labels of phase two; None where the data is not there yet."""
    if isinstance(data, CorpusDataModule):
        if not has_manifest(data.store):
            return None
        return sum(shard.tokens for shard in read_manifest(data.store).train) // data.length
    assert isinstance(data, TaskDataModule)
    assert isinstance(module, FinetuneModule)
    file = data.files["train"]
    data.labels = list(module.known_labels)
    if file is None or not Path(file).exists():
        data.labels = data.labels or ["one", "other"]
        assumed.append(f"{len(data.labels)} labels: no training examples at '{file}' yet")
        return data.train_examples
    examples = module.task.read(file, data.columns, True, BadExamples("skip"))
    data.labels = data.labels or module.task.schema(examples)
    assumed.append("every example fills a row of data.max_length tokens; packing makes it less")
    held_out = 0 if data.files["validation"] else data.validation_share
    return data.train_examples or round(len(examples) * (1 - held_out))


def steps_of(trainer: Namespace, samples: int | None, global_batch: int) -> int | None:
    """Optimizer steps of a run; None where an epoch's length is not known.

    Raises:
        UserError: the config does not say how long to train.
    """
    limits: list[int] = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs in EPOCHS_UNSET:
        if not limits:
            raise UserError("how long to train? give trainer.max_steps or trainer.max_epochs")
    elif samples is None:
        return None
    else:
        limits.append(math.ceil(trainer.max_epochs * samples / global_batch))
    return min(limits)


def speed_of(options: Namespace, device: str, dtype: torch.dtype) -> Speed:
    """A stated peak, or one measured here where the run's kind of device is."""
    if options.peak_tflops is not None:
        return Speed(options.peak_tflops * 1e12, options.mfu, "stated")
    if device == "cuda" and not torch.cuda.is_available():
        return Speed(None, options.mfu, "unknown")
    return Speed(matmul_peak(device, dtype), options.mfu, "measured here")


# What a person reads.


def show(plan: Plan) -> None:
    """Print the plan as tables, then what was assumed and what will not work."""
    console = Console(file=sys.stdout)
    console.print(costs_table(plan.record()))
    console.print(memory_table(plan))
    for line in plan.assumed:
        console.print(f"assumed: {line}", soft_wrap=True, highlight=False, markup=False)
    for line in plan.warnings():
        console.print(f"warning: {line}", soft_wrap=True, highlight=False, markup=False)


def costs_table(record: dict[str, Any]) -> Table:
    """One row a quantity."""
    table = Table(show_header=False)
    counts = record["parameters"]
    tflops = record["peak_flops_per_second"]
    peak = "unknown: give --peak_tflops" if tflops is None else f"{tflops / 1e12:.3g} TFLOP/s"
    hours = "unknown" if record["hours"] is None else clock(record["hours"])
    batch = f"{record['micro_batches_per_step']} x {record['micro_batch_size']}"
    rows = {
        "parameters": f"{counts['total']:,} ({counts['trained']:,} trained)",
        "step": f"{record['global_batch_size']} samples on {record['ranks']} rank(s), {batch} each",
        "steps": number(record["steps"]),
        "tokens": f"{number(record['tokens'])} ({record['tokens_per_step']:,} a step)",
        "FLOPs": f"{number(record['flops'])} ({record['flops_per_step']:.3g} a step)",
        "peak of a device": f"{peak} ({record['peak']}), of which {record['mfu']:.0%} is reached",
        "training": hours,
        "a checkpoint": size(record["checkpoint_bytes"]),
        "disk, at most": f"{size(record['disk_bytes'])} (bundle {size(record['bundle_bytes'])})",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def memory_table(plan: Plan) -> Table:
    """Bytes a rank, a column a strategy; the config's own is marked."""
    record, jobs = plan.record()["memory"], plan.strategies()
    limit = "" if plan.limit is None else f", of {size(plan.limit)}"
    table = Table("memory a rank" + limit)
    for name, job in jobs.items():
        mark = " (this config)" if name == plan.job.strategy else ""
        table.add_column(f"{STRATEGIES[name]} x {job.ranks}{mark}", justify="right")
    for part in record["single"]:
        table.add_row(part, *(size(record[name][part]) for name in jobs))
    if plan.limit is not None:
        limit_of = plan.limit
        table.add_row("fits", *("yes" if fits(job, limit_of) else "no" for job in jobs.values()))
    return table


def number(value: float | None) -> str:
    """Thousands apart below a billion, then as a power."""
    if value is None:
        return "unknown"
    return f"{value:,}" if value < 1e9 else f"{value:.3g}"


def clock(hours: float) -> str:
    """Hours as people say them."""
    if hours < 1:
        return f"{hours * 60:.2g} minutes"
    return f"{hours:.3g} hours" if hours < 48 else f"{hours / 24:.3g} days"


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    train.start(PlanCLI, "fit", args)
