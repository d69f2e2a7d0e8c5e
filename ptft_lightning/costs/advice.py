"""Whether a job fits into a device's memory, and what to change where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ptft_lightning.costs.job import Job
from ptft_lightning.costs.memory import CONTEXT, memory

Change = Callable[[Job], Job]
MOST_RANKS = 1024


def needed(job: Job) -> float:
    """Bytes on the device, with what stands beside torch's own memory there."""
    return memory(job).peak + (CONTEXT if job.device == "cuda" else 0)


def fits(job: Job, limit: float) -> bool:
    """Whether a rank's memory suffices."""
    return needed(job) <= limit


def advice(job: Job, limit: float) -> list[str]:
    """What to change so that it fits: each single option that suffices; else the first few that
    do together; else how far off it stays. Empty where it fits."""
    if fits(job, limit):
        return []
    options = changes(job)
    enough = [text for text, change in options if fits(change, limit)]
    smaller = largest_micro_batch(job, limit)
    if smaller is not None:
        enough.append(f"data.micro_batch_size {smaller} (the step stays the same)")
    if enough:
        return enough
    taken, changed = [], job
    for text, _ in options:
        changed = dict(changes(changed))[text]
        taken.append(text)
        if (rows := largest_micro_batch(changed, limit)) is not None:
            return [" and ".join([*taken, f"data.micro_batch_size {rows}"])]
    if (ranks := enough_ranks(changed, limit)) is not None:
        return [" and ".join([*taken, "data.micro_batch_size 1", f"{ranks} devices under fsdp2"])]
    least = needed(replace(changed, rows=1, targets=max(1, changed.targets // changed.rows)))
    return [
        f"all of these still take {least / 1e9:.1f} GB: a smaller model.backbone or data.length"
    ]


def changes(job: Job) -> list[tuple[str, Job]]:
    """Options that save memory, and the job under each."""
    found = []
    if job.strategy == "ddp":
        sharded = replace(job, strategy="fsdp2")
        found.append(("--config configs/trainer/fsdp.yaml", sharded))
    if not job.recompute:
        found.append(("model.activation_checkpointing true", replace(job, recompute=True)))
    if job.dtype.itemsize > 2:
        found.append(("trainer.precision bf16-mixed", replace(job, precision="bf16-mixed")))
    return found


def with_rows(job: Job, rows: int) -> Job:
    """The job with another micro-batch."""
    return replace(job, rows=rows, targets=job.targets // job.rows * rows)


def largest_micro_batch(job: Job, limit: float) -> int | None:
    """The most rows that fit; None where a single one does not."""
    fitting = [n for n in range(1, job.rows + 1) if fits(with_rows(job, n), limit)]
    return max(fitting, default=None)


def enough_ranks(job: Job, limit: float) -> int | None:
    """How many ranks FSDP2 needs with one row each: a power of two; None above `MOST_RANKS`."""
    ranks = 2
    while ranks <= MOST_RANKS:
        sharded = replace(with_rows(job, 1), strategy="fsdp2", ranks=ranks)
        if ranks > job.ranks and fits(sharded, limit):
            return ranks
        ranks *= 2
    return None
