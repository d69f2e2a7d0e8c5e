"""Conversations -> token ids by a Jinja template; knows no files and no model.

Control tokens stand only where the template itself writes their names; what people say never
becomes one. The prompt is encoded apart from the answer, so that it is the same in training, where
the answer is known, and after it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ptft_lightning.data.conversations import ASSISTANT, USER, Turn
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

# What the user says is quoted, as in letters; the answer stands below it.
PLAIN = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '> ' + message.content + '\\n\\n' }}
{%- elif message.role == 'assistant' %}{{ message.content + eos_token + '\\n\\n' }}
{%- else %}{{ message.content + '\\n\\n' }}
{%- endif %}
{%- endfor %}"""
# Stand for what is said while a template is read: characters that no text has.
OPEN, CLOSE = "\ufdd0", "\ufdd1"
SLOT = re.compile(f"{OPEN}(\\d+){CLOSE}")


class Piece(NamedTuple):
    """A stretch of a prompt: a control token, or text."""

    control: int | None
    text: str
    slot: int | None = None
    """Whose turn's text it is; None: the template's."""


@dataclass(frozen=True)
class Frame:
    """What a template writes around the turns of some roles."""

    asked: str
    """All up to where an answer is to be written, with slots for what is said."""
    answered: str
    """The whole, with the answer."""
    prompt: list[Piece]
    before: list[Piece]
    """Between the prompt and the answer's text; a model that answers writes it, too."""
    after: list[Piece]
    """From the answer's text to the control token that ends it."""


class Run(NamedTuple):
    """A control token, or text that is encoded as a whole."""

    control: int | None
    text: str
    counts: bool


class Written(NamedTuple):
    """A conversation as token ids."""

    ids: list[int]
    counted: list[int]
    """The places of ids that an assistant wrote: its text and what ends it."""
    prompt: int
    """How many ids come before the last answer."""


