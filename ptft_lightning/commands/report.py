"""`report`: draw one or several runs as a page that needs no other file."""

from __future__ import annotations

import sys
from pathlib import Path

from ptft_lightning.commands.tool import OneLineParser
from ptft_lightning.errors import UserError

PAGE = "report.html"


def report(runs: list[str], output: str | None) -> None:
    """Read the runs and write the page."""
    from ptft_lightning.report.reading import read_run

    if output is None and len(runs) > 1:
        raise UserError(f"{len(runs)} runs: name the file of their report with --output FILE.html")
    file = Path(output) if output is not None else Path(runs[0]) / PAGE
    if file.is_dir():
        raise UserError(f"--output '{file}' is a directory: name a file, such as {file / PAGE}")
    found = [read_run(Path(run)) for run in dict.fromkeys(runs)]
    from ptft_lightning.report.build import build_page  # matplotlib only once there is a run

    try:
        write(file, build_page(found))
    except OSError as error:
        raise UserError(f"cannot write the report to '{file}': {error.strerror}") from error
    for run in found:
        for trouble in run.troubles:
            print(f"{run.directory}: {trouble}", file=sys.stderr)
    print(file)


def write_beside(run_dir: Path) -> None:
    """Write the report of a run that ended; a report that fails costs a line, not the run."""
    from ptft_lightning.report.build import build_page
    from ptft_lightning.report.reading import read_run

    file = run_dir / PAGE
    _write_baseline(run_dir)
    try:
        write(file, build_page([read_run(run_dir)]))
        said = f"report: {file}"
    except Exception as error:  # whatever it is, the training is done and its bundle is whole
        said = f"no report in '{run_dir}': {type(error).__name__}: {error}"
    print(said, file=sys.stderr, flush=True)


def _write_baseline(run_dir: Path) -> None:
    from ptft_lightning.commands.ngram_baseline import write_baseline

    try:
        write_baseline(run_dir)
    except Exception as error:  # the page can do without
        print(f"no 3-gram beside the model: {error}", file=sys.stderr, flush=True)


def write(file: Path, text: str) -> None:
    """Under a temporary name first: a page is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    parser = OneLineParser(prog=f"python -m ptft_lightning {command}", description=__doc__)
    parser.add_argument("runs", nargs="+", help="Run directories; several are drawn together.")
    parser.add_argument("--output", help=f"The page; default: {PAGE} in the run's directory.")
    options = parser.parse_args(args)
    report(options.runs, options.output)
