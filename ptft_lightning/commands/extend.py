"""`extend`: add the tokens of new text to the tokenizer a model was trained with."""

from __future__ import annotations

import sys
from pathlib import Path

from ptft_lightning.commands.tokenizer import Counted, bytes_of
from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.bad_documents import BadDocuments
from ptft_lightning.data.decoding import Encoding
from ptft_lightning.data.documents import Reading, text_size
from ptft_lightning.data.sampling import sample_documents
from ptft_lightning.data.sources import expand_sources
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.vocabulary_growth import Growth, count_words, extend_tokenizer
from ptft_lightning.errors import UserError

SHOWN = 12  # of the new tokens


def extend(
    init_from: str,
    files: list[str],
    output: str,
    add: int = 1000,
    column: str = "text",
    max_mb: float = 200.0,
    encoding: Encoding = "utf-8",
) -> None:
    """Learn more tokens from text files and write tokenizer.json; old ids stay as they are.

    Train the new tokens with `fit` of phase one: model.init_from the same bundle, data.tokenizer
    the new one. Their rows of the embedding begin as the means of their old tokens'.

    Args:
        init_from: A bundle, run or Hugging Face folder, or its tokenizer.json.
        files: Paths, globs, folders or URLs of text of the new domain, as for `tokenizer`.
        output: Directory for tokenizer.json.
        add: Number of new ids.
        column: The text column, of all files but .txt.
        max_mb: Learn from this much text at most, evenly from all files.
        encoding: Of text files; a byte order mark is dropped.
    """
    target = Path(output) / "tokenizer.json"
    if target.exists():
        raise UserError(f"'{target}' is already there: remove it or give another --output")
    if add < 1:
        raise UserError(f"--add is {add}: give 1 or more")
    old = tokenizer_of(init_from)
    files = expand_sources(files)
    sized = [(file, text_size(file, column)) for file in files]
    limit, size = bytes_of(max_mb), sum(size for _, size in sized)
    bad = BadDocuments()
    counted = Counted(sample_documents(sized, Reading(column, encoding), limit, bad), limit, size)
    words = count_words(old, iter(counted))
    if not counted.documents:
        raise UserError(f"empty corpus: no document in {', '.join(files[:3])}; {bad.summary()}")
    if bad.count:
        print(bad.summary(), file=sys.stderr)
    growth = extend_tokenizer(old, words, add)
    growth.tokenizer.save(output)
    _report(target, growth, old, add)


def tokenizer_of(place: str) -> Tokenizer:
    """The tokenizer of a bundle, run, checkpoint or folder, without its weights.

    Raises:
        UserError: there is none.
    """
    if (Path(place) / "bundle").is_dir():
        return Tokenizer.load(Path(place) / "bundle")
    if Path(place).suffix == ".ckpt":
        from ptft_lightning.handoff.bundle import open_bundle  # torch only where it is needed

        return open_bundle(place).tokenizer
    return Tokenizer.load(place)


def _report(target: Path, growth: Growth, old: Tokenizer, add: int) -> None:
    print(
        f"{target}: {old.size} + {len(growth.added)} ids, fingerprint "
        f"{growth.tokenizer.fingerprint}, extends {old.fingerprint}"
    )
    shown = [growth.tokenizer.decode([old.size + n]) for n in range(len(growth.added[:SHOWN]))]
    print(f"new: {', '.join(map(repr, shown))}{', ...' if len(growth.added) > SHOWN else ''}")
    before, after = growth.before / growth.words, growth.after / growth.words
    print(
        f"fertility: {before:.3f} -> {after:.3f} tokens a word of this text "
        f"({after / before - 1:+.1%}); unknown: {growth.unknown_before} -> {growth.unknown_after}"
    )
    if len(growth.added) < add:
        print(f"the text gave only {len(growth.added)} of {add} tokens", file=sys.stderr)


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, extend, args, positional=False)
