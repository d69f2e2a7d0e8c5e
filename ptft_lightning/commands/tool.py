"""How commands beside the trainer read their options."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from ptft_lightning.commands.mistakes import Context, ParserError, explain
from ptft_lightning.errors import UserError

TEXTS = ("--text", "--prompt", "--question", "--stop")


class OneLineParser(ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Say what is wrong in one line."""
        error = ParserError(message)
        error.__cause__ = ex
        named = [[o for o in a.option_strings if o.startswith("--")] for a in self._actions]
        options = [(n or [a.dest])[0] for n, a in zip(named, self._actions, strict=True)]
        raise UserError(explain(error, Context(options, {})))


def run_tool(
    name: str,
    function: Callable[..., Any] | list[Callable[..., Any]],
    args: list[str],
    positional: bool,
) -> Any:
    """Call `function` with the options of the command line; its docstring is the help.

    Of several functions the first word names the one to call.
    """
    from jsonargparse import auto_cli

    return auto_cli(
        function,
        args=_kept(args),
        as_positional=positional,
        prog=f"python -m ptft_lightning {name}",
        parser_class=OneLineParser,
        default_env=False,
    )


def _kept(args: list[str]) -> list[str]:
    """Texts that YAML would read as nothing, comments and `null`, each as a list of one."""
    kept = list[str]()
    for word in args:
        option, equals, value = word.partition("=")
        if kept and kept[-1] in TEXTS:
            word = _listed(word)
        elif equals and option in TEXTS:
            word = f"{option}={_listed(value)}"
        kept.append(word)
    return kept


def _listed(text: str) -> str:
    try:
        nothing = bool(text) and yaml.safe_load(text) is None
    except yaml.YAMLError:
        return text
    return json.dumps([text], ensure_ascii=False) if nothing else text
