"""What the data modules of both phases share: steps, ranks, resume; knows no model."""

from __future__ import annotations

import signal
import sys
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, cast

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from ptft_lightning.data.batch import Batch
from ptft_lightning.data.sample_order import Numbers, Segment, Segments, micro_batches
from ptft_lightning.data.steps import PassSampler, StepSampler
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

EPOCHS_UNSET = (None, -1)


class BatchLoader(DataLoader[Batch]):
    """A loader that knows how long its reader waited for batches."""

    waited = 0.0
    """Seconds, since somebody set it to 0."""

    def __iter__(self) -> Any:
        """The batches."""
        batches = super().__iter__()
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - began
            yield batch


def itself(batch: Any) -> Any:
    """The collate function of datasets that already give whole batches."""
    return batch


def outlive_interrupts(worker: int) -> None:
    """Of Ctrl-C, which every process of a terminal gets, the main one decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class PhaseData(L.LightningDataModule):
    """Base of `CorpusDataModule` and `TaskDataModule`.

    A subclass sets `tokenizer`, builds its datasets in `setup`, and says which samples a step
    takes. Every quantity is counted in optimizer steps, whose samples do not depend on ranks,
    workers or micro-batch.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        workers: int,
        audit: str | None,
    ) -> None:
        super().__init__()
        self.seed, self.workers, self.audit = seed, workers, audit
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        for name in ("global_batch_size", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} is {getattr(self, name)}: give 1 or more")
        if workers < 0:
            raise UserError(f"data.workers is {workers}: give 0 or more processes")
        # Preparation runs once, on global rank 0; the others wait without a time-out.
        self.prepare_data_per_node = False
        self.segments = Segments((Segment(0, 0, global_batch_size),))
        self.skips: list[tuple[int, int]] = []
        """Samples [first, after) that a resumed run leaves out."""
        self.resumes = False
        """Whether a checkpoint will say where the run is; set by the command line."""
        self.told: Callable[[], bool] = lambda: False
        """Whether this rank is told to end; set by the command line."""
        self._epochs: int | None = None
        self._step_limit = -1
        self.training: BatchLoader | None = None

    # What a subclass says of itself.

    @property
    def train_samples(self) -> int:
        """Samples in one epoch."""
        raise NotImplementedError

    def epochs_samples(self, epochs: int) -> int:
        """Samples of so many epochs from the first on."""
        return epochs * self.train_samples

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        raise NotImplementedError

    def step_numbers(self, step: int) -> Numbers:
        """The samples of an optimizer step, over all ranks."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What a resume must not change: plain values, compared with the checkpoint's."""
        raise NotImplementedError

    @property
    def places(self) -> list[str]:
        """Token stores as the user named them, for lineage.json."""
        return []

    @property
    def source_names(self) -> list[str]:
        """Of a mixture: the texts whose losses are told one by one."""
        return []

    # Ranks and steps.

    def place_in_trainer(self) -> None:
        """Tell the trainer what follows from the batch sizes, and count its limits in steps."""
        trainer, ranks = self._trainer(), self._trainer().world_size
        if ranks > self.global_batch_size:
            raise UserError(
                f"data.global_batch_size {self.global_batch_size} is smaller than the number of "
                f"ranks {ranks}: give at least one sample per rank"
            )
        if trainer.accumulate_grad_batches not in (1, self.accumulation):
            raise UserError(
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}: leave it "
                "out, it follows from data.global_batch_size and data.micro_batch_size"
            )
        trainer.accumulate_grad_batches = self.accumulation
        self._set_length()
        self._set_validation()

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and optimizer step."""
        ranks = self._trainer().world_size
        return micro_batches(self.global_batch_size, ranks, self.micro_batch_size)

    def _set_length(self) -> None:
        """`trainer.max_epochs` means epochs of the data; the loop itself counts steps."""
        trainer = self._trainer()
        fit_loop = trainer.fit_loop
        if fit_loop.max_epochs not in EPOCHS_UNSET:
            self._epochs, self._step_limit = fit_loop.max_epochs, fit_loop.max_steps
            fit_loop.max_epochs = -1
            self._count_epochs()
        if fit_loop.max_steps < 0:
            raise UserError("how long to train? give trainer.max_steps or trainer.max_epochs")

    def _count_epochs(self) -> None:
        """Train until every sample of `max_epochs` epochs was taken, or for `max_steps`."""
        if self._epochs is None:
            return
        samples = self.epochs_samples(self._epochs)
        steps = bisect_left(range(samples + 1), samples, key=lambda s: self.segments.span(s)[0])
        limits = [n for n in (steps, self._step_limit) if n >= 0]
        self._trainer().fit_loop.epoch_loop.max_steps = min(limits)

    def _set_validation(self) -> None:
        """`trainer.val_check_interval` counts optimizer steps; 1.0 (the default) means an epoch."""
        trainer = self._trainer()
        if cast(Any, trainer).fast_dev_run:
            return
        interval: float | int = getattr(self, "_val_interval", trainer.val_check_interval)
        self._val_interval = interval  # set-up may run again; the trainer's own value is replaced
        steps = interval if isinstance(interval, int) else int(interval * self.steps_per_epoch)
        trainer.val_check_interval = max(1, steps) * self.accumulation
        trainer.check_val_every_n_epoch = None

    def _trainer(self) -> L.Trainer:
        if self.trainer is None:
            raise RuntimeError("the data module is not attached to a trainer")
        return self.trainer

    # Loaders.

    def take_waited(self) -> float:
        """Seconds that training waited for data since this was asked last."""
        if self.training is None:
            return 0.0
        waited, self.training.waited = self.training.waited, 0.0
        return waited

    def train_loader(self, dataset: Dataset[Batch]) -> BatchLoader:
        """Endless micro-batches from the trainer's current step on."""
        trainer = self._trainer()
        sampler = StepSampler(
            start_step=lambda: trainer.global_step,
            step_numbers=self.step_numbers,
            rank=trainer.global_rank,
            ranks=trainer.world_size,
            micro=self.micro_batch_size,
            batches=self.accumulation,
        )
        self.training = self._loader(dataset, sampler)
        return self.training

    def pass_loader(self, dataset: Dataset[Batch], count: int) -> BatchLoader:
        """One pass over `count` samples, shared out between the ranks."""
        trainer = self._trainer()
        sampler = PassSampler(count, trainer.global_rank, trainer.world_size, self.micro_batch_size)
        return self._loader(dataset, sampler)

    def _loader(self, dataset: Dataset[Batch], sampler: StepSampler | PassSampler) -> BatchLoader:
        return BatchLoader(
            dataset,
            sampler=sampler,
            batch_size=None,  # the dataset gives whole micro-batches
            collate_fn=itself,
            num_workers=self.workers,
            worker_init_fn=outlive_interrupts,
            pin_memory=self._trainer().strategy.root_device.type == "cuda",
        )

    # Resume.

    def state_dict(self) -> dict[str, Any]:
        """The data state of a checkpoint: which samples each step so far consumed."""
        return {
            "segments": self.segments.state(),
            "identity": self.identity(),
            "step": self._trainer().global_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the order of a checkpoint; a new global batch size begins a new segment.

        Raises:
            UserError: something that decides the samples has changed.
        """
        mine, theirs = self.identity(), state_dict["identity"]
        if changed := [k for k in {**theirs, **mine} if mine.get(k) != theirs.get(k)]:
            listed = "; ".join(f"{k} was {theirs.get(k)!r}, is {mine.get(k)!r}" for k in changed)
            raise UserError(
                f"this checkpoint's run had other data ({listed}): resume with the same, or start "
                "a new run from its bundle with --model.init_from"
            )
        self.segments = Segments.from_state(state_dict["segments"], self.segments.period)
        step = state_dict["step"]  # the trainer's own step is restored later
        if self.segments.table[-1].global_batch != self.global_batch_size:
            self.segments = self.segments.change(step, self.global_batch_size)
        self._change_segment(state_dict, step)
        self.segments = self.segments.leave_out(self.skips, step)
        self._settle_segments()
        self._count_epochs()

    def _change_segment(self, state_dict: dict[str, Any], step: int) -> None:
        """Where a subclass has more that a resume may change."""

    def _settle_segments(self) -> None:
        """Where a subclass follows the table of segments, which is final now."""


@rank_zero_only
def say(message: str) -> None:
    """One line for the person who watches, beside whatever goes to standard output; rank 0's."""
    print(message, file=sys.stderr, flush=True)
