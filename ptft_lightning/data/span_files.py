"""Texts with labelled stretches of characters: doccano's lines, Label Studio's exports, and tokens
with tags as JSON; knows nothing of what labels mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ptft_lightning.data.conll import Sentence
from ptft_lightning.data.examples import Columns
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.lines import json_list, json_records
from ptft_lightning.data.module import say
from ptft_lightning.data.streams import bare_name


@dataclass
class Marked:
    """A text and its stretches: kind, first character and the one after the last."""

    place: str
    text: str
    spans: list[tuple[str, int, int]] | None = None
    annotations: int = 1
    """How many people marked it; the first is read."""


class _Wrong(Exception):
    """A record that cannot be used; says why."""


def read_json(
    path: str, columns: Columns, labelled: bool, bad: BadExamples
) -> list[Sentence | Marked]:
    """Records of a .jsonl file or of a .json list.

    They are either `{"tokens": [..], "tags": [..]}` or `{"text": "..", "label": [[start, end,
    kind], ..]}` with objects of `start`, `end` and `label` allowed as well, under the names of
    `columns` or these; or tasks of Label Studio (JSON or JSON_MIN).
    """
    records = json_list(path) if bare_name(path).endswith(".json") else json_records(path)
    found = list[Sentence | Marked]()
    for place, record in records:
        try:
            found.append(_record(place, record, columns, labelled))
        except _Wrong as error:
            bad.add(place, str(error))
    several = [r.place for r in found if isinstance(r, Marked) and r.annotations > 1]
    if several:
        say(
            f"'{path}': {len(several)} tasks have several annotations, of which the first is read; "
            f"the first is {several[0]}"
        )
    return found


def _record(place: str, record: dict[str, Any], columns: Columns, labelled: bool) -> Any:
    if isinstance(record.get("data"), dict):
        return _label_studio(place, record, columns, labelled)
    text = _first(record, (columns.text, "tokens", "text"), "text or tokens")
    if isinstance(text, list):
        tags = _first(record, (columns.label, "tags"), "tags") if labelled else None
        return _sentence(place, text, tags)
    if not isinstance(text, str):
        raise _Wrong(f"the text is {text!r}: neither a string nor a list of tokens")
    if not labelled:
        return Marked(place, text)
    given = _first(record, (columns.label, "label", "labels", "entities"), "spans")
    return Marked(place, text, list(_spans(text, given)))


def _first(record: dict[str, Any], names: tuple[str, ...], what: str) -> Any:
    for name in names:
        if record.get(name) is not None:
            return record[name]
    raise _Wrong(
        f"no {what} under {' or '.join(dict.fromkeys(names))}; the columns are {list(record)}: set "
        "data.columns.text and .label"
    )


def _sentence(place: str, tokens: list[Any], tags: Any) -> Sentence:
    if not all(isinstance(token, str) and token for token in tokens):
        raise _Wrong("a token is empty or no string")
    if tags is None:
        return Sentence(place, tokens)
    if not isinstance(tags, list) or len(tags) != len(tokens):
        count = len(tags) if isinstance(tags, list) else repr(tags)
        raise _Wrong(f"{len(tokens)} tokens and {count} tags: give one tag a token")
    if not tokens:
        raise _Wrong("a sentence without tokens")
    return Sentence(place, tokens, [str(tag) for tag in tags])


def _label_studio(place: str, task: dict[str, Any], columns: Columns, labelled: bool) -> Marked:
    text = _first(task["data"], (columns.text, "text"), "text")
    if not isinstance(text, str):
        raise _Wrong(f"the text is {text!r}, not a string")
    if not labelled:
        return Marked(place, text)
    annotations = _mappings(task.get("annotations"), "annotations")
    done = [a for a in annotations if not a.get("was_cancelled")]
    if not done:
        raise _Wrong("a task without an annotation")
    results = _mappings(done[0].get("result"), "result")
    kinds = {str(r.get("type")) for r in results if str(r.get("type")).endswith("labels")}
    if strange := sorted(kinds - {"labels"}):
        raise _Wrong(f"it is marked by {', '.join(strange)}: use a <Labels> of a <Text>")
    values = [r.get("value") for r in results if r.get("type") == "labels"]
    return Marked(place, text, list(_spans(text, values)), len(done))


def _mappings(given: Any, name: str) -> list[dict[str, Any]]:
    found = given or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise _Wrong(f"'{name}' is no list of objects")
    return found


def _spans(text: str, given: Any) -> Iterator[tuple[str, int, int]]:
    if not isinstance(given, list):
        raise _Wrong(f"the spans are {given!r}: give a list of [start, end, kind]")
    for item in given:
        start, end, kind, said = _parts(item)
        if not 0 <= start < end <= len(text):
            raise _Wrong(
                f"span {start} to {end} ({kind}) is not inside the text of {len(text)} characters"
            )
        if said is not None and said != text[start:end]:
            raise _Wrong(
                f"span {start} to {end} ({kind}) is '{text[start:end]}', not '{said}' as the file "
                "says: count characters, neither bytes nor UTF-16 units"
            )
        yield kind, start, end


def _parts(item: Any) -> tuple[int, int, str, str | None]:
    said = None
    if isinstance(item, dict):
        kinds = item.get("labels") or item.get("label", item.get("type"))
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if len(kinds) != 1:
            raise _Wrong(f"a span of {len(kinds)} kinds, {kinds}: give each one a span of its own")
        start, end = (item.get(n, item.get(f"{n}_offset")) for n in ("start", "end"))
        said, item = item.get("text"), [start, end, kinds[0]]
    if not isinstance(item, list) or len(item) != 3:
        raise _Wrong(f"span {item!r} is not [start, end, kind]")
    start, end, kind = item
    if not all(type(n) is int for n in (start, end)) or not isinstance(kind, str) or not kind:
        raise _Wrong(f"span {item!r} is not [start, end, kind] with whole numbers and a name")
    return start, end, kind, said
