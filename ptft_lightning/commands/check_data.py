"""What `check` says of the data: one sample as the model reads it, and counts; knows no loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ptft_lightning.data.batch import Batch
from ptft_lightning.data.examples import Encoded
from ptft_lightning.data.growing import GrowingRows
from ptft_lightning.data.module import PhaseData
from ptft_lightning.data.spelling import printed
from ptft_lightning.data.steps import Slots
from ptft_lightning.data.task_data import TaskDataModule
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.terms import IGNORE

SURVEYED = 512  # samples that are counted
UNKNOWN_WARNING, UNKNOWN_PROBLEM = 0.01, 0.1  # shares of the tokens
PADDING_WARNING = 0.4  # share of the places
CUT_WARNING = 0.1  # share of the examples
COMMON_WARNING = 0.95  # share of the commonest label


@dataclass(frozen=True)
class Finding:
    """One line of the verdict."""

    level: Literal["ok", "warning", "problem"]
    text: str


def graded(warning: bool, text: str, fix: str, problem: bool = False) -> Finding:
    """`ok`, or what to do about it."""
    if not (warning or problem):
        return Finding("ok", text)
    return Finding("problem" if problem else "warning", f"{text}: {fix}")


def check_data(data: PhaseData, console: Console, shown: int) -> list[Finding]:
    """Print the first sample and count the first ones."""
    dataset: Any = data.train_dataloader().dataset
    if isinstance(data, TaskDataModule):
        _, at = dataset.order.place(np.zeros(1, np.int64))
        example = dataset.examples[int(at[0])]
        console.print(example_table(example, data.tokenizer, shown))
        console.print(*_about(example, data.labels), sep="\n", highlight=False, markup=False)
        findings = [*_count_examples(dataset.examples, data)]
    else:
        console.print(
            row_table(
                dataset[Slots(np.zeros(1, np.int64), np.zeros(1, np.int64))], data.tokenizer, shown
            )
        )
        findings = []
    findings += count_batches(list(first_batches(data, dataset)), data.tokenizer)
    if isinstance(rows := getattr(data, "train_rows", None), GrowingRows) and not rows.whole:
        looked = f"the first {rows.so_far()[1]} shards of '{rows.growing.place}'"
        findings.append(Finding("ok", f"{looked} were looked at: it is still being prepared"))
    if data.val_dataloader() == []:
        share = "name a data.validation file or raise data.validation_share"
        findings.append(Finding("warning", f"nothing is held out to validate on: {share}"))
    return findings


def first_batches(data: PhaseData, dataset: Any) -> Iterator[Batch]:
    """The first samples in micro-batches as fit makes them."""
    numbers = np.arange(min(SURVEYED, samples_there(data)))
    for start in range(0, len(numbers), data.micro_batch_size):
        share = numbers[start : start + data.micro_batch_size]
        yield dataset[Slots(share, share)]


def samples_there(data: PhaseData) -> int:
    """Training samples of an epoch, or as many as a store that grows has so far."""
    rows = getattr(data, "train_rows", None)
    return rows.so_far()[0] if isinstance(rows, GrowingRows) else data.train_samples


# One sample, readable.


def piece(tokenizer: Tokenizer, token: int) -> str:
    """A token as a person reads it: spaces as `·`, bytes of a part of a character in hex."""
    name: str | None = tokenizer.raw.id_to_token(token)
    if name is None:
        return f"(no token {token})"
    if type(tokenizer.raw.decoder).__name__ != "ByteLevel" or token in tokenizer.specials:
        return name
    text: str = tokenizer.raw.decode([token], skip_special_tokens=False)
    if "\ufffd" in text:
        return "".join(f"<{byte:02X}>" for byte in printed(name))
    return text.replace(" ", "·").replace("\n", "\\n").replace("\t", "\\t")


def _table(title: str, columns: tuple[str, ...], length: int, shown: int) -> Table:
    caption = f"the first {shown} of {length} positions" if shown < length else None
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if column == "at" else "left")
    return table


def row_table(batch: Batch, tokenizer: Tokenizer, shown: int) -> Table:
    """Phase one's first row: tokens, document borders (a line), and what is predicted where."""
    tokens = batch.tokens[0].tolist()
    documents = [1] * len(tokens) if batch.documents is None else batch.documents[0].tolist()
    wanted, fates = _targets_of(batch, tokens, tokenizer)
    columns = ("at", "document", "input", "target", *(("what",) if fates else ()))
    table = _table("the first row", columns, len(tokens), shown)
    for at, token in enumerate(tokens[:shown]):
        if at and documents[at] != documents[at - 1]:
            table.add_section()
        document = str(documents[at]) if documents[at] else "padding"
        target = piece(tokenizer, wanted[at]) if at in wanted else ""
        cells = [str(at), document, piece(tokenizer, token), target]
        table.add_row(*(escape(c) for c in cells + ([fates.get(at, "")] if fates else [])))
    return table


