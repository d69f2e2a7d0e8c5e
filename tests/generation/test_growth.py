"""Text comes as soon as it is certain, never half a character; it ends where it must."""

from __future__ import annotations

import pytest

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.generation.growth import TORN, Growth, Limits, TextStream

TEXT = "The river 的一 reads 𝄞🙂 Ünknown,  spaces\n\nand 鼹 don't stop ."


def streamed(tokenizer: Tokenizer, ids: list[int], context: int) -> tuple[str, list[str]]:
    stream = TextStream(tokenizer, ids[:context])
    pieces = [stream.push([token]) for token in ids[context:]]
    return tokenizer.decode(ids[:context]), [*pieces, stream.push([], last=True)]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
@pytest.mark.parametrize("context", [1, 5])
def test_the_pieces_are_the_text(kind, context, request):
    tokenizer = request.getfixturevalue(kind)
    (ids,) = tokenizer.encode([TEXT])
    begun, pieces = streamed(tokenizer, ids, context)
    assert begun + "".join(pieces) == tokenizer.decode(ids)
    assert [piece for piece in pieces if TORN in piece] == []
    assert pieces[-1] == ""


def test_a_character_of_four_tokens_comes_whole(bpe):
    (ids,) = bpe.encode(["a🙂b"])
    assert len(ids) == 6
    assert streamed(bpe, ids, 1)[1] == ["", "", "", "🙂", "b", ""]


def test_bytes_that_never_become_a_character_come_at_the_end(bpe):
    (ids,) = bpe.encode(["a🙂"])
    assert streamed(bpe, ids[:3], 1)[1] == ["", "", TORN]
    # Whole characters among them are not torn.
    assert "".join(streamed(bpe, ids[:3] + bpe.encode(["的🙂"])[0], 1)[1]) == f"{TORN}的🙂"


def grow(tokenizer: Tokenizer, text: str, limits: Limits, room: int = 99) -> tuple[Growth, list]:
    (prompt, ids) = tokenizer.encode(["Two", text])
    heard: list[str] = []
    growth = Growth(tokenizer, prompt, limits, room, heard.append, end=tokenizer.end)
    for token in [*ids, tokenizer.end]:
        if growth.finish is None:
            growth.add(token)
    return growth, heard


def test_the_end_token_ends(bpe):
    growth, heard = grow(bpe, " letters🙂", Limits())
    assert (growth.finish, growth.text, "".join(heard)) == ("end", " letters🙂", " letters🙂")
    assert growth.done().ids == bpe.encode([" letters🙂"])[0]


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        (("stone",), "water and "),
        (("and sto", "stone"), "water "),
        (("zzz", "。"), "water and stone stonehenge的"),
        (("🙂",), "water and stone stonehenge的。"),
        (("w",), ""),
    ],
)
def test_a_stop_ends_and_is_never_heard(bpe, stop, left):
    growth, heard = grow(bpe, "water and stone stonehenge的。🙂", Limits(stop=stop))
    assert (growth.finish, growth.text, "".join(heard)) == ("stop", left, left)


def test_what_only_began_like_a_stop_is_heard(bpe):
    growth, heard = grow(bpe, "water and sto", Limits(stop=("stone",)))
    assert (growth.finish, "".join(heard)) == ("end", "water and sto")


def test_limits(bpe):
    for limits, room, finish in ((Limits(3), 99, "max_new_tokens"), (Limits(9), 3, "max_length")):
        growth, _ = grow(bpe, "one two three four five", limits, room)
        assert (growth.finish, len(growth.ids)) == (finish, 3)
        assert growth.text == bpe.decode(growth.ids)
