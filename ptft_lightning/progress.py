"""Progress of work measured in bytes: a rich bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0


class ByteProgress:
    """A context manager that shows bytes done, MB/s and the time left."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.done = self.fresh = 0
        self.began = self.spoken = time.monotonic()
        self.bar = Progress(
            TextColumn(what),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self.task = self.bar.add_task(what, total=total, speed="")

    def __enter__(self) -> ByteProgress:
        self.bar.start()
        return self

    def advance(self, count: int) -> None:
        """`count` more bytes were worked on now."""
        self.fresh += count
        self._show(self.done + count)

    def advance_to(self, position: int) -> None:
        """All bytes before `position` are done, now or in an earlier call."""
        self._show(position)

    def _show(self, done: int) -> None:
        self.done = min(done, self.total)
        self.bar.update(self.task, completed=self.done, speed=f"{self.speed:.1f} MB/s")
        now = time.monotonic()
        if self.bar.disable and now - self.spoken > PLAIN_EVERY_S:
            self.spoken = now
            left = (self.total - self.done) / 1e6 / max(self.speed, 1e-9)
            print(f"{self.what}: {self._summary()}, {left:.0f} s left", file=sys.stderr, flush=True)

    @property
    def speed(self) -> float:
        """MB/s of the work done in this call."""
        return self.fresh / 1e6 / max(time.monotonic() - self.began, 1e-9)

    def _summary(self) -> str:
        return f"{self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB, {self.speed:.1f} MB/s"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.stop()
        if kind is None and self.bar.disable:
            print(f"{self.what}: {self._summary()}", file=sys.stderr, flush=True)
