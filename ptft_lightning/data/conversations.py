"""Files of sources with targets and of conversations in, conversations out; knows no tokens."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

from ptft_lightning.data.examples import Columns, Example, read_records
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.streams import Damaged, open_bytes
from ptft_lightning.errors import UserError

Format = Literal["columns", "parallel", "alpaca", "sharegpt", "messages", "turns"]
USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
# The names that files give the roles.
ROLES = {
    **dict.fromkeys(("user", "human"), USER),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), ASSISTANT),
    SYSTEM: SYSTEM,
}
Record = dict[str, Any]


class Turn(NamedTuple):
    """What one side says."""

    role: str
    content: str


class Unusable(Exception):
    """What is wrong with a record, with the fix."""


@dataclass(frozen=True)
class Conversation(Example):
    """Turns that want an answer; `label` is the answer that was given, None where there is none."""

    turns: tuple[Turn, ...] = ()
    """All before the answer."""
    references: tuple[str, ...] = ()
    """Answers that are right, `label` the first of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        Example("".join(self.references), None, None, self.place)  # the same check

    @property
    def said(self) -> dict[str, Any]:
        """The source; of several turns, each with its role."""
        if len(self.turns) == 1:
            return {"source": self.turns[0].content}
        return {"source": [turn._asdict() for turn in self.turns]}

    @property
    def gold(self) -> Any:
        """The reference, or the list of several."""
        return list(self.references) if len(self.references) > 1 else self.label


@dataclass(frozen=True)
class Layout:
    """How a file holds conversations."""

    format: Format
    columns: Columns
    references: str | None = None
    """A column of further right answers."""
    parallel: tuple[str, str] | None = None
    """What in the name of a file of sources is what in the name of the file of its targets."""


def conversation(turns: list[Turn], answers: list[str], place: str) -> Conversation:
    """What was said, with what is right to answer."""
    text = "\n".join(turn.content for turn in turns)
    label = answers[0] if answers else None
    return Conversation(text, None, label, place, None, tuple(turns), tuple(answers))


def read_conversations(
    path: str, layout: Layout, labelled: bool, bad: BadExamples
) -> list[Conversation]:
    """The conversations of a file; those that cannot be used are noted in `bad`.

    Raises:
        UserError: missing, broken or empty file, or files of sources and targets that do not match.
    """
    read = {
        "columns": _of_columns,
        "alpaca": _of_alpaca,
        "sharegpt": _of_sharegpt,
        "messages": _of_messages,
        "turns": _of_turns,
    }
    if layout.format == "parallel":
        records, of = _parallel_lines(path, layout, labelled), _of_parallel
    else:
        records, of = read_records(path, layout.columns), read[layout.format]
    found = []
    for place, record in records:
        try:
            found.append(conversation(*of(record, layout, labelled), place))
        except Unusable as reason:
            bad.add(place, str(reason))
    if not found and not bad.found:
        raise UserError(f"'{path}' holds no examples")
    return found


Parts = tuple[list[Turn], list[str]]


def _text(record: Record, name: str) -> str:
    if record.get(name) is None:
        if name in record:
            raise Unusable(f"'{name}' is null: give a text, or leave the line out")
        raise Unusable(
            f"no '{name}', there are {list(record)}: name the right columns or choose the file's "
            "model.task.format"
        )
    value = record[name]
    if not isinstance(value, str | int | float):
        raise Unusable(f"'{name}' is {str(value)[:40]!r}, a {type(value).__name__}: give a text")
    return str(value)


def _answers(answers: list[str], labelled: bool) -> list[str]:
    """Those that say something; where they are needed, the first must."""
    if labelled and not (answers and answers[0].strip()):
        raise Unusable("the answer is empty: nothing can be learned from it, give one")
    return [answer for answer in answers if answer.strip()]


def _of_columns(record: Record, layout: Layout, labelled: bool) -> Parts:
    columns = layout.columns
    target = columns.pair or columns.label
    source = _text(record, columns.text)
    given, answers = record.get(target), list[str]()
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        answers = given  # the first is learned from, all of them are right
    elif labelled or given is not None:
        answers = [_text(record, target)]
    further = record.get(layout.references) if layout.references is not None else None
    further = further if isinstance(further, list) else [further]
    answers += [str(text) for text in further if text is not None]
    return [Turn(USER, source)], _answers(answers, labelled)


def _of_parallel(record: Record, layout: Layout, labelled: bool) -> Parts:
    return [Turn(USER, record["source"])], _answers(record["targets"], labelled)


def _of_alpaca(record: Record, layout: Layout, labelled: bool) -> Parts:
    wanted = _text(record, "instruction")
    if given := str(record.get("input") or ""):
        wanted = f"{wanted}\n\n{given}" if wanted else given
    answers = [_text(record, "output")] if labelled or record.get("output") is not None else []
    return [*_system(record), Turn(USER, wanted)], _answers(answers, labelled)


