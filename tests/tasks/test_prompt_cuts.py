"""Prompts are cut, answers stay: by hand, and for any lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.errors import UserError
from ptft_lightning.tasks.chat_template import Written
from ptft_lightning.tasks.prompt_cuts import fit, prompt_room


def written(prompt: int, answer: int, earlier: tuple[int, ...] = ()) -> Written:
    """Ids are their own places."""
    return Written([*range(prompt + answer)], [*earlier, *range(prompt, prompt + answer)], prompt)


@pytest.mark.parametrize(
    ("cut", "ids", "counted"),
    [
        ("middle", [0, 1, 2, 3, 16, 17, 18, 19, 20, 21], [3, 4, 8, 9]),
        ("left", [0, 13, 14, 15, 16, 17, 18, 19, 20, 21], [4, 8, 9]),
    ],
)
def test_by_hand(cut, ids, counted):
    """8 places for the prompt of 20; the earlier targets 3 and 16 stay where they are not cut."""
    found, lost = fit(written(20, 2, (3, 16)), 10, 2, cut, "here")
    assert (found.ids, found.counted, found.prompt, lost) == (ids, counted, 8, 12)


def test_what_fits_is_left_alone():
    whole = written(5, 4)
    assert fit(whole, 12, 6, "middle", "here") == (whole, 0)


lengths = st.integers(1, 60)


@given(lengths, lengths, st.integers(4, 50), lengths, st.sampled_from(["middle", "left"]))
def test_answers_stay_whole_where_they_can(prompt, answer, most, new, cut):
    found, lost = fit(written(prompt, answer), most, new, cut, "here")
    assert len(found.ids) <= most
    assert lost == prompt + answer - len(found.ids)
    kept = found.ids[found.prompt :]
    assert kept == [*range(prompt, prompt + len(kept))]
    assert len(kept) == answer or len(kept) >= min(new, most // 2, most - 2)
    assert found.counted == [*range(found.prompt, len(found.ids))]
    assert found.ids[0] == 0
    assert found.ids[found.prompt - 1] == prompt - 1  # what stands before the answer
    alone, _ = fit(written(prompt, 0), most, new, cut, "here")
    assert alone.ids == found.ids[: found.prompt]  # the same without its answer


def test_room_is_kept_for_an_answer():
    assert prompt_room(100, 30) == 70
    assert prompt_room(100, 80) == 50


def test_an_empty_prompt_is_refused():
    with pytest.raises(UserError, match="here: the prompt has no token"):
        fit(written(0, 3), 10, 2, "middle", "here")
