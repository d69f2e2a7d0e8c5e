"""How commands beside the trainer read their options."""

from __future__ import annotations

import sys
from collections.abc import Callable

from jsonargparse import ArgumentParser


class OneLineParser(ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Print the mistake, exit with code 2."""
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def run_tool(name: str, function: Callable[..., None], args: list[str], positional: bool) -> None:
    """Call `function` with the options of the command line; its docstring is the help."""
    from jsonargparse import auto_cli

    auto_cli(
        function,
        args=args,
        as_positional=positional,
        prog=f"python -m ptft_lightning {name}",
        parser_class=OneLineParser,
        default_env=False,
    )