def _system(record: Record) -> list[Turn]:
    said = record.get("system")
    return [Turn(SYSTEM, said)] if isinstance(said, str) and said.strip() else []


def _of_sharegpt(record: Record, layout: Layout, labelled: bool) -> Parts:
    turns = _said_by(record, "conversations", "from", "value")
    return _split([*_system(record), *turns], labelled)


def _of_messages(record: Record, layout: Layout, labelled: bool) -> Parts:
    return _split(_said_by(record, "messages", "role", "content"), labelled)


def _of_turns(record: Record, layout: Layout, labelled: bool) -> Parts:
    """Two people by turns. Who speaks last is the assistant: what they say answers the other."""
    said = _list(record, "turns")
    if odd := [one for one in said if not isinstance(one, str)]:
        raise Unusable(f"a turn is {str(odd[0])[:40]!r}: give texts")
    if len(said) < 1 + labelled:
        raise Unusable(f"{len(said)} turns: give {1 + labelled} or more")
    sides = (ASSISTANT, USER) if labelled else (USER, ASSISTANT)
    turns = [Turn(sides[(len(said) - 1 - i) % 2], text) for i, text in enumerate(said)]
    return (turns[:-1], _answers([turns[-1].content], True)) if labelled else (turns, [])


def _list(record: Record, name: str) -> list[Any]:
    given = record.get(name)
    if not isinstance(given, list) or not given:
        if name in record:
            raise Unusable(f"'{name}' is {str(given)[:40]}: give a list of turns")
        raise Unusable(
            f"no list '{name}', there are {list(record)}: choose the file's model.task.format"
        )
    return given


def _said_by(record: Record, name: str, by: str, what: str) -> list[Turn]:
    turns = []
    for number, one in enumerate(_list(record, name), start=1):
        role = one.get(by) if isinstance(one, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise Unusable(
                f"{name} {number} is of role {role!r}: only {', '.join(ROLES)} are known"
            )
        if not isinstance(content := one.get(what), str):
            raise Unusable(f"{name} {number} has no text '{what}': only texts are read")
        turns.append(Turn(ROLES[role], content))
    return turns


def _split(turns: list[Turn], labelled: bool) -> Parts:
    """Turns before the answer, and the answer; roles must stand in their order."""
    spoken = turns[1:] if turns[0].role == SYSTEM else turns
    for number, (turn, role) in enumerate(zip(spoken, _by_turns(), strict=False), start=1):
        if turn.role != role:
            raise Unusable(
                f"turn {number} is of '{turn.role}', it must be of '{role}': after a system turn, "
                "if any, user and assistant take turns, the user first"
            )
        if turn.role == ASSISTANT:
            _answers([turn.content], True)
    if not spoken:
        raise Unusable("no user turn: there is nothing to answer")
    if spoken[-1].role == ASSISTANT:
        return turns[:-1], [turns[-1].content]
    if labelled:
        raise Unusable("the last turn is the user's: give the assistant's answer, or leave it out")
    return turns, []


def _by_turns() -> Iterator[str]:
    while True:
        yield USER
        yield ASSISTANT


def _parallel_lines(path: str, layout: Layout, labelled: bool) -> Iterator[tuple[str, Record]]:
    """Each line of a file of sources, with the same line of the file of targets."""
    if not labelled:
        for number, source in enumerate(_lines(path), start=1):
            yield f"{path} line {number}", {"source": source, "targets": []}
        return
    second = _second_file(path, layout)
    for number, (source, target) in enumerate(zip_longest(_lines(path), _lines(second)), start=1):
        if source is None or target is None:
            longer, shorter = (second, path) if source is None else (path, second)
            raise UserError(
                f"'{longer}' has more lines than '{shorter}', which has {number - 1}: line n of "
                "one must belong to line n of the other"
            )
        yield f"{path} line {number}", {"source": source, "targets": [target]}


def _second_file(path: str, layout: Layout) -> str:
    assert layout.parallel is not None, "the task has seen to it"
    old, new = layout.parallel
    name = PurePath(path).name
    before, found, after = name.rpartition(old)
    if not found:
        raise UserError(
            f"the file name '{name}' has no '{old}' to be replaced by '{new}': set "
            "model.task.parallel to what tells the two files apart, such as [.en, .de]"
        )
    return path[: len(path) - len(name)] + before + new + after


def _lines(path: str) -> Iterator[str]:
    with open_bytes(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n")
        try:
            for line in text:
                yield line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"'{path}' is not UTF-8: {error}") from error
        except Damaged as error:
            raise UserError(f"'{path}' is damaged, get it again: {error}") from error
