"""The command line's front door: names every command, loads only the one asked for."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from ptft_lightning import __version__
from ptft_lightning.errors import UserError, unusable_place

TRAINING = "ptft_lightning.commands.train"
COMMANDS = {
    "fit": (TRAINING, "train: phase one (PretrainModule) or phase two (FinetuneModule)"),
    "validate": (TRAINING, "metrics on the validation data"),
    "test": (TRAINING, "metrics on the test data"),
    "predict": (TRAINING, "predictions for a file or for --text"),
    "extract": ("ptft_lightning.commands.extract", "triples or events from text, by two runs"),
    "tune": ("ptft_lightning.commands.tune", "look for a learning rate or a micro-batch size"),
    "sweep": ("ptft_lightning.commands.sweep", "try many settings of a config (Optuna)"),
    "transfer": ("ptft_lightning.commands.transfer", "was it worth it? many seeds, label counts"),
    "tokenizer": ("ptft_lightning.commands.tokenizer", "learn a tokenizer from text files"),
    "extend": ("ptft_lightning.commands.extend", "add tokens of new text to a model's tokenizer"),
    "prepare": ("ptft_lightning.commands.prepare", "turn text files into a token store"),
    "duplicates": ("ptft_lightning.commands.duplicates", "list documents that repeat another one"),
    "check": ("ptft_lightning.commands.check", "before a long fit: look at data, loss, gradients"),
    "plan": ("ptft_lightning.commands.plan", "what a fit will cost: memory, FLOPs, hours, disk"),
    "doctor": (
        "ptft_lightning.commands.doctor",
        "is this machine ready? with a tiny run",
    ),
    "sync": ("ptft_lightning.commands.sync", "upload a run that W&B recorded offline, linked"),
    "report": ("ptft_lightning.commands.report", "draw a run, or several, as one HTML page"),
    "generate": ("ptft_lightning.commands.generate", "go on with prompts, or fill their masks"),
    "score": ("ptft_lightning.commands.score", "how likely a model finds texts"),
    "select": ("ptft_lightning.commands.select", "the documents most like those of another text"),
    "ngram": ("ptft_lightning.commands.ngram", "n-gram models: train, score; ARPA in and out"),
    "prompt": ("ptft_lightning.commands.prompt", "classify with a causal model, nothing trained"),
    "rank": ("ptft_lightning.commands.rank", "the nearest passages of queries, from their vectors"),
    "answer": ("ptft_lightning.commands.answer", "answer questions from whole documents"),
    "inspect": ("ptft_lightning.commands.inspect", "say what a bundle, checkpoint or store holds"),
    "show-samples": ("ptft_lightning.commands.show_samples", "the text of a run's samples"),
    "merge": ("ptft_lightning.commands.merge", "write a bundle whole, its adapters folded in"),
    "overlap": ("ptft_lightning.commands.overlap", "find test examples in a token store"),
    "export": ("ptft_lightning.commands.export", "write a bundle in Hugging Face's layout"),
}


def usage() -> str:
    """The text of --help."""
    lines = [
        "usage: python -m ptft_lightning COMMAND [options]",
        "",
        "Pretrain a language model on your own text, then fine-tune it for your own tasks.",
        "",
        "commands:",
        *(f"  {name:12} {text}" for name, (_, text) in COMMANDS.items()),
        "",
        "python -m ptft_lightning COMMAND --help tells a command's options.",
    ]
    return "\n".join(lines)


def main(args: list[str] | None = None) -> None:
    """Run one command; a user's mistake is one line and exit code 2."""
    words = sys.argv[1:] if args is None else args
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return
    if words[0] == "--version":
        print(__version__)
        return
    try:
        run(words[0], words[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and unread():
            sys.exit(1)
        mistake = unusable_place(error) if isinstance(error, OSError) else error
        if mistake is None:
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one line a machine, not one a process
            # From a loader's worker it comes with the worker's traceback.
            print(f"error: {str(mistake).rpartition('UserError: ')[2].rstrip()}", file=sys.stderr)
        sys.exit(2)


def unread() -> bool:
    """Whether nobody reads what we print any more, as behind `head`; then it goes nowhere."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def run(command: str, args: list[str]) -> None:
    """Import the command's file and hand it the words after the command's name."""
    if command not in COMMANDS:
        from difflib import get_close_matches

        close = get_close_matches(command, COMMANDS, n=1)
        hint = f": did you mean '{close[0]}'?" if close else f": choose from {', '.join(COMMANDS)}"
        raise UserError(f"unknown command '{command}'{hint}")
    module = import_module(COMMANDS[command][0])
    module.run(command, args)
