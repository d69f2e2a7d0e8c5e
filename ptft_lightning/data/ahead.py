"""Work on the next items while this one is used; knows nothing of what they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 2  # enough that one is worked on while the next is begun and the last one ended


def ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Each item, in order, with what `work` makes of it in another thread; items are taken here.

    It pays where `work` gives up the interpreter, as tokenization does. `Executor.map` would take
    all items at once (it has a limit since Python 3.14).
    """
    with ThreadPoolExecutor(AHEAD) as threads:
        begun: deque[tuple[Item, Future[Result]]] = deque()
        for item in items:
            begun.append((item, threads.submit(work, item)))
            if len(begun) > AHEAD:
                first, result = begun.popleft()
                yield first, result.result()
        for first, result in begun:
            yield first, result.result()
