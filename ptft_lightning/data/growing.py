"""A token store that `prepare` is still at work on, read as far as it is finished.

Shards are finished in any order; the store so far is those before the first that is missing. Rows
are mixed within windows of shards, and epoch 0 reads the windows as stored: once a window is there,
the rows in it have their places, which are those of the finished store.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from ptft_lightning.data.manifest import Manifest, has_manifest, read_manifest
from ptft_lightning.data.module import PhaseData, say
from ptft_lightning.data.packing import Ids, Layout
from ptft_lightning.data.plan import read_plan
from ptft_lightning.data.preparation import LOG, Preparation
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.sample_order import Numbers
from ptft_lightning.data.shards import collect, receipt_of
from ptft_lightning.data.store_lock import is_being_prepared
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

POLL_S = 0.5
TELL_S = 30.0
PATIENCE_S = 300.0  # without a new shard, when nobody holds the lock of the store


class GrowingStore:
    """What there is of a store so far.

    Args:
        place: Directory.
        tokenizer: Whose ids it must hold.
        window: Shards among which rows are mixed.
        data: Of the run that waits, which may be told to end meanwhile.
    """

    def __init__(
        self, place: str, tokenizer: Tokenizer, window: int, data: PhaseData | None = None
    ) -> None:
        self.place, self.tokenizer, self.window, self.data = place, tokenizer, window, data
        self.receipts: list[dict[str, Any]] = []
        self.preparation: Preparation | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copied to workers without the process and the run, which are not theirs."""
        return self.__dict__ | {"preparation": None, "data": None}

    def rows(self, layout: Layout, length: int, seed: int) -> GrowingRows:
        """Its training rows."""
        return GrowingRows(self, layout, length, self.tokenizer.pad, seed)

    def read(self) -> tuple[Manifest | None, bool]:
        """The store so far, None where nothing is begun, and whether that is all of it."""
        if has_manifest(self.place):
            return read_manifest(self.place), True
        folder, plan = Path(self.place), read_plan(self.place)
        if plan is None:
            return None, False
        while (receipt := receipt_of(folder, len(self.receipts))).is_file():
            self.receipts.append(json.loads(receipt.read_text(encoding="utf-8")))
        return collect(self.receipts, plan, self.tokenizer), False

    def wait(self, shards: int) -> tuple[Manifest, bool]:
        """The store so far once it has so many shards that hold training text, or is whole.

        Raises:
            UserError: nobody works on it any more.
        """
        watch = Watch(self, shards)
        while (seen := watch.look()) is None:
            time.sleep(POLL_S)
        return seen

    def wait_together(self, shards: int) -> tuple[Manifest, bool] | None:
        """What rank 0 finds there once it is enough, the same on all ranks, which must all ask;
        None when any of them is told to end before.

        Raises:
            UserError: as `wait`, on rank 0.
        """
        leads = self.data is None or cast(Any, self.data.trainer).is_global_zero
        watch = Watch(self, shards)
        while True:
            seen = watch.look() if leads else None
            mine = (0, 0) if seen is None else (filled(seen[0]), int(seen[1]))
            told, there, whole = self._sum(*mine)
            if told:
                return None
            if there or whole:
                break
            time.sleep(POLL_S)
        # A rank on another host may see the files later, or more of them.
        manifest, _ = seen or self.wait(sys.maxsize if whole else there)
        return manifest if whole else manifest.first_window(there), bool(whole)

    def _sum(self, there: int, whole: int) -> tuple[int, int, int]:
        """How many ranks are told to end, and the sums of these over all ranks."""
        if self.data is None:
            return 0, there, whole
        strategy = cast(Any, self.data.trainer).strategy
        mine = torch.tensor([self.data.told(), there, whole], device=strategy.root_device)
        told, there, whole = strategy.reduce(mine, reduce_op="sum").tolist()
        return told, there, whole

    @cached_property
    def first(self) -> Manifest:
        """The first window alone: the same whenever it is asked for. Waits for it."""
        manifest, _ = self.wait(self.window)
        return manifest.first_window(self.window)


