"""The sample order is arithmetic: permutations, windows, steps, against slow simulations."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ptft_lightning.data import sample_order
from ptft_lightning.data.sample_order import (
    Order,
    Segment,
    Segments,
    keyed_permutation,
    micro_batches,
    random_key,
    random_words,
    rank_slots,
)

# Random numbers.


def test_random_words_are_philox_of_seed_purpose_and_sample() -> None:
    samples = np.array([0, 5, -1, 10**12])
    words = random_words(3, "masked", samples, 7)
    for row, sample in enumerate(samples.tolist()):
        key = random_key(3, "masked") + ((sample + 1) << 64)  # 128 bits, as one number
        assert (words[row] == np.random.Philox(key=key).random_raw(7)).all()
    assert (random_words(3, "masked", samples[[2, 0]], 7) == words[[2, 0]]).all()
    assert (random_words(3, "masked", samples, 4) == words[:, :4]).all()


def test_random_words_differ_by_seed_purpose_and_sample() -> None:
    samples = np.arange(200)
    words = [random_words(seed, p, samples, 2) for seed in range(3) for p in ("a", "b")]
    assert len(np.unique(np.concatenate(words))) == 200 * 2 * 6


def test_random_keys_are_the_same_on_every_machine() -> None:
    """Change these numbers and every run's order and masks change with them."""
    assert random_key(0, "masked") == 17114458440227965027
    assert random_words(0, "masked", np.array([0]), 2)[0].tolist() == [
        6899886811303715407,
        14244393190643781898,
    ]
    assert keyed_permutation(np.arange(8), 8, (0, "rows")).tolist() == [6, 4, 3, 0, 5, 2, 1, 7]


def test_random_key_tells_words_apart() -> None:
    keys = [random_key(1, 23), random_key(12, 3), random_key(123), random_key("1", 2, 3)]
    assert len(set(keys)) == 4


# Permutations.


def test_keyed_permutation_is_a_permutation_that_depends_on_its_key() -> None:
    for size in range(1, 301):
        permuted = [keyed_permutation(np.arange(size), size, (key,)) for key in range(3)]
        for p in permuted:
            assert sorted(p.tolist()) == list(range(size))
        if size >= 20:
            assert len({tuple(p) for p in permuted}) == 3


@given(size=st.integers(1, 2**40), key=st.integers(0, 9), data=st.data())
def test_keyed_permutation_of_large_ranges(size: int, key: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=20)))
    out = keyed_permutation(index.astype(np.int64), size, (key,))
    assert len(set(out.tolist())) == len(index)
    assert ((out >= 0) & (out < size)).all()
    for i, o in zip(index, out, strict=True):  # any subset, any order
        assert keyed_permutation(np.array([i]), size, (key,))[0] == o


