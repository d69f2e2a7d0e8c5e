"""Mixtures of token stores: fixed shares, each source in its own order, any sample at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.data.mixture import PERIOD, MixedRows, Turns, apportion, mix_rows
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

LENGTH = 16
shares_of = st.lists(st.floats(0.01, 1), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def sources(store: Path, corpus_txt: Path, bpe: Tokenizer, tmp_path_factory) -> list[Rows]:
    """The rows of two stores: the second has the documents of the first in another order."""
    other = tmp_path_factory.mktemp("other") / "store"
    prepare_store([str(corpus_txt)], bpe, other, validation_share=0.5, seed=3)
    opened = [TokenStore(at, "train") for at in (store, other)]
    return [Rows(s, "blocks", LENGTH, 0, seed=1, window=2, shuffle=True) for s in opened]


@given(shares_of, st.integers(5, 5000))
def test_counts_are_the_nearest_to_the_shares(shares, places):
    counts = apportion(shares, places)
    assert sum(counts) == places
    exact = np.array(shares) / sum(shares) * places
    assert (np.abs(counts - exact) < 1).all()


@given(shares_of, st.integers(0, 10 * PERIOD), st.integers(1, 200))
def test_every_stretch_of_samples_holds_about_its_share(shares, start, length):
    turns = Turns(shares)
    source, _ = turns.place(np.arange(start, start + length))
    for s, count in enumerate(turns.counts):
        # Each source is spread evenly; the others push a turn aside by as many places at most.
        assert abs((source == s).sum() - length * count / PERIOD) <= len(shares)


@given(shares_of)
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
    source, own = mixed.turns.place(numbers)
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
    source, _ = mixed.turns.place(numbers)
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
        mix_rows(sources[0], {"other": sources[1]}, {"other": 1e-5})