class Watch:
    """One wait for a number of shards: whether they are there, and how long nobody makes them."""

    def __init__(self, store: GrowingStore, shards: int) -> None:
        self.store, self.shards = store, shards
        self.since = self.told = time.monotonic()
        self.made = -1

    def look(self) -> tuple[Manifest, bool] | None:
        """See `GrowingStore.wait`; None where it is not enough yet."""
        place = self.store.place
        alive = is_being_prepared(place)  # before reading: its last shards are seen
        manifest, whole = self.store.read()
        there = 0 if manifest is None else filled(manifest)
        if manifest is not None and (whole or there >= self.shards):
            return manifest, whole
        if self.store.preparation is not None:
            self.store.preparation.check()
        now = time.monotonic()
        if alive or there > self.made:
            self.since, self.made = now, there
        if now - self.since >= PATIENCE_S:
            idle = now - self.since
            raise UserError(f"{_nobody(place)} for {idle:.0f} s: {_again(self.store)}")
        if now - self.told >= TELL_S:
            self.told = now
            who = "prepare is at work" if alive else f"{_nobody(place)}: {_again(self.store)}"
            say(f"waiting for shard {self.shards} of '{place}', it has {there}; {who}")
        return None


def filled(manifest: Manifest) -> int:
    """Shards that hold training text."""
    return sum(1 for shard in manifest.train if shard.tokens)


def _nobody(place: str) -> str:
    return f"nobody is preparing the token store '{place}'"


def _again(store: GrowingStore) -> str:
    log = Path(store.place) / LOG
    said = f" (its end is in '{log}')" if log.is_file() else ""
    return f"run the same `prepare` again{said}, it goes on where it stopped"


class GrowingRows(Rows):
    """Training rows of a store that grows: asked for a row that is not there yet, they wait."""

    def __init__(
        self,
        growing: GrowingStore,
        layout: Layout,
        length: int,
        pad: int,
        seed: int,
    ) -> None:
        self.growing, self.whole = growing, False
        store = TokenStore(growing.place, "train", manifest=growing.first)
        super().__init__(store, layout, length, pad, seed, growing.window, shuffle=True)

    def __len__(self) -> int:
        if not self.whole:
            self._take(*self.growing.read())
        if not self.whole:
            raise UserError(
                f"how many rows an epoch has is not known while '{self.growing.place}' is being "
                "prepared: give trainer.max_steps, and trainer.val_check_interval in steps"
            )
        return super().__len__()

    def so_far(self) -> tuple[int, int]:
        """Rows and shards that are there, nothing is waited for."""
        if not self.whole:
            self._take(*self.growing.read())
        return self.order.rows, len(self.order.rows_per_shard)

    def __bool__(self) -> bool:
        return self.order.rows > 0

    def shards_of(self, numbers: Numbers) -> Numbers:
        """See `Rows`; none where the run is told to end before they are there."""
        if not self._reach(numbers, self.growing.wait_together):
            return numbers[:0]
        return super().shards_of(numbers)

    def read_words(self, numbers: Numbers) -> Ids:
        """See `Rows`."""
        self._reach(numbers, self.growing.wait)
        return super().read_words(numbers)

    def read(self, numbers: Numbers) -> tuple[Ids, Ids]:
        """See `Rows`."""
        self._reach(numbers, self.growing.wait)
        return super().read(numbers)

    def _reach(self, numbers: Numbers, wait: Callable[[int], tuple[Manifest, bool] | None]) -> bool:
        """Wait until the windows of all these samples are there; False where that was given up."""
        while not self.whole and len(numbers) and numbers.max() >= self.order.rows:
            seen = wait(len(self.order.rows_per_shard) + self.growing.window)
            if seen is None:
                return False
            self._take(*seen)
        return True

    def _take(self, manifest: Manifest | None, whole: bool) -> None:
        """Go on with more shards: whole windows of them, or all there are."""
        if manifest is None:
            return
        self.store, self.whole = TokenStore(self.growing.place, "train", manifest=manifest), whole
        known, there = self.order.rows_per_shard, len(self.store.shards)
        usable = there if whole else there // self.window * self.window
        rows = *known, *(self._rows_in(shard) for shard in range(len(known), usable))
        self.order = replace(self.order, rows_per_shard=rows, _epochs={}, _tables={})
