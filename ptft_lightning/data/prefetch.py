"""Shards fetched before they are needed, beside the training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from threading import Event, Thread

from ptft_lightning.data.module import say
from ptft_lightning.data.rows import Rows

PAUSE_S = 0.5
AFTER_FAILURE_S = 30.0
LAST_WAIT_S = 5.0


class Prefetch(Thread):
    """Keeps the shards of this window and the next in the caches, in the order of reading.

    Args:
        rows: The training rows.
        number: The sample where training is.
    """

    def __init__(self, rows: Rows, number: Callable[[], int]) -> None:
        super().__init__(name="prefetch", daemon=True)
        # A copy of its own: an order keeps tables, which two threads must not change at once.
        self.rows, self.number, self.ended = copy.deepcopy(rows), number, Event()

    def run(self) -> None:
        """Until `stop`. What cannot be fetched is left to whoever needs it, which tells it."""
        while not self.ended.is_set():
            pause = PAUSE_S
            try:
                self._once()
            except Exception as error:  # training goes on, and whoever needs a shard fetches it
                say(f"fetching ahead failed: {error}")
                pause = AFTER_FAILURE_S
            self.ended.wait(pause)

    def _once(self) -> None:
        for store, shard in self.rows.ahead(self.number()):
            if self.ended.is_set():
                return
            store.bring(shard)

    def stop(self) -> None:
        """End after the shard that is being fetched."""
        self.ended.set()
        self.join(LAST_WAIT_S)
