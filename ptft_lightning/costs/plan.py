"""Everything that can be said of a fit before it begins, as one plain record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ptft_lightning.costs import flops
from ptft_lightning.costs.advice import advice, fits, needed
from ptft_lightning.costs.job import Job, Strategy
from ptft_lightning.costs.memory import bundle_bytes, checkpoint_bytes, memory
from ptft_lightning.costs.parameters import backbone_parameters


@dataclass(frozen=True)
class Length:
    """How long a run is, and how often it saves."""

    steps: int | None
    """Optimizer steps; None: not known yet."""
    checkpoints: int
    """Checkpoints on disk at once, one that is being written included."""


@dataclass(frozen=True)
class Speed:
    """What a device reaches."""

    peak: float | None
    """FLOP/s in the products' dtype; None: neither measured nor stated."""
    mfu: float
    """Share of the peak that training reaches (model FLOPs utilisation)."""
    source: str
    """measured here, stated, or unknown."""


@dataclass
class Plan:
    """What `plan` prints and writes."""

    job: Job
    length: Length
    speed: Speed
    limit: float | None
    """Bytes a rank has."""
    whole_bundle: bool = True
    """Whether a bundle holds all weights, or what was trained."""
    assumed: list[str] = field(default_factory=list)

    @property
    def hours(self) -> float | None:
        """Of the training steps alone: neither validation nor saving nor waiting for data."""
        if self.length.steps is None or self.speed.peak is None:
            return None
        return flops.seconds(self.job, self.length.steps, self.speed.peak, self.speed.mfu) / 3600

    def strategies(self) -> dict[Strategy, Job]:
        """The job under each way of using its ranks."""
        ranks = self.job.ranks
        found: dict[Strategy, Job] = {"single": replace(self.job, strategy="single", ranks=1)}
        if ranks > 1:
            found["ddp"] = replace(self.job, strategy="ddp")
            found["fsdp2"] = replace(self.job, strategy="fsdp2")
        return found

    def warnings(self) -> list[str]:
        """What will not work, each with what to change."""
        job, found = self.job, []
        if self.limit is not None and not fits(job, self.limit):
            has = f"{needed(job) / 1e9:.2f} GB a rank, there are {self.limit / 1e9:.2f} GB"
            found.append(f"it will not fit: {has}; any of: {'; '.join(advice(job, self.limit))}")
        if job.ranks > job.global_batch:
            found.append(
                f"{job.ranks} ranks share data.global_batch_size {job.global_batch}: give at "
                "least one sample a rank"
            )
        per_rank = -(-job.global_batch // job.ranks)
        if job.rows > per_rank:
            found.append(
                f"data.micro_batch_size {job.rows} is more than the {per_rank} samples of a rank: "
                "the rest of each micro-batch is empty"
            )
        return found

    def record(self) -> dict[str, Any]:
        """As JSON takes it; bytes, FLOPs and hours as plain numbers."""
        job, steps = self.job, self.length.steps
        checkpoint, bundle = checkpoint_bytes(job), bundle_bytes(job, self.whole_bundle)
        # A sharded checkpoint has a bundle beside it.
        beside = bundle if job.strategy == "fsdp2" else 0
        return {
            "parameters": asdict(job.sizes),
            "backbone_parameters": backbone_parameters(job.config, job.vocab_size),
            "vocab_size": job.vocab_size,
            "precision": job.precision,
            "device": job.device,
            "strategy": job.strategy,
            "ranks": job.ranks,
            "micro_batch_size": job.rows,
            "micro_batches_per_step": job.micro_batches,
            "global_batch_size": job.global_batch,
            "steps": steps,
            "tokens_per_step": job.tokens_per_step,
            "tokens": None if steps is None else steps * job.tokens_per_step,
            "flops_per_micro_batch": flops.micro_batch(job),
            "flops_per_step": flops.step(job),
            "flops": None if steps is None else steps * flops.step(job),
            "peak_flops_per_second": self.speed.peak,
            "peak": self.speed.source,
            "mfu": self.speed.mfu,
            "hours": self.hours,
            "memory": {name: memory(one).parts() for name, one in self.strategies().items()},
            "memory_needed": needed(job),
            "memory_limit": self.limit,
            "checkpoint_bytes": checkpoint,
            "bundle_bytes": bundle,
            "disk_bytes": self.length.checkpoints * (checkpoint + beside) + bundle,
            "assumed": self.assumed,
            "warnings": self.warnings(),
        }
