"""A config parser's complaint in one line that names value, place and fix; knows no commands.

jsonargparse nests its messages: a key, in a class, in a union, in a key. The exceptions behind one
form a chain from the outside in, of which the keys, the last class and the end matter.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from ptft_lightning.errors import UserError

# "Option 'x' is not accepted", "Group 'g' does not accept option 'x'", "Subcommand 'fit' does ..."
UNKNOWN_KEY = re.compile(
    r"(?:Group '(?P<group>.+)' does not|Subcommand .* does not|Option) ?"
    r"(?:accept option )?'(?P<key>.+?)'"
)
UNKNOWN_WORD = re.compile(r"unrecognized arguments: (?P<word>[^\s=]+)")
# "Expected a <class 'int'>. Got value: abc"
WRONG_TYPE = re.compile(
    r"Expected an? (?!dot import|path)(?P<type>.+?)(?:\. Got value: .*)?$", re.M
)
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (?P<name>.*)")
# "Problem with given class_path 'a.B':\n Parser key "x":\n Expected a <class 'int'>. Got value: y"
IN_CLASS = re.compile(
    r"Problem with given class_path '(?P<owner>[^']+)':\n\s*"
    r"(?:Parser key \"(?P<key>.+?)\":\n\s*)?(?P<said>.+?)(?=\n\s*- |\n *Given value type|\Z)",
    re.S,
)
MISSING = re.compile(r"the following arguments are required: (?P<names>.*)")
UNION_LINE = re.compile(r"^ *- (?!Import path |Expected a |Does not validate )(.+)$", re.M)
CLASS_KEYS = ("class_path", "init_args")
MANY = 32  # names that are still worth listing


class ParserError(Exception):
    """What a parser raises instead of printing usage and leaving."""


@dataclass
class Context:
    """What a command knows when its parser complains.

    Attributes:
        options: all of the command's options: dotted, or with dashes where there are no configs.
        bases: for a key that takes a class, the base of the classes to choose from.
        configs: the config files given, in order.
        args: the words of the command line.
    """

    options: list[str]
    bases: dict[str, type]
    configs: Sequence[str] = ()
    args: Sequence[str] = ()


def one_line(text: str) -> str:
    """Fold a message."""
    return " ".join(text.split())


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those behind it, the outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def buried(error: BaseException) -> UserError | None:
    """The mistake that a library wrapped in its own exceptions."""
    if found := next((e for e in causes(error) if isinstance(e, UserError)), None):
        return found
    # Of what the members of a union complain of, jsonargparse chains the first alone.
    line = UNION_LINE.search(str(error)) if "of the Union subtypes" in str(error) else None
    return None if line is None else UserError(line[1])


def explain(error: ParserError, context: Context) -> str:
    """The complaint of a parser as one line."""
    messages = [str(error), *(str(e) for e in causes(error.__cause__))]
    keys: list[str] = []
    owner = union = ""
    for before, message in zip(["", *messages], messages, strict=False):
        if message == before:
            continue
        if match := re.match(r'Parser key "(.+?)"', message):
            inside = match[1].removeprefix(".".join([*keys, ""]))
            keys, union = [*keys, inside], ""
        elif match := re.match(r"Problem with given class_path '(.+?)'", message):
            owner, union = match[1], ""
        elif message.startswith("Does not validate against any"):
            union = message
    return _say(messages[-1], ".".join(keys), owner, union, context)


def _shown(name: str, context: Context) -> str:
    return f"--{name}" if f"--{name}" in context.options else name


def _say(end: str, key: str, owner: str, union: str, context: Context) -> str:
    if match := UNKNOWN_KEY.match(end):
        inner = ".".join(part for part in (match["group"], match["key"]) if part)
        return _unknown_key(inner, key, owner, context)
    if match := UNKNOWN_WORD.match(end):
        if not match["word"].startswith("--"):
            return f"'{match['word']}' is one word too many: give options as --name value"
        dashes = "--" if "--help" in context.options else ""
        return _unknown_key(dashes + match["word"][2:], key, owner, context)
    if match := MISSING.match(end):
        names = [_shown(name, context) for name in match["names"].split(", ")]
        return _missing(names, key, owner)
    place, key = place_of(key, context), _shown(key, context)
    unknown = UNKNOWN_CLASS.search(f"{end}\n{union}")
    other = unknown or "does not correspond to a subclass" in union
    if other and (inside := IN_CLASS.search(union)):  # of a later member, whose class is known
        deeper = f"{key}.{inside['key']}" if inside["key"] else key
        return _say(inside["said"].strip(), deeper, inside["owner"], "", context)
    if match := unknown:
        return f"{place}{key} is '{match['name']}': {_choices(match['name'], key, context)}"
    if types := WRONG_TYPE.findall(union or end):
        value = re.search(r"(?:Got value|Given value): (.*)", f"{end}\n{union}")
        given = f" is '{value[1]}'" if value else ""
        return f"{place}{key}{given}: expected {' or '.join(_plain(types))}"
    return f"{place}{key + ': ' if key else ''}{one_line(end)}"


def _unknown_key(inner: str, key: str, owner: str, context: Context) -> str:
    known = [*_settings(owner), *CLASS_KEYS] if owner else context.options
    known = [name for name in known if not inner.startswith(f"{name}.")]
    prefix = f"{key}." if key else ""
    close = get_close_matches(inner, known, n=1)
    heads = {name.partition(".")[0] for name in known}
    head, *_ = inner.split(".")
    if not close and head not in heads:  # perhaps it holds others, whose names are right
        inner, close = head, get_close_matches(head, heads, n=1)
    place = place_of(prefix + inner, context)
    said = f"{place}unknown {'option' if inner[:2] == '--' else 'key'} '{prefix}{inner}'"
    if close:
        return f"{said}: did you mean '{prefix}{close[0]}'?"
    if any(owner.endswith(f".{base.__name__}") for base in context.bases.values()):
        return f"{said}: give --{key} before it, {_choices('', key, context)}"
    beside = [name for name in known if name.startswith(f"{head}.")] or sorted(heads)
    listed = [name for name in beside if name not in CLASS_KEYS]
    listing = f"known here: {', '.join(listed)}" if len(listed) <= MANY else "--help lists all"
    return f"{said}: {listing}"


def _settings(owner: str) -> list[str]:
    """Names a class takes; of a dataclass among them, its fields."""
    module, _, name = owner.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    names = list(parameters)
    for name, parameter in parameters.items():
        if is_dataclass(parameter.default):
            names += [f"{name}.{field.name}" for field in fields(parameter.default)]
    return names


def _missing(names: list[str], key: str, owner: str) -> str:
    if {"fit.data", "fit.model", "tune.data", "tune.model"}.intersection(names):
        return "what to train? give --config FILE, or --model and --data"
    prefix = f"{key}." if key else ""
    listed = " and ".join(prefix + name for name in names)
    by = f": {owner.rpartition('.')[2]} needs it" if owner else ""
    return f"{listed} {'is' if len(names) == 1 else 'are'} missing{by}"


def _choices(name: str, key: str, context: Context) -> str:
    base = context.bases.get(key.rpartition(".")[2])
    classes = sorted(c.__name__ for c in _subclasses(base)) if base is not None else []
    if close := get_close_matches(name, classes, n=1):
        return f"did you mean '{close[0]}'?"
    return f"expected {' or '.join(classes)}" if classes else "there is no such class"


def _subclasses(base: type) -> Iterator[type]:
    children: list[type] = base.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)


def _plain(types: list[str]) -> list[str]:
    """Types as a person writes them, each once."""
    plain = [re.sub(r"<class '(?:.*\.)?(.+?)'>", r"\1", t) for t in types]
    plain = ["a list such as [a, b]" if t == "list" else t for t in plain]
    plain = [re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", t) for t in plain]
    return list(dict.fromkeys(t for t in plain if t != "NoneType"))


# Where in the config files a key stands.


def read_configs(configs: Sequence[str], options: list[str]) -> None:
    """Check what the parser says badly or not at all: missing or broken files, unknown keys that
    hold nothing.

    Raises:
        UserError: naming file, line and key.
    """
    tops = {name.partition(".")[0] for name in options}
    for file in configs:
        if not Path(file).is_file():
            raise UserError(f"config file not found: '{file}'")
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f" line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or error
            raise UserError(f"'{file}'{line}: not YAML ({problem})") from error
        if not isinstance(content, dict):
            raise UserError(f"'{file}': expected keys such as model, data and trainer")
        context = Context(options, {}, configs)
        for key in content:
            if str(key) not in tops:
                raise UserError(_unknown_key(str(key), "", "", context))


def place_of(key: str, context: Context) -> str:
    """`file line n: ` of a dotted key, empty when it was given on the command line."""
    names = key.split(".")
    flags = {f"--{'.'.join(names[:n])}" for n in range(1, len(names) + 1)}
    if any(word.partition("=")[0].replace(".init_args", "") in flags for word in context.args):
        return ""
    for file in reversed(context.configs):
        node = yaml.compose(Path(file).read_text(encoding="utf-8"))
        if (line := _line(node, names)) is not None:
            return f"{file} line {line}: "
    return ""


def _line(node: Any, names: list[str]) -> int | None:
    found = None
    for name in names:
        inside = _entry(node, name) or _entry(_value(node, "init_args"), name)
        if inside is None:
            return None
        found, node = inside
    return None if found is None else int(found.start_mark.line) + 1


def _entry(node: Any, name: str) -> tuple[Any, Any] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next(((k, v) for k, v in node.value if k.value == name), None)


def _value(node: Any, name: str) -> Any:
    entry = _entry(node, name)
    return None if entry is None else entry[1]
