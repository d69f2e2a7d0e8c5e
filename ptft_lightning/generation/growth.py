"""One continuation as it grows: its tokens, its text, why it ends; knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ptft_lightning.data.tokenizer import Tokenizer

Finish = Literal["end", "stop", "max_new_tokens", "max_length"]
TORN = "\ufffd"  # what bytes that are no character, or not yet one, decode to
CONTEXT = 8  # tokens before a continuation that decide how its first one is written


@dataclass(frozen=True)
class Limits:
    """When a continuation ends, beside the tokenizer's end token."""

    max_new_tokens: int = 100
    stop: tuple[str, ...] = ()
    """Texts before which it is cut."""


class TextStream:
    """Token ids in, text out as soon as it is certain: never half a character."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.ids = list(context[-CONTEXT:])
        self.first, self.read = 0, len(self.ids)

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """The new text; after the `last` ids, also what never became a character.

        How a token is written depends on those before it (spaces, `##`): the text with it is
        compared to the text without it.
        """
        self.ids += ids
        before = self.tokenizer.decode(self.ids[self.first : self.read])
        now = self.tokenizer.decode(self.ids[self.first :])
        if now.endswith(TORN) and not last:
            return ""
        piece = now[len(before) :]
        if piece:  # tokens without text, such as [UNK], are no context
            self.first = self.read
        self.read = len(self.ids)
        return piece


@dataclass
class Continuation:
    """What a prompt went on with."""

    ids: list[int]
    """All tokens but the end token."""
    text: str
    """Up to the stop text, where there was one."""
    finish: Finish


@dataclass
class Growth:
    """A continuation that is not yet ended."""

    tokenizer: Tokenizer
    prompt: Sequence[int]
    limits: Limits
    room: int
    """Tokens until the model's max_length."""
    listen: Callable[[str], None] | None = None
    """Gets the text as it comes."""
    end: int | None = None
    """The token that ends it."""
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    said: int = 0

    def __post_init__(self) -> None:
        self.stream = TextStream(self.tokenizer, self.prompt)
        self.unread: list[int] = []

    def add(self, token: int) -> None:
        """One more token."""
        if token == self.end:
            self._end("end")
            return
        self.ids.append(token)
        self.unread.append(token)
        if self.limits.stop or self.listen is not None:
            self._read(last=False)
        if self.finish is None and len(self.ids) >= min(self.limits.max_new_tokens, self.room):
            cut = self.room < self.limits.max_new_tokens
            self._end("max_length" if cut else "max_new_tokens")

    def _end(self, finish: Finish) -> None:
        self._read(last=True)
        self.finish = self.finish or finish
        self._say(len(self.text))

    def _read(self, last: bool) -> None:
        """Turn tokens into text and look for a stop in what is new."""
        old = len(self.text)
        self.text += self.stream.push(self.unread, last)
        self.unread = []
        reach = max(map(len, self.limits.stop), default=1) - 1
        found = [self.text.find(stop, max(0, old - reach)) for stop in self.limits.stop]
        if at := [i for i in found if i >= 0]:
            self.text, self.finish = self.text[: min(at)], "stop"
        self._say(len(self.text) if self.finish else len(self.text) - self._held_back())

    def _held_back(self) -> int:
        """Characters at the end that may turn out to begin a stop."""
        most = 0
        for stop in self.limits.stop:
            lengths = range(1, min(len(stop), len(self.text) + 1))
            most = max([most, *(n for n in lengths if self.text.endswith(stop[:n]))])
        return most

    def _say(self, until: int) -> None:
        if self.listen is not None and until > self.said:
            self.listen(self.text[self.said : until])
            self.said = until

    def done(self) -> Continuation:
        """The ended continuation."""
        assert self.finish is not None
        return Continuation(self.ids, self.text, self.finish)