class ChatTemplate:
    """A template ready for a tokenizer.

    Args:
        source: Jinja as Hugging Face's library reads it (`messages`, `add_generation_prompt`,
            `bos_token`, `eos_token`, `raise_exception`); None: a plain one of ours.
        tokenizer: Its special tokens are those that a template can name.
        every: Whether all assistant's turns count that answer someone, or the last one alone.
    """

    def __init__(self, source: str | None, tokenizer: Tokenizer, every: bool) -> None:
        self.source, self.tokenizer, self.every = source or PLAIN, tokenizer, every
        decoder = tokenizer.raw.get_added_tokens_decoder().items()
        self.controls = {token.content: i for i, token in decoder if token.special}
        names = sorted(self.controls, key=len, reverse=True)
        self.names = re.compile("|".join(map(re.escape, names)) or "(?!)")
        self.frames: dict[tuple[str, ...], Frame] = {}

    @cached_property
    def _compiled(self) -> Any:
        from jinja2.exceptions import TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise UserError(f"the chat template refuses this conversation: {message}")

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = refuse
        try:
            return environment.from_string(self.source)
        except TemplateSyntaxError as error:
            raise UserError(
                f"model.task.template line {error.lineno} is not Jinja: {error.message}"
            ) from error

    def render(self, turns: Sequence[Turn], answer: bool = False) -> str:
        """The text of turns; with `answer`, up to where an answer is to be written."""
        from jinja2.exceptions import TemplateError

        parts = (self.tokenizer.begin, self.tokenizer.end, self.tokenizer.pad)
        named = ["" if i is None else self.tokenizer.raw.id_to_token(i) for i in parts]
        try:
            text: str = self._compiled.render(
                messages=[turn._asdict() for turn in turns],
                add_generation_prompt=answer,
                bos_token=named[0],
                eos_token=named[1],
                pad_token=named[2],
            )
        except UserError:
            raise
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise UserError(f"the chat template cannot be used: {error}") from error
        return text

    @cached_property
    def end(self) -> int:
        """The control token that ends an answer.

        Raises:
            UserError: there is none, or the template cannot be used at all.
        """
        ending = self._frame((USER,)).after[-1].control
        assert ending is not None, "the last piece is one"
        return ending

    def write(self, turns: Sequence[Turn], answer: str | None, place: str) -> Written:
        """The ids of turns and, where there is one, of their answer.

        Raises:
            UserError: the template cannot write this conversation.
        """
        whole = [*turns, Turn(ASSISTANT, answer)] if answer is not None else turns
        roles = [turn.role for turn in turns]
        try:
            frame = self._frame(tuple(roles))
            said = self._as_rendered(whole, answer is not None, frame)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        # Who opens a conversation answers nobody.
        answers = {i: USER in roles[:i] for i, role in enumerate(roles) if role == ASSISTANT}
        ids, counted = self._ids(frame.prompt, said, answers)
        counted = counted if self.every and answer is not None else []
        prompt = len(ids)
        if answer is not None:
            own = [*frame.before, Piece(None, "", len(turns)), *frame.after]
            ids += self._ids(own, said, {})[0]
            counted += range(prompt, len(ids))
        return Written(ids, counted, prompt)

    def _frame(self, roles: tuple[str, ...]) -> Frame:
        if roles in self.frames:
            return self.frames[roles]
        slots = [Turn(role, f"{OPEN}{i}{CLOSE}") for i, role in enumerate((*roles, ASSISTANT))]
        asked, answered = self.render(slots[:-1], answer=True), self.render(slots)
        before, found, after = answered.partition(slots[-1].content)
        lost = [turn.role for turn in slots[:-1] if asked.count(turn.content) != 1]
        if lost or not found:
            raise UserError(
                f"the chat template does not write a turn of '{(lost or [ASSISTANT])[0]}' once"
            )
        if not before.startswith(asked):
            raise UserError(
                "the chat template writes a conversation otherwise when its answer is known: what "
                "stands before the answer must begin with what add_generation_prompt gives"
            )
        ending = self.names.search(after)
        if ending is None:
            raise UserError(
                "the chat template writes no control token after an answer, so that a model could "
                f"not end it: put {{{{ eos_token }}}} there (the tokenizer has "
                f"{', '.join(self.controls) or 'none'})"
            )
        self.frames[roles] = Frame(
            asked,
            answered,
            self._pieces(asked),
            self._pieces(before[len(asked) :]),
            self._pieces(after[: ending.end()]),
        )
        return self.frames[roles]

    def _pieces(self, text: str) -> list[Piece]:
        """A rendered text with slots, in pieces."""
        pieces = []
        for number, part in enumerate(SLOT.split(text)):
            if number % 2:
                pieces.append(Piece(None, "", int(part)))
                continue
            at = 0
            for found in self.names.finditer(part):
                pieces.append(Piece(None, part[at : found.start()]))
                pieces.append(Piece(self.controls[found[0]], found[0]))
                at = found.end()
            pieces.append(Piece(None, part[at:]))
        return [piece for piece in pieces if piece.text or piece.slot is not None]

    def _as_rendered(self, turns: Sequence[Turn], answered: bool, frame: Frame) -> list[str]:
        """What is said in each turn as the template gives it: as it is, or stripped, of each role.

        Raises:
            UserError: it changes texts in other ways, so that they cannot be told from its own.
        """
        wanted = self.render(turns, answer=not answered)
        slotted = frame.answered if answered else frame.asked
        pieces = SLOT.split(slotted)
        roles = list(dict.fromkeys(turn.role for turn in turns))
        for some in product((False, True), repeat=len(roles)):
            strips = dict(zip(roles, some, strict=True))
            said = [t.content.strip() if strips[t.role] else t.content for t in turns]
            filled = [said[int(p)] if i % 2 else p for i, p in enumerate(pieces)]
            if "".join(filled) == wanted:
                return said
        raise UserError(
            "the chat template changes what is said, other than by taking white space off its ends"
        )

    def _ids(
        self, pieces: Sequence[Piece], said: Sequence[str], counts: Mapping[int, bool]
    ) -> tuple[list[int], list[int]]:
        """The ids of pieces and the places of those that count.

        Text between control tokens is encoded as a whole, the texts of the slots in `counts` apart;
        where one counts, so does what follows to the control token that ends it.
        """
        runs: list[Run] = []
        counting = apart = False
        for control, text, slot in pieces:
            assistant = slot in counts
            counting = counts.get(slot, False) if slot is not None else counting
            text = text if slot is None else said[slot]
            last = runs[-1] if runs else None
            joins = last is not None and last.control is None and last.counts == counting
            if last is not None and joins and control is None and not (assistant or apart):
                runs[-1] = last._replace(text=last.text + text)
            else:
                runs.append(Run(control, text, counting))
            apart, counting = assistant, counting and control is None
        encoded = iter(self.tokenizer.encode([run.text for run in runs if run.control is None]))
        ids: list[int] = []
        counted: list[int] = []
        for run in runs:
            more = next(encoded) if run.control is None else [run.control]
            counted += range(len(ids), len(ids) + len(more)) if run.counts else ()
            ids += more
        return ids, counted


def read_template(source: str) -> str:
    """The template in a file, perhaps of a tokenizer_config.json, or the template itself.

    Raises:
        UserError: neither.
    """
    if "{" in source:
        return source
    try:
        text = Path(source).read_text(encoding="utf-8")
        found = json.loads(text).get("chat_template") if source.endswith(".json") else text
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"model.task.template '{source}' cannot be read: {error}") from error
    if not isinstance(found, str) or "{" not in found:
        raise UserError(f"model.task.template '{source}' holds no Jinja template")
    return found