@pytest.mark.parametrize("size", [3, 10, 64, 100])
def test_keyed_permutation_is_uniform(size: int) -> None:
    """Over many keys, every index goes everywhere, and neighbours part (chi-square, 6 sigma)."""
    keys = 2000
    permuted = np.array([keyed_permutation(np.arange(size), size, (k, "x")) for k in range(keys)])
    freedom = size - 1
    for index in {0, 1, size // 2, size - 1}:
        counts = np.bincount(permuted[:, index], minlength=size)
        chi = ((counts - keys / size) ** 2 / (keys / size)).sum()
        assert chi < freedom + 6 * (2 * freedom) ** 0.5 + 6
    neighbours = np.mean(np.diff(permuted, axis=1) == 1)
    expected = 1 / size  # (size - 1) / (size (size - 1))
    assert neighbours == pytest.approx(expected, rel=0.15)


# Order.

shard_rows = st.lists(st.integers(0, 30), min_size=1, max_size=12)


@given(
    rows=shard_rows,
    seed=st.integers(0, 5),
    window=st.integers(1, 14),
    shuffle=st.booleans(),
    epoch=st.integers(0, 5),
)
def test_every_epoch_takes_every_row_once(
    rows: list[int], seed: int, window: int, shuffle: bool, epoch: int
) -> None:
    total = sum(rows)
    assume(total)
    order = Order(tuple(rows), seed, window, shuffle)
    numbers = np.arange(epoch * total, (epoch + 1) * total)
    placed = list(zip(*(a.tolist() for a in order.place(numbers)), strict=True))
    everything = [(shard, row) for shard, count in enumerate(rows) for row in range(count)]
    assert sorted(placed) == everything
    if not shuffle:
        assert placed == everything


@given(rows=shard_rows, seed=st.integers(0, 5), window=st.integers(1, 14), epoch=st.integers(0, 3))
def test_rows_stay_within_their_window_of_shards(
    rows: list[int], seed: int, window: int, epoch: int
) -> None:
    """The next window begins when the last one is used up: `window` shards at hand are enough."""
    total = sum(rows)
    assume(total)
    shards, _ = Order(tuple(rows), seed, window).place(np.arange(total) + epoch * total)
    visited = list(dict.fromkeys(shards.tolist()))  # shards by their first use
    last_use = {s: int(np.flatnonzero(shards == s)[-1]) for s in visited}
    first_use = {s: int(np.flatnonzero(shards == s)[0]) for s in visited}
    at_hand = [sum(first_use[s] <= at <= last_use[s] for s in visited) for at in range(0, total, 3)]
    assert max(at_hand) <= window
    if epoch == 0:  # as stored
        for start in range(0, len(rows), window):
            numbers = np.arange(sum(rows[:start]), sum(rows[: start + window]))
            assert set(shards[numbers].tolist()) <= set(range(start, start + window))


def test_later_epochs_permute_shards_and_rows() -> None:
    rows = (50,) * 24
    order = Order(rows, seed=1, window=4)
    orders = []
    for epoch in range(3):
        shards, inside = order.place(np.arange(sum(rows)) + epoch * sum(rows))
        first_windows = [frozenset(shards[w * 200 : (w + 1) * 200].tolist()) for w in range(6)]
        assert all(len(w) == 4 for w in first_windows)
        orders.append((first_windows, tuple(inside.tolist())))
    assert orders[0][0] == [frozenset(range(w, w + 4)) for w in range(0, 24, 4)]
    assert orders[1][0] != orders[0][0]
    assert orders[2][0] != orders[1][0]
    assert len({rows for _, rows in orders}) == 3
    first = np.stack(order.place(np.arange(200))) - [[0], [0]]
    second = np.stack(order.place(np.arange(200, 400))) - [[4], [0]]
    assert (first != second).any(axis=0).mean() > 0.9  # each window has an order of its own
    other = Order(rows, seed=2, window=4).place(np.arange(1200))
    assert (other[1] != order.place(np.arange(1200))[1]).mean() > 0.9


@given(data=st.data(), seed=st.integers(0, 3), window=st.integers(1, 6))
def test_place_is_a_pure_function(data: st.DataObject, seed: int, window: int) -> None:
    rows = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=9)))
    order = Order(rows, seed, window)
    whole = np.stack(order.place(np.arange(4 * sum(rows))))
    numbers = np.array(data.draw(st.lists(st.integers(0, 4 * sum(rows) - 1), max_size=20)), int)
    assert (np.stack(Order(rows, seed, window).place(numbers)) == whole[:, numbers]).all()


def test_seek_costs_the_same_everywhere() -> None:
    order = Order((1_000_003,) * 1000, seed=0)
    took = []
    for number in (0, 10**12, 10**15):
        began = time.perf_counter()
        shards, rows = order.place(np.arange(number, number + 64))
        took.append(time.perf_counter() - began)
        assert ((shards >= 0) & (shards < 1000) & (rows >= 0) & (rows < 1_000_003)).all()
        assert len(set(zip(shards.tolist(), rows.tolist(), strict=True))) == 64
    assert min(took[1:]) < 0.05


def test_large_windows_are_computed_as_small_ones_are_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = np.random.default_rng(0).integers(0, 300, 500)
    looked_up = Order((30, 50, 20), seed=5, window=2).place(numbers)
    monkeypatch.setattr(sample_order, "TABLE", 0)
    computed = Order((30, 50, 20), seed=5, window=2).place(numbers)
    assert np.array_equal(looked_up, computed)


def test_the_shards_ahead_are_those_of_the_next_samples() -> None:
    order = Order((3, 5, 2, 7, 4, 6, 1), seed=2, window=2)
    for number in range(3 * order.rows):
        ahead = order.shards_from(number)
        assert len(ahead) <= 2 * order.window
        _, inside = divmod(number, order.rows)
        at = order.place(np.array([number]))[0][0]
        assert at in ahead[: order.window]
        # What follows until a window has been read through is among them.
        epoch_left = order.rows - inside
        soon = order.place(np.arange(number, number + min(epoch_left, 2)))[0]
        assert set(soon.tolist()) <= set(ahead)


def test_nothing_to_place() -> None:
    for rows in ((), (0, 0), (3,)):
        shards, inside = Order(rows, 0).place(np.arange(0))
        assert shards.size == inside.size == 0