def _targets_of(
    batch: Batch, tokens: list[int], tokenizer: Tokenizer
) -> tuple[dict[int, int], dict[int, str]]:
    """Position -> the token wanted there and, of masked models, what was done to it."""
    labels = batch.targets["labels"][0].tolist() if "labels" in batch.targets else []
    at = batch.targets["slots"][0].tolist() if "slots" in batch.targets else range(len(labels))
    wanted = {p: label for p, label in zip(at, labels, strict=True) if label != IGNORE}
    if "slots" not in batch.targets:
        return wanted, {}
    fates = {}
    for position, label in wanted.items():
        same = "kept" if tokens[position] == label else "replaced"
        fates[position] = "masked" if tokens[position] == tokenizer.mask else same
    return wanted, fates


def example_table(example: Encoded, tokenizer: Tokenizer, shown: int) -> Table:
    """Phase two's first example as the model reads it; targets that go along its tokens too."""
    length = len(example.tokens)
    along = {k: v for k, v in example.targets.items() if v.shape == (length,)}
    table = _table("the first example", ("at", "segment", "input", *along), length, shown)
    for at, (token, segment) in enumerate(zip(example.tokens, example.segments, strict=True)):
        if at < shown:
            cells = [str(at), str(segment), piece(tokenizer, token)]
            table.add_row(*(escape(c) for c in cells), *(str(v[at]) for v in along.values()))
    return table


def _about(example: Encoded, labels: list[str]) -> Iterator[str]:
    for name, value in example.targets.items():
        scalar = value.ndim == 0 and name == "label" and 0 <= value < len(labels)
        if value.shape != (len(example.tokens),):
            yield f"{name}: {labels[int(value)] if scalar else value.tolist()}"
    yield f"{len(example.tokens)} tokens{', cut to fit' if example.cut else ''}"


# Counts.


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The token that stands for what the vocabulary lacks, if there is one."""
    names = (getattr(tokenizer.raw.model, "unk_token", None), "[UNK]", "<unk>")
    found = (tokenizer.raw.token_to_id(name) for name in names if name)
    taken = (tokenizer.pad, tokenizer.mask, tokenizer.begin, tokenizer.end)
    return next((i for i in found if i is not None and i not in taken), None)


def count_batches(batches: list[Batch], tokenizer: Tokenizer) -> list[Finding]:
    """Padding, unknown tokens and, in phase one, targets of some micro-batches."""
    tokens = sum(batch.real_tokens for batch in batches)
    places = sum(batch.tokens.numel() for batch in batches)
    samples = sum(len(batch.samples) for batch in batches)
    padding, seen = 1 - tokens / places, f"in the first {samples} samples"
    findings = [
        graded(
            padding > PADDING_WARNING,
            f"{padding:.1%} of the places {seen} are padding",
            "use longer or shorter rows, or a larger data.micro_batch_size",
        )
    ]
    if (unknown := unknown_id(tokenizer)) is not None:
        share = sum(int((batch.tokens == unknown).sum()) for batch in batches) / max(1, tokens)
        findings.append(
            graded(
                share > UNKNOWN_WARNING,
                f"{share:.2%} of the tokens {seen} are unknown ({piece(tokenizer, unknown)})",
                "the tokenizer does not know this text: learn one from it, or use --kind bpe",
                problem=share > UNKNOWN_PROBLEM,
            )
        )
    if "labels" in batches[0].targets:
        targets = sum(int((batch.targets["labels"] != IGNORE).sum()) for batch in batches)
        findings.append(
            graded(
                False,
                f"{targets / max(1, tokens):.1%} of the tokens {seen} are predicted",
                "there is nothing to learn from: look at data.files and data.length",
                problem=not targets,
            )
        )
    return findings


def _count_examples(examples: list[Encoded], data: TaskDataModule) -> Iterator[Finding]:
    cut = sum(e.cut > 0 for e in examples)
    yield graded(
        cut > CUT_WARNING * len(examples),
        f"{cut} of {len(examples)} training examples are cut to {data.max_length} tokens",
        "raise data.max_length",
    )
    labels = [e.targets["label"] for e in examples if "label" in e.targets]
    if labels and all(label.ndim == 0 for label in labels) and data.labels:
        yield label_finding([data.labels[int(label)] for label in labels], data.labels)


def label_finding(found: list[str], labels: list[str]) -> Finding:
    """How the labels of the training examples are spread."""
    counts = Counter(found)
    listed = ", ".join(f"{name} {count / len(found):.0%}" for name, count in counts.most_common(8))
    most = counts.most_common(1)[0][1] / len(found)
    missing = [label for label in labels if label not in counts]
    absent = f"; none is {', '.join(missing)}" if missing else ""
    return graded(
        most > COMMON_WARNING or bool(missing),
        f"labels: {listed}{absent}",
        "a constant answer scores as much: look at the data, and at macro_f1 besides accuracy",
        problem=len(counts) < 2 and len(labels) > 1,
    )
