"""Phase two's samples: packed where they say they are, each once an epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.data.batch import Batch
from ptft_lightning.data.example_rows import ExampleDataset, pack_examples, round_rows
from ptft_lightning.data.examples import Columns, Encoded
from ptft_lightning.data.plan import held_out
from ptft_lightning.data.steps import PassSampler, Slots
from ptft_lightning.data.task_data import TaskDataModule
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.classification import Classification
from ptft_lightning.tasks.tagging import Tagging
from ptft_lightning.terms import IGNORE

LENGTH = 24
PAD = 0


def encoded(length: int, first_id: int, label: int = 0) -> Encoded:
    half = length // 2
    return Encoded(
        tokens=list(range(first_id, first_id + length)),
        segments=[0] * half + [1] * (length - half),
        targets={"label": np.array(label)},
    )


def many(lengths: list[int]) -> list[Encoded]:
    """Examples that share no token id, so that each can be told from its tokens."""
    firsts = np.cumsum([1, *lengths])
    return [
        encoded(n, int(f), i % 3) for i, (n, f) in enumerate(zip(lengths, firsts, strict=False))
    ]


# Packing.


@given(lengths=st.lists(st.integers(0, LENGTH), max_size=40))
def test_each_examples_tokens_are_at_its_row_and_start(lengths: list[int]) -> None:
    chosen = many(lengths)
    tokens, documents, segments, rows, starts = pack_examples(chosen, LENGTH, PAD)
    used = np.zeros(tokens.shape, bool)
    numbers = set()
    for item, row, start in zip(chosen, rows.tolist(), starts.tolist(), strict=True):
        place = (row, slice(start, start + len(item.tokens)))
        assert tokens[place].tolist() == item.tokens
        assert segments[place].tolist() == item.segments
        assert not used[place].any()
        used[place] = True
        if item.tokens:
            (number,) = set(documents[place].tolist())
            assert number > 0
            assert (row, number) not in numbers  # neighbours are told apart
            numbers.add((row, number))
    assert (tokens[~used] == PAD).all()
    assert (documents[~used] == 0).all()
    assert (segments[~used] == 0).all()
    for row in documents:  # numbered 1, 2, .. from the left, padding last
        numbered = [d for d in row.tolist() if d]
        assert row.tolist() == numbered + [0] * (LENGTH - len(numbered))
        assert numbered == sorted(numbered)
    assert len(tokens) == round_rows(len(set(rows[[bool(n) for n in lengths]].tolist())))


def test_row_counts_are_few_and_never_one() -> None:
    rounded = [round_rows(rows) for rows in range(4097)]
    assert min(rounded) == 2
    assert all(count >= rows for rows, count in enumerate(rounded))
    assert rounded == sorted(rounded)
    assert all(round_rows(count) == count for count in rounded)
    assert all(1 - rows / count < 0.15 for rows, count in enumerate(rounded) if rows > 1)
    assert len(set(rounded)) < 9 * 12  # eight values a doubling


# The dataset.


def dataset(examples: list[Encoded], bpe: Tokenizer, **more: Any) -> ExampleDataset:
    settings = {"seed": 0, "shuffle": True, "audit": False, **more}
    return ExampleDataset(examples, Classification(), LENGTH, bpe, **settings)


def examples_in(batch: Batch) -> list[list[int]]:
    """The tokens of each slot, read through the targets."""
    found = []
    for row, start, end, label in zip(
        *(batch.targets[k].tolist() for k in ("row", "start", "end", "label")), strict=True
    ):
        found.append(batch.tokens[row, start:end].tolist() if label != IGNORE else [])
    return found


def slots(numbers: list[int]) -> Slots:
    return Slots(np.array(numbers), np.arange(99))


def test_every_epoch_reads_each_example_once_among_other_neighbours(bpe: Tokenizer) -> None:
    lengths = np.random.default_rng(0).integers(1, LENGTH, 60).tolist()
    data = dataset(many(lengths), bpe)
    everything = sorted(e.tokens for e in data.examples)
    neighbours, orders = [], []
    for epoch in range(3):
        order, pairs = [], set()
        for start in range(0, 60, 12):
            batch = data[slots(list(range(60 * epoch + start, 60 * epoch + start + 12)))]
            read = examples_in(batch)
            order += read
            rows = batch.targets["row"].tolist()
            pairs |= {
                frozenset((a[0], b[0]))
                for i, a in enumerate(read)
                for j, b in enumerate(read)
                if i < j and rows[i] == rows[j]
            }
        assert sorted(order) == everything
        orders.append(order)
        neighbours.append(pairs)
    assert orders[0] != orders[1] != orders[2]
    for a, b in ((0, 1), (1, 2)):
        assert len(neighbours[a] & neighbours[b]) < 0.5 * len(neighbours[a])


def test_labels_travel_with_their_examples(bpe: Tokenizer) -> None:
    data = dataset(many([5, 6, 7, 8, 9, 10]), bpe)
    expected = {e.tokens[0]: int(e.targets["label"]) for e in data.examples}
    batch = data[slots([3, 0, 5, 1])]
    for read, label in zip(examples_in(batch), batch.targets["label"].tolist(), strict=True):
        assert expected[read[0]] == label
    assert batch.samples.tolist() == [3, 0, 5, 1]
    assert batch.step_samples == 99


def test_without_shuffle_the_file_order_is_kept(bpe: Tokenizer) -> None:
    data = dataset(many([3, 4, 5, 6, 7]), bpe, shuffle=False)
    read: list[list[int]] = []
    for one in PassSampler(len(data), rank=0, ranks=1, micro=2):
        batch = data[one]
        read += [
            r for r, n in zip(examples_in(batch), batch.samples.tolist(), strict=True) if n >= 0
        ]
    assert read == [e.tokens for e in data.examples]


@pytest.mark.parametrize("numbers", [[2, -1, -1], [-1, -1, -1]])
def test_empty_slots_hold_nothing_and_count_for_nothing(bpe: Tokenizer, numbers: list[int]) -> None:
    batch = dataset(many([LENGTH] * 4), bpe, audit=True)[slots(numbers)]
    real = sum(n >= 0 for n in numbers)
    assert batch.samples.tolist() == numbers
    assert (batch.targets["label"] != IGNORE).tolist() == [n >= 0 for n in numbers]
    assert batch.real_tokens == real * LENGTH
    assert batch.documents is not None
    assert (batch.targets["end"] > batch.targets["start"]).all()  # a mean over it is a number
    assert (batch.targets["end"] <= LENGTH).all()
    assert batch.tokens.shape == (2, LENGTH)


def test_audit_hash_is_the_examples_own(bpe: Tokenizer) -> None:
    """The same whatever shares the micro-batch; another for other tokens, segments or labels."""
    items = many([5, 6, 7, 8])
    data = dataset(items, bpe, audit=True, shuffle=False)
    together = data[slots([0, 1, 2, 3])].hashes
    assert together is not None
    assert len(set(together.tolist())) == 4
    for number in range(4):
        alone = data[slots([number, -1])].hashes
        assert alone is not None
        assert alone[0] == together[number]
    changed = [encoded(5, 1, label=2), encoded(5, 2), Encoded(items[0].tokens, [0] * 5)]
    changed[2].targets = items[0].targets
    for item in changed:
        other = dataset([item], bpe, audit=True, shuffle=False)[slots([0])].hashes
        assert other is not None
        assert other[0] != together[0]
    assert dataset(items, bpe)[slots([0])].hashes is None


# The module's files.


def module(bpe: Tokenizer, **settings: Any) -> TaskDataModule:
    data = TaskDataModule(**{"max_length": LENGTH, "global_batch_size": 4, **settings})
    data.tokenizer, data.task = bpe, Classification()
    return data


def labelled(path: Path, count: int = 100) -> str:
    lines = [f"example number {i},{'even' if i % 2 == 0 else 'odd'}" for i in range(count)]
    path.write_text("\n".join(["text,label", *lines]))
    return str(path)


def test_a_share_is_held_out_by_text(bpe: Tokenizer, tmp_path: Path) -> None:
    data = module(bpe, train=labelled(tmp_path / "t.csv"), validation_share=0.3)
    data._setup_fit()
    texts = [f"example number {i}" for i in range(100)]
    expected = [t for t in texts if held_out(t, 0.3)]
    assert [bpe.decode(e.tokens) for e in data.datasets["validation"].examples] == expected
    assert len(data.datasets["train"]) == 100 - len(expected)
    assert data.labels == ["even", "odd"]
    count = len(data.datasets["train"])
    assert data.steps_per_epoch == -(-count // 4)
    taken = [n for step in range(data.steps_per_epoch) for n in data.step_numbers(step).tolist()]
    assert taken == list(range(count))  # the last step is short, the epoch whole


def test_label_not_in_the_schema_names_its_place(bpe: Tokenizer, tmp_path: Path) -> None:
    valid = tmp_path / "v.csv"
    valid.write_text("text,label\nfine,even\nsurprise,third\n")
    data = module(bpe, train=labelled(tmp_path / "t.csv"), validation=str(valid))
    with pytest.raises(UserError, match=r"v\.csv line 3: label 'third' is not one of \['even', 'o"):
        data._setup_fit()


def test_everything_held_out_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    data = module(bpe, train=labelled(tmp_path / "t.csv"), validation_share=1.0)
    with pytest.raises(UserError, match=r"data.validation_share 1.0 leaves no example of"):
        data._setup_fit()


def test_one_label_alone_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\na,x\nb,x\n")
    data = module(bpe, train=str(tmp_path / "t.csv"), validation_share=0.0)
    with pytest.raises(UserError, match=r"two labels or more, the training file has \['x'\]"):
        data._setup_fit()


def test_typed_texts(bpe: Tokenizer) -> None:
    data = module(bpe, text=["one\ttwo", "a\tb\tc"], columns=Columns(pair="pair"))
    data._setup_predict()
    assert [e.text for e in data.examples["predict"]] == ["one", "a"]
    assert any(data.datasets["predict"].examples[0].segments)
    data = module(bpe, text=["no tab"], columns=Columns(pair="pair"))
    with pytest.raises(UserError, match=r"--text 1: this model reads pairs: put a tab"):
        data._setup_predict()
    data = module(bpe, text=["half a pair \udce9"])
    with pytest.raises(UserError, match=r"--text 1: half of a surrogate pair"):
        data._setup_predict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 3}, "data.max_length is 3"),
        ({"global_batch_size": 0}, "data.global_batch_size is 0"),
        ({"micro_batch_size": -1}, "data.micro_batch_size is -1"),
    ],
)
def test_wrong_settings_are_refused(bpe: Tokenizer, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        module(bpe, **settings)


def test_missing_files_are_named(bpe: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"data\.train is missing"):
        module(bpe)._setup_fit()
    with pytest.raises(UserError, match=r"give --text TEXT or --data\.predict FILE"):
        module(bpe)._setup_predict()


def test_cut_examples_are_counted(
    bpe: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["text,label", f"{'river ' * 50},a", "short,b"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data = module(bpe, train=str(tmp_path / "t.csv"), validation_share=0.0)
    data._setup_fit()
    long, short = (len(ids) + 2 for ids in bpe.encode(["river " * 50, "short"]))  # begin and end
    lost = (long - LENGTH) / (long + short)
    assert capsys.readouterr().err == (
        f"train: 1 of 2 examples (50.0%) cut to {LENGTH} tokens, {lost:.1%} of all tokens lost, "
        f"the longest has {long}; at {tmp_path}/t.csv line 2\n"
    )
    assert "validation" not in data.datasets


@pytest.mark.parametrize("ill_formed", ["repair", "refuse"])
def test_tags_that_were_ids_are_checked_under_their_names(
    bpe: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], ill_formed: Any
) -> None:
    rows = [{"tokens": ["a", "b", "c"], "tags": tags} for tags in ([0, 2, 2], [0, 1, 2])]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {"0": "O", "1": "B-X", "2": "I-X"}
    settings = {"bad_examples": "skip", "label_names": names, "train": str(tmp_path / "t.jsonl")}
    data = module(bpe, **settings)
    data.task = Tagging(ill_formed=ill_formed)
    found = data._read("train")
    said = capsys.readouterr().err
    assert [e.labels for e in found] == [["O", "B-X", "I-X"]] * (1 + (ill_formed == "repair"))
    assert data.skipped["train"] == (ill_formed == "refuse")
    assert "out of the order of BIO" in said
