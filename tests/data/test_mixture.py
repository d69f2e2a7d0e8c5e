"""Mixtures of token stores: fixed shares, each source in its own order, any sample at once."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.data.mixture import MixedRows, shares_of
from ptft_lightning.data.mixture_config import MixtureConfig
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.turns import PERIOD, Turns, apportion
from ptft_lightning.errors import UserError

LENGTH = 16
some_shares = st.lists(st.floats(0.01, 1), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def sources(store: Path, corpus_txt: Path, bpe: Tokenizer, tmp_path_factory) -> list[Rows]:
    """The rows of two stores: the second has the documents of the first in another order."""
    other = tmp_path_factory.mktemp("other") / "store"
    prepare_store([str(corpus_txt)], bpe, other, validation_share=0.5, seed=3)
    opened = [TokenStore(at, "train") for at in (store, other)]
    return [Rows(s, "blocks", LENGTH, 0, seed=1, window=2, shuffle=True) for s in opened]


@given(some_shares, st.integers(5, 5000))
def test_counts_are_the_nearest_to_the_shares(shares, places):
    counts = apportion(shares, places)
    assert sum(counts) == places
    exact = np.array(shares) / sum(shares) * places
    assert (np.abs(counts - exact) < 1).all()


@given(some_shares, st.integers(0, 10 * PERIOD), st.integers(1, 200))
def test_every_stretch_of_samples_holds_about_its_share(shares, start, length):
    turns = Turns(shares)
    source, _ = turns.place(np.arange(start, start + length))
    for s, count in enumerate(turns.counts):
        # Each source is spread evenly; the others push a turn aside by as many places at most.
        assert abs((source == s).sum() - length * count / PERIOD) <= len(shares)


@given(some_shares)
def test_a_source_s_samples_are_taken_one_after_another(shares):
    turns = Turns(shares)
    source, own = turns.place(np.arange(2 * PERIOD + 17))
    for s in range(len(shares)):
        mine = own[source == s]
        assert mine.tolist() == list(range(len(mine)))
        assert turns.until(s, len(mine)) == np.flatnonzero(source == s)[-1] + 1


def test_rows_are_those_of_their_sources(sources):
    mixed = MixedRows(sources, [0.8, 0.2])
    numbers = np.random.default_rng(0).permutation(3 * len(mixed))[:300]
    tokens, documents = mixed.read(numbers)
    source, own = mixed.place(numbers)
    for at in range(len(numbers)):
        one, its = sources[source[at]].read(own[at : at + 1])
        assert (tokens[at] == one[0]).all()
        assert (documents[at] == its[0]).all()
    assert 0.15 < (source == 1).mean() < 0.25
    shards = mixed.shards_of(numbers)
    count = len(sources[0].store.shards)
    assert ((shards >= count) == (source == 1)).all()


def test_empty_slots_are_padding(sources):
    mixed = MixedRows(sources, [0.5, 0.5])
    tokens, documents = mixed.read(np.array([-1, 5, -1]))
    assert not tokens[[0, 2]].any()
    assert not documents[[0, 2]].any()
    assert documents[1].all()


def test_an_epoch_is_one_pass_over_the_first_store(sources):
    mixed = MixedRows(sources, [0.7, 0.3])
    numbers = np.arange(len(mixed))
    source, _ = mixed.place(numbers)
    assert (source == 0).sum() == len(sources[0])
    assert source[-1] == 0
    rows = Counter(map(tuple, mixed.read(numbers)[0][source == 0].tolist()))
    every = sources[0].read(np.arange(len(sources[0])))[0]
    assert rows == Counter(map(tuple, every.tolist()))


@pytest.mark.parametrize(
    ("replay", "said"),
    [
        ({"a": 0.6, "b": 0.5}, "sum to 1.1"),
        ({"a": 1.5}, "data.replay.a is 1.5"),
        ({"a": 0.0}, "data.replay.a is 0.0"),
        ({"store": 0.5}, "names data.store 'store' itself"),
    ],
)
def test_wrong_shares_are_refused(replay, said):
    with pytest.raises(UserError, match=said):
        CorpusDataModule("store", replay=replay)


def test_a_share_too_small_for_a_turn_is_refused(sources):
    with pytest.raises(UserError, match="less than 1 in 4096"):
        MixedRows(sources, [1, 1e-5])


# Shares that change.

tables = st.lists(
    st.tuples(st.integers(1, 3 * PERIOD), st.lists(st.floats(0.05, 1), min_size=3, max_size=3)),
    min_size=1,
    max_size=4,
)


@given(tables)
@settings(max_examples=25)
def test_each_source_goes_on_where_shares_change(sources, table):
    """Whatever the shares were, row k of a source is its k-th turn."""
    three = [*sources, sources[0]]
    mixed = MixedRows(three, [1, 1, 1])
    firsts = np.cumsum([0, *(length for length, _ in table[:-1])])
    mixed.share_out([(int(f), shares) for f, (_, shares) in zip(firsts, table, strict=True)])
    count = int(firsts[-1]) + table[-1][0]
    source, own = mixed.place(np.arange(count))
    for s in range(3):
        mine = own[source == s]
        assert mine.tolist() == list(range(len(mine)))
    assert mixed.taken(count).tolist() == [int((source == s).sum()) for s in range(3)]
    every = [*firsts.tolist(), count]
    for (first, after), (_, shares) in zip(pairwise(every), table, strict=True):
        found = np.bincount(source[first:after], minlength=3)
        exact = (after - first) * np.array(shares) / sum(shares)
        assert (np.abs(found - exact) <= 3 + (after - first) / PERIOD).all()


def test_an_epoch_ends_with_the_first_store_whatever_the_shares_were(sources):
    mixed = MixedRows(sources, [1, 1])
    first = len(sources[0]) // 2
    mixed.share_out([(0, [1, 1]), (first, [9, 1]), (first + 7, [2, 3])])
    source, _ = mixed.place(np.arange(len(mixed)))
    assert (source == 0).sum() == len(sources[0])
    assert source[-1] == 0


def test_a_store_may_be_left_out_for_now(sources):
    mixed = MixedRows(sources, [1, 0])
    mixed.share_out([(0, [1, 0]), (50, [1, 1])])
    source, own = mixed.place(np.arange(60))
    assert not source[:50].any()
    assert source[50:].sum() == 5
    assert own[source == 1].tolist() == [0, 1, 2, 3, 4]
    needed = {store.place for store, _ in mixed.ahead(0)}
    assert needed == {sources[0].store.place}


# What the shares follow from.


def wanted(stores: list[int], rows: int, taken: list[int] | None = None, **mixture):
    """Shares of stores of so many rows in a run of `rows` rows."""
    names = {f"s{i}": f"place{i}" for i in range(len(stores))}
    if "weights" in mixture:
        mixture["weights"] = dict(zip(names, mixture["weights"], strict=True))
    data = SimpleNamespace(mixture=MixtureConfig(names, **mixture))
    data.mixture.check()
    before = np.array(taken or [0] * len(stores))
    return shares_of(data, [range(n) for n in stores], before, rows)


def test_shares_by_size_and_temperature():
    sizes = [1000, 100, 10]
    assert wanted(sizes, -1) == pytest.approx([n / 1110 for n in sizes])
    root = [n**0.5 for n in sizes]
    assert wanted(sizes, -1, temperature=2) == pytest.approx([n / sum(root) for n in root])
    assert wanted(sizes, -1, temperature=1e9) == pytest.approx([1 / 3] * 3)
    assert wanted(sizes, -1, weights=[2.0, 1.0, 1.0]) == pytest.approx([0.5, 0.25, 0.25])


def test_no_store_is_read_more_often_than_asked():
    # By weight 400 rows each; the last has 50 rows, four passes give 200: the others share 200.
    shares = wanted([1000, 1000, 50], 1200, weights=[1.0, 1.0, 1.0], max_passes=4)
    assert shares == pytest.approx([500 / 1200, 500 / 1200, 200 / 1200])
    # 120 of them are read already.
    shares = wanted([1000, 1000, 50], 1200, [90, 90, 120], weights=[1.0, 1.0, 1.0], max_passes=4)
    assert shares == pytest.approx([560 / 1200, 560 / 1200, 80 / 1200])


@given(
    st.lists(st.integers(1, 1000), min_size=2, max_size=6), st.floats(0.5, 8), st.floats(0.01, 1)
)
def test_caps_hold_and_the_shares_below_them_keep_their_ratio(sizes, passes, fill):
    room = passes * np.array(sizes)
    rows = max(1, int(fill * room.sum()))
    shares = np.array(wanted(sizes, rows, temperature=3, max_passes=passes)) * rows
    assert shares.sum() == pytest.approx(rows)
    assert (shares <= room * (1 + 1e-9)).all()
    free = shares < room * (1 - 1e-9)
    ratio = shares[free] / np.array(sizes)[free] ** (1 / 3)
    assert ratio == pytest.approx(ratio[:1].repeat(len(ratio)))
    # One at its cap would have got at least as much as those below theirs.
    full = room[~free] / np.array(sizes)[~free] ** (1 / 3)
    assert not len(ratio) or (full <= ratio[0] * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("mixture", "rows", "said"),
    [
        ({"max_passes": 2}, 400, "the stores give 220 rows, the run reads 400"),
        ({"max_passes": 2}, -1, "give trainer.max_steps, not epochs"),
        ({"max_passes": 0}, 9, "max_passes is 0"),
        ({"temperature": -1.0}, 9, "temperature is -1"),
        ({"weights": [0.0, 0.0]}, 9, "are all 0"),
        ({"weights": [1.0, -0.5]}, 9, "weights.s1 is -0.5"),
        ({"weights": [0.0, 1.0]}, 9, "one pass over the first store"),
        ({"weights": [1.0, 0.0], "max_passes": 1}, 50, "the stores give 10 rows"),
    ],
)
def test_what_cannot_be_had_is_refused(mixture, rows, said):
    with pytest.raises(UserError, match=said):
        wanted([10, 100], rows, **mixture)


def test_stores_are_named_once():
    with pytest.raises(UserError, match="do not both name 'b'"):
        MixtureConfig({"a": "x"}, {"a": 1, "b": 1}).check()
    with pytest.raises(UserError, match="names 'x' twice"):
        MixtureConfig({"a": "x", "b": "x"}).check()
    with pytest.raises(UserError, match="give one of the two"):
        CorpusDataModule("store", mixture=MixtureConfig({"a": "x"}))
    with pytest.raises(UserError, match="give one of the two"):
        CorpusDataModule()
