"""The baseline beside our scores: TF-IDF of word or character n-grams and logistic regression.

Learns from the training file only; the strength of its regularisation is picked on the validation
file, never on the test file. Knows nothing of models or `ptft_lightning`; needs scikit-learn.

    python examples/bag_of_words.py --train train.jsonl --validation validation.jsonl \
        --test test.jsonl
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from scipy.sparse import csr_matrix, hstack  # type: ignore[import-untyped]
from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.metrics import accuracy_score, f1_score  # type: ignore[import-untyped]

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # values of C; ties: the smallest
NGRAMS = {"word": (1, 2), "char": (1, 3)}  # char: for text without spaces, such as Chinese


class UserError(ValueError):
    """What the user can put right: printed as one line, without a traceback."""


@dataclass(frozen=True)
class Columns:
    """Which columns hold the text, its partner in a task on pairs, and the label.

    Numbers mean positions, from 0, in a tsv or csv file without a header.
    """

    text: str = "text"
    label: str = "label"
    pair: str | None = None

    def names(self) -> list[str]:
        """The columns that must be there."""
        return [self.text, self.label, *([self.pair] if self.pair is not None else [])]


@dataclass(frozen=True)
class Rows:
    """One file's columns; `pairs` is empty when the task has single texts."""

    texts: list[str]
    pairs: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Scores:
    """Scores on the test file, and the C that was picked on the validation file."""

    accuracy: float
    macro_f1: float
    C: float


def read_rows(path: str | Path, columns: Columns) -> Rows:
    """Read a .jsonl, .tsv or .csv file, plain or with .gz.

    Raises:
        UserError: the file is missing or of another kind, or a row lacks a column.
    """
    rows = Rows([], [], [])
    for place, record in _records(Path(path), columns):
        missing = [name for name in columns.names() if record.get(name) is None]
        if missing:
            raise UserError(
                f"{place}: no value in column '{missing[0]}', it has {sorted(map(str, record))}: "
                "name the columns with --text, --label and --pair"
            )
        rows.texts.append(str(record[columns.text]))
        rows.labels.append(str(record[columns.label]))
        if columns.pair is not None:
            rows.pairs.append(str(record[columns.pair]))
    if not rows.texts:
        raise UserError(f"'{path}' has no rows: give a file with at least one")
    return rows


def _records(path: Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in (".jsonl", ".tsv", ".csv"):
        raise UserError(f"cannot read '{path}': expected .jsonl, .tsv or .csv, or these with .gz")
    try:
        with _open(path) as stream:
            if suffix == ".jsonl":
                yield from _json_records(stream, path)
            else:
                yield from _table_records(stream, path, suffix == ".tsv", columns)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read '{path}': {error}") from error


def _open(path: Path) -> IO[str]:
    opened = gzip.open if path.name.endswith(".gz") else open
    # utf-8-sig: a byte-order mark would else become part of the first column's name
    return cast(IO[str], opened(path, "rt", encoding="utf-8-sig", newline=""))


def _json_records(stream: IO[str], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a JSON object: {line[:40]!r}") from error


def _table_records(
    stream: IO[str], path: Path, tabs: bool, columns: Columns
) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(1 << 30)  # the default refuses documents over 128 KiB
    rows = (
        csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)  # a quote in a tsv is text
        if tabs
        else csv.reader(stream)
    )
    header = None if all(name.isdigit() for name in columns.names()) else next(rows, [])
    for cells in filter(None, rows):
        names = header if header is not None else map(str, range(len(cells)))
        yield f"{path}:{rows.line_num}", dict(zip(names, cells, strict=False))


def features(vectorizer: TfidfVectorizer, rows: Rows) -> csr_matrix:
    """TF-IDF rows; for pairs also what the two texts share and where they differ."""
    texts = vectorizer.transform(rows.texts)
    if not rows.pairs:
        return texts
    pairs = vectorizer.transform(rows.pairs)
    return csr_matrix(hstack([texts, pairs, texts.multiply(pairs), abs(texts - pairs)]))


def evaluate(train: Rows, validation: Rows, test: Rows, analyzer: str = "word") -> Scores:
    """Train at every strength, keep the best on `validation`, score that one on `test`."""
    if len(set(train.labels)) < 2:
        raise UserError(f"every training row has label '{train.labels[0]}': there must be two")
    vectorizer = TfidfVectorizer(
        analyzer=analyzer,
        ngram_range=NGRAMS[analyzer],
        sublinear_tf=True,
        token_pattern=r"\b\w+\b" if analyzer == "word" else None,  # default: no one-letter words
    )
    vectorizer.fit(train.texts + train.pairs)
    inputs = features(vectorizer, train)
    models = [  # newton-cg: converges in a tenth of the default solver's time on sparse text
        LogisticRegression(C=c, solver="newton-cg").fit(inputs, train.labels) for c in STRENGTHS
    ]
    held_out = features(vectorizer, validation)
    best = max(models, key=lambda model: float(model.score(held_out, validation.labels)))
    predicted = best.predict(features(vectorizer, test))
    return Scores(
        accuracy=float(accuracy_score(test.labels, predicted)),
        macro_f1=float(f1_score(test.labels, predicted, average="macro", zero_division=0)),
        C=float(best.C),
    )


def bag_of_words(
    train_path: str | Path, test_path: str | Path, validation_path: str | Path
) -> float:
    """Accuracy on the test file, for the columns `text` and `label`."""
    train, validation, test = (
        read_rows(path, Columns()) for path in (train_path, validation_path, test_path)
    )
    return evaluate(train, validation, test).accuracy


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line of JSON; 0, or 2 after one line that says what to put right."""
    parser = argparse.ArgumentParser(description="TF-IDF and logistic regression, as a baseline.")
    for name in ("train", "validation", "test"):
        parser.add_argument(f"--{name}", required=True, metavar="FILE", help=".jsonl, .tsv or .csv")
    parser.add_argument("--text", default="text", help="text column (text)")
    parser.add_argument("--pair", help="second text column, for tasks on pairs")
    parser.add_argument("--label", default="label", help="label column (label)")
    parser.add_argument("--analyzer", choices=sorted(NGRAMS), default="word", help="(word)")
    options = parser.parse_args(arguments)
    columns = Columns(options.text, options.label, options.pair)
    try:
        train, validation, test = (
            read_rows(path, columns) for path in (options.train, options.validation, options.test)
        )
        scores = evaluate(train, validation, test, options.analyzer)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        json.dumps(
            {
                "accuracy": round(scores.accuracy, 4),
                "macro_f1": round(scores.macro_f1, 4),
                "C": scores.C,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
