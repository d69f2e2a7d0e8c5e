"""A token store that `prepare` is still at work on, read as far as it is finished.

Shards are finished in any order; the store so far is those before the first that is missing. Rows
are mixed within windows of shards, and epoch 0 reads the windows as stored: once a window is there,
the rows in it have their places, which are those of the finished store.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ptft_lightning.data.manifest import Manifest, has_manifest, read_manifest
from ptft_lightning.data.module import say
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
    """

    def __init__(self, place: str, tokenizer: Tokenizer, window: int) -> None:
        self.place, self.tokenizer, self.window = place, tokenizer, window
        self.receipts: list[dict[str, Any]] = []
        self.preparation: Preparation | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copied to workers without the process, which is not theirs."""
        return self.__dict__ | {"preparation": None}

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
        since = told = time.monotonic()
        made = -1
        while True:
            alive = is_being_prepared(self.place)  # before reading: its last shards are seen
            manifest, whole = self.read()
            there = 0 if manifest is None else sum(1 for s in manifest.train if s.tokens)
            if manifest is not None and (whole or there >= shards):
                return manifest, whole
            if self.preparation is not None:
                self.preparation.check()
            now = time.monotonic()
            if alive or there > made:
                since, made = now, there
            if now - since >= PATIENCE_S:
                raise UserError(f"{_nobody(self.place)} for {now - since:.0f} s: {_again(self)}")
            if now - told >= TELL_S:
                told = now
                who = "prepare is at work" if alive else f"{_nobody(self.place)}: {_again(self)}"
                say(f"waiting for shard {shards} of '{self.place}', it has {there}; {who}")
            time.sleep(POLL_S)

    @cached_property
    def first(self) -> Manifest:
        """The first window alone: the same whenever it is asked for. Waits for it."""
        manifest, _ = self.wait(self.window)
        return manifest.first_window(self.window)


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

    def __bool__(self) -> bool:
        return self.order.rows > 0

    def shards_of(self, numbers: Numbers) -> Numbers:
        """See `Rows`."""
        self._reach(numbers)
        return super().shards_of(numbers)

    def read_words(self, numbers: Numbers) -> Ids:
        """See `Rows`."""
        self._reach(numbers)
        return super().read_words(numbers)

    def read(self, numbers: Numbers) -> tuple[Ids, Ids]:
        """See `Rows`."""
        self._reach(numbers)
        return super().read(numbers)

    def _reach(self, numbers: Numbers) -> None:
        """Wait until the windows of all these samples are there."""
        while not self.whole and len(numbers) and numbers.max() >= self.order.rows:
            known = len(self.order.rows_per_shard)
            self._take(*self.growing.wait(known + self.growing.window))

    def _take(self, manifest: Manifest | None, whole: bool) -> None:
        """Go on with more shards: whole windows of them, or all there are."""
        if manifest is None:
            return
        self.store, self.whole = TokenStore(self.growing.place, "train", manifest=manifest), whole
        known, there = self.order.rows_per_shard, len(self.store.shards)
        usable = there if whole else there // self.window * self.window
        rows = *known, *(self._rows_in(shard) for shard in range(len(known), usable))
        self.order = replace(self.order, rows_per_shard=rows, _epochs={}, _tables={})
