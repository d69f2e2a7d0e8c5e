"""Hidden states of examples, computed once and kept on disk; knows neither task nor head.

A file is named by what decides its values (model, tokens, layers, precision) and holds the states
of all tokens, (tokens, dim) or (tokens, layers + 1, dim), example after example: a plain `.npy`. It
is written under a temporary name by all ranks, each its share, then renamed: a name that exists is
a whole file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ptft_lightning.data.batch import Batch, build_batch
from ptft_lightning.data.example_rows import ExampleDataset, pack_examples
from ptft_lightning.data.examples import Encoded, documents_of
from ptft_lightning.data.module import say
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.steps import PassSampler
from ptft_lightning.errors import UserError
from ptft_lightning.files import sync_directory
from ptft_lightning.progress import ByteProgress

GB = 10**9
STALE_S = 3600.0  # a temporary file that nobody wrote to for so long is of a run that was killed


class StoredStates:
    """The states of a set of examples, memory-mapped.

    Args:
        file: Where they are.
        lengths: Tokens of each document.
        counts: Documents of each example.
    """

    def __init__(self, file: Path, lengths: Ids, counts: Ids) -> None:
        self.file, self.lengths, self.counts = file, lengths, counts
        self.ends, self.last = np.cumsum(lengths), np.cumsum(counts)

    def __reduce__(self) -> tuple[type[StoredStates], tuple[Path, Ids, Ids]]:
        """Pickled (for spawned workers) by name: a memory map would travel as its content."""
        return StoredStates, (self.file, self.lengths, self.counts)

    @cached_property
    def array(self) -> npt.NDArray[Any]:
        """(tokens, dim) or (tokens, layers + 1, dim)."""
        array: npt.NDArray[Any] = np.load(self.file, mmap_mode="r")
        return array

    def place(
        self, numbers: Ids, rows: Ids, starts: Ids, shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """(B, T, ...) states of a batch of examples, -1 for none, where their documents begin: (D,)
        rows and starts, of a -1, too."""
        states = np.zeros((*shape, *self.array.shape[1:]), self.array.dtype)
        documents = [d for n in numbers.tolist() for d in self._documents(n)]
        for document, row, start in zip(documents, rows.tolist(), starts.tolist(), strict=True):
            if document >= 0:
                end, length = self.ends[document], self.lengths[document]
                states[row, start : start + length] = self.array[end - length : end]
        return states

    def _documents(self, number: int) -> range | tuple[int]:
        if number < 0:
            return (-1,)
        return range(self.last[number] - self.counts[number], self.last[number])


def store_features(module: Any, place: Path, dtype: str, limit_gb: float) -> None:
    """Give the training and validation sets of a FinetuneModule under a FrozenReader their states,
    from earlier files where there are some; every rank must call it.

    Raises:
        UserError: they would be larger than the limit or the free space, do not fit the dtype, or
            are not what the head is used with.
    """
    data, net = module.data, module.net
    if net.backbone.prefix_lm and module.task.likelihood:
        raise UserError(
            "tuning.cache keeps the states of text read in one direction, and the backbone is a "
            "prefix-LM, which reads prompts in both: set tuning.cache false"
        )
    widths = (len(net.backbone.layers) + 1,) * net.reader.mix + (net.backbone.dim,)
    files = {}
    for split in ("train", "validation"):
        if split in data.datasets:
            dataset: ExampleDataset = data.datasets[split]
            # Validation's are exact: metrics must be those of the bundle, which keeps no states.
            kind = dtype if split == "train" else "float32"
            documents = documents_of(dataset.examples)
            path = place / f"{_fingerprint(module, documents, kind)}.npy"
            lengths = np.array([len(d.tokens) for d in documents], np.int64)
            files[split] = _FeatureFile(path, lengths, widths, np.dtype(kind))
    missing = [split for split, file in files.items() if not file.is_whole()]
    missing = module.trainer.strategy.broadcast(missing)  # rank 0's view decides
    if module.trainer.is_global_zero:
        new = sum(files[split].bytes for split in missing)
        _check_room(place, sum(f.bytes for f in files.values()), new, limit_gb)
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob(".*.tmp"):
            if time.time() - old.stat().st_mtime > STALE_S:
                old.unlink(missing_ok=True)
    for split, file in files.items():
        if split in missing:
            _write(module, split, file)
        said = "kept in" if split in missing else "read from"
        say(f"features: {split}, {file.bytes / 1e6:.1f} MB {said} '{file.path}'")
        counts = np.array([1 + len(e.also) for e in data.datasets[split].examples], np.int64)
        data.datasets[split].states = StoredStates(file.path, file.lengths, counts).place


class _FeatureFile:
    """What a file has to hold."""

    def __init__(
        self, path: Path, lengths: Ids, widths: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.path, self.lengths, self.dtype = path, lengths, dtype
        self.shape = (int(lengths.sum()), *widths)
        self.token_bytes = int(np.prod(widths)) * dtype.itemsize
        self.bytes = self.shape[0] * self.token_bytes

    def is_whole(self) -> bool:
        """Whether it is there; one that was torn or changed in size is not."""
        try:
            found = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return False
        return bool(found.shape == self.shape and found.dtype == self.dtype)

    def create(self, path: Path) -> int:
        """Make it at `path`, empty; where its values begin."""
        made = np.lib.format.open_memmap(path, "w+", self.dtype, self.shape)
        return int(made.offset)


def _fingerprint(module: Any, documents: list[Encoded], dtype: str) -> str:
    """Of everything that decides the values."""
    bundle = None if module.from_scratch else module.bundle
    model = [module.bundle_config()["backbone"], module.seed] if bundle is None else bundle.hash
    settings = [model, module.net.reader.mix, dtype, str(module.trainer.precision)]
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=12)
    for document in documents:
        content = [len(document.tokens), *document.tokens, *document.segments]
        digest.update(np.array(content, np.int64).tobytes())
    return digest.hexdigest()


def _check_room(place: Path, size: int, new: int, limit_gb: float) -> None:
    there = next(p for p in (place.resolve(), *place.resolve().parents) if p.exists())
    free = shutil.disk_usage(there).free / GB
    fix = "choose tuning.cache_dtype float16, a lower data.max_length, no tuning.mix"
    if size / GB > limit_gb:
        raise UserError(
            f"the hidden states take {size / GB:.3g} GB, tuning.cache_limit_gb is {limit_gb:g}: "
            f"raise it, {fix}, or no tuning.cache"
        )
    if new / GB > free:
        raise UserError(
            f"the hidden states take {new / GB:.3g} GB, '{place}' has room for {free:.3g}: name "
            f"another place as tuning.cache, {fix}, or no tuning.cache"
        )


def _write(module: Any, split: str, file: _FeatureFile) -> None:
    """Compute a file, each rank its share."""
    trainer, begin = module.trainer, 0
    temporary = file.path.with_name(f".{file.path.name}.{os.getpid()}.tmp")
    if trainer.is_global_zero:
        begin = file.create(temporary)
    temporary, begin = trainer.strategy.broadcast((temporary, begin))
    try:
        _write_share(module, split, file, temporary, begin)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            os.replace(temporary, file.path)
            sync_directory(file.path.parent)
        trainer.strategy.barrier()
    finally:
        if trainer.is_global_zero:
            temporary.unlink(missing_ok=True)


def _write_share(module: Any, split: str, file: _FeatureFile, path: Path, begin: int) -> None:
    trainer, dataset, begun = module.trainer, module.data.datasets[split], False
    # Written as bytes, not through a memory map, which dies on a full disk without a word.
    with open(path, "r+b") as stream, _progress(trainer, split, file.bytes) as advance:
        for numbers, states in _read(module, dataset):
            if not len(numbers):
                continue
            if not begun:  # what follows goes on from here
                before = documents_of(dataset.examples[: numbers[0]])
                stream.seek(begin + sum(len(d.tokens) for d in before) * file.token_bytes)
                begun = True
            with np.errstate(over="ignore"):
                kept = states.float().cpu().numpy().astype(file.dtype)
            if not np.isfinite(kept).all():
                raise UserError(
                    f"hidden states do not fit tuning.cache_dtype {file.dtype}: choose float32"
                )
            stream.write(kept.tobytes())
            advance(kept.nbytes)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _progress(trainer: Any, split: str, size: int) -> Iterator[Callable[[int], None]]:
    if not trainer.is_global_zero:
        yield lambda count: None
        return
    with ByteProgress(f"features: {split}", size // trainer.world_size) as bar:
        yield bar.advance


def _read(module: Any, dataset: ExampleDataset) -> Iterator[tuple[Ids, Tensor]]:
    """This rank's example numbers and the states of their tokens, micro-batch by micro-batch; all
    ranks read equally often."""
    trainer, net = module.trainer, module.net
    micro = module.data.micro_batch_size
    sampler = PassSampler(len(dataset), trainer.global_rank, trainer.world_size, micro)
    net.backbone.eval()
    for slots in sampler:
        numbers = slots.numbers[slots.numbers >= 0]
        chosen = documents_of([dataset.examples[n] for n in numbers.tolist()])
        tokens, documents, segments, rows, starts = pack_examples(
            chosen, dataset.length, dataset.pad
        )
        batch = build_batch(
            *(tokens, documents, numbers, {}, len(numbers)),
            segments=segments if segments.any() else None,
        ).to(module.device)
        use = _states_of(net.reader, batch)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            states = net.lend(use)
        lengths = np.array([len(e.tokens) for e in chosen], np.int64)
        row = np.repeat(rows, lengths)
        ends = np.cumsum(lengths)
        place = np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)
        place += np.repeat(starts, lengths)
        yield numbers, states[torch.from_numpy(row), torch.from_numpy(place)]


def _states_of(reader: Any, batch: Batch) -> Callable[[Any], Tensor]:
    return lambda backbone: reader.states(backbone, batch)