# Steps.


def simulate(
    changes: list[tuple[int, int]], period: int | None, steps: int
) -> list[tuple[int, int]]:
    """(first, past the last) sample of each step, one sample after the other.

    `changes` gives (from this step on, so many samples a step).
    """
    batch_at = dict(changes)
    spans, sample, batch = [], 0, batch_at[0]
    for step in range(steps):
        batch = batch_at.get(step, batch)
        first = sample
        for _ in range(batch):
            sample += 1
            if period is not None and sample % period == 0:
                break
        spans.append((first, sample))
    return spans


@given(
    batches=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20)), min_size=1, max_size=5),
    period=st.none() | st.integers(1, 40),
)
def test_spans_against_a_simulation(batches: list[tuple[int, int]], period: int | None) -> None:
    steps = 60
    changes, at = [], 0
    for batch, length in batches:
        changes.append((at, batch))
        at += length
    segments = Segments((Segment(0, 0, batches[0][0]),), period)
    for step, batch in changes[1:]:
        segments = segments.change(step, batch)
        segments = Segments.from_state(segments.state(), period)  # through a checkpoint
    expected = simulate(changes, period, steps)
    assert [segments.span(s) for s in range(steps)] == expected
    assert [segments.span(s) for s in reversed(range(steps))] == expected[::-1]


@given(first=st.integers(1, 9), second=st.integers(1, 9), third=st.integers(1, 9))
def test_change_at_one_step_counts_once(first: int, second: int, third: int) -> None:
    """A run resumed twice from one checkpoint with other batch sizes keeps the last one."""
    segments = Segments((Segment(0, 0, first),)).change(5, second).change(5, third)
    assert len(segments.table) == 2
    assert [segments.span(s) for s in range(9)] == simulate([(0, first), (5, third)], None, 9)


@given(
    skips=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), max_size=4),
    batches=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    since=st.integers(0, 20),
)
def test_what_is_left_out_is_in_no_later_step(skips, batches, since):
    segments, at = Segments((Segment(0, 0, batches[0][0]),)), 0
    for batch, length in batches[:-1]:
        segments, at = segments.change(at + length, batch), at + length
    since = max(since, at)
    ranges, reached = [], segments.span(since)[0]
    for gap, length in skips:  # one after another, as a run meets them
        ranges.append((reached + gap, reached + gap + length))
        reached = ranges[-1][1]
    left = segments.leave_out(ranges, since)
    assert [left.span(s) for s in range(since)] == [segments.span(s) for s in range(since)]
    out = {n for first, after in ranges for n in range(first, after)}
    spans = [left.span(s) for s in range(since, since + 400)]
    assert not out & {n for first, after in spans for n in range(first, after)}
    lost = 0
    for (_, end), (start, _), step in zip(spans, spans[1:], range(since + 1, 10**6), strict=False):
        gap = left.skipped(step)
        assert gap == ((end, start) if start > end else None)
        lost += start - end
    start = spans[0][0] - segments.span(since)[0]
    assert lost + start <= len(out) + len(ranges) * left.table[-1].global_batch  # by whole steps
    assert left.leave_out(ranges, since) == left  # once is enough


def test_far_steps_need_no_replay() -> None:
    segments = Segments((Segment(0, 0, 32),), period=1001)
    epoch, step = divmod(10**9, 32)
    assert segments.span(10**9) == (
        epoch * 1001 + step * 32,
        min((step + 1) * 32, 1001) + epoch * 1001,
    )


# Ranks.


@given(count=st.integers(0, 200), ranks=st.integers(1, 20))
def test_rank_slots_tile_the_batch_evenly(count: int, ranks: int) -> None:
    slots = [rank_slots(count, rank, ranks) for rank in range(ranks)]
    assert [s for slot in slots for s in range(count)[slot]] == list(range(count))
    sizes = Counter(slot.stop - slot.start for slot in slots)
    assert max(sizes) - min(sizes) <= 1


@given(count=st.integers(0, 200), ranks=st.integers(1, 20), micro=st.integers(1, 9))
def test_micro_batches_hold_the_largest_share_and_no_more(
    count: int, ranks: int, micro: int
) -> None:
    batches = micro_batches(count, ranks, micro)
    shares = [rank_slots(count, rank, ranks) for rank in range(ranks)]
    largest = max(s.stop - s.start for s in shares)
    assert (batches - 1) * micro < largest <= batches * micro or batches == largest == 0
