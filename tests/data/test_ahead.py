"""Work on the next items while one is used: in order, begun early, and no mistake is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ptft_lightning.data.ahead import AHEAD, ahead


def test_results_come_with_their_items_in_order():
    waits = threading.Event()

    def work(item: int) -> int:
        if item == 0:  # the first is done last
            waits.wait(10)
        elif item == 1:
            waits.set()
        return item * item

    assert list(ahead(work, range(7))) == [(i, i * i) for i in range(7)]
    assert list(ahead(work, [])) == []


def test_items_are_taken_here_and_no_more_than_are_worked_on():
    here, taken = threading.get_ident(), []

    def items() -> Iterator[int]:
        for item in range(9):
            assert threading.get_ident() == here
            taken.append(item)
            yield item

    for item, thread in ahead(lambda _: threading.get_ident(), items()):
        assert thread != here
        assert len(taken) == min(item + AHEAD + 1, 9)


def test_a_mistake_is_raised_where_its_item_is_due():
    def work(item: int) -> int:
        return 1 // (2 - item)

    results = ahead(work, range(5))
    assert next(results) == (0, 0)
    assert next(results) == (1, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)
