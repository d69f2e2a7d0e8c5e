"""What is noticed about examples: counted, located, and left out only where that was chosen."""

from __future__ import annotations

import pytest

from ptft_lightning.data.examples import Encoded, Example
from ptft_lightning.data.findings import known_only, report_cut, report_empty
from ptft_lightning.data.label_names import name_labels, read_label_names
from ptft_lightning.errors import UserError


def examples(*labels: str) -> list[Example]:
    return [Example("x", None, label, f"f.csv line {i}") for i, label in enumerate(labels, start=2)]


def label_of(example: Example) -> list[str]:
    return [example.label] if example.label is not None else []


def test_unknown_labels_stop() -> None:
    given = examples("a", "z", "b", "y")
    with pytest.raises(UserError) as refused:
        known_only("test", given, ["a", "b"], label_of, "stop")
    assert str(refused.value) == (
        "f.csv line 3: label 'z' is not one of ['a', 'b'] (2 of 4 examples (50.0%) of test have "
        "such a label): correct them, or leave such examples out: data.unknown_labels skip"
    )


def test_unknown_labels_are_left_out_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    given = examples("a", "z", "b", "y", "x", "w")
    assert known_only("test", given, ["a", "b"], label_of, "skip") == [given[0], given[2]]
    assert capsys.readouterr().err == (
        "test: 4 of 6 examples (66.7%) left out, label 'z' is not one of ['a', 'b']; at "
        "f.csv line 3, 5, 6, ..\n"
    )


def test_training_examples_are_never_left_out() -> None:
    with pytest.raises(UserError, match=r"line 3: label 'z' .* of train .*: correct them$"):
        known_only("train", examples("a", "z"), ["a", "b"], label_of, "skip")


def test_not_all_examples_can_be_left_out() -> None:
    with pytest.raises(UserError, match=r"\(2 of 2 examples \(100\.0%\) of test .*: correct them$"):
        known_only("test", examples("y", "z"), ["a", "b"], label_of, "skip")


def test_known_and_missing_labels_are_no_finding(capsys: pytest.CaptureFixture[str]) -> None:
    given = [*examples("a", "b"), Example("x", None, None, "--text 1")]
    assert known_only("predict", given, ["a", "b"], label_of, "stop") == given
    assert capsys.readouterr().err == ""


def test_many_labels_are_not_all_listed() -> None:
    labels = [str(i) for i in range(77)]
    with pytest.raises(UserError, match=r"'18', '19'\] and 57 more \(1 of"):
        known_only("test", examples("z"), labels, label_of, "stop")


def test_empty_texts(capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        Example(" \n", None, "a", "line 1"),
        Example("x", "", "a", "line 2"),
        Example("x", None, "a", "line 3"),
        Example("x", "y", "a", "line 4"),
    ]
    report_empty("train", given)
    said = "train: 2 of 4 examples (50.0%) with an empty text; at line 1, 2\n"
    assert capsys.readouterr().err == said
    report_empty("train", given[2:])
    assert capsys.readouterr().err == ""


def test_cuts(capsys: pytest.CaptureFixture[str]) -> None:
    def item(kept: int, cut: int, place: str) -> Encoded:
        return Encoded([7] * kept, [0] * kept, cut, place=place)

    report_cut("train", [item(8, 12, "line 1"), item(6, 0, "line 2"), item(8, 6, "line 3")], 8)
    assert capsys.readouterr().err == (
        "train: 2 of 3 examples (66.7%) cut to 8 tokens, 45.0% of all tokens lost, the longest "
        "has 20; at line 1, 3\n"
    )
    report_cut("train", [item(8, 0, "line 1")], 8)
    assert capsys.readouterr().err == ""


# Names of labels.


def test_names_of_a_file_and_of_a_mapping(tmp_path) -> None:
    file = tmp_path / "class.txt"
    file.write_text("\ufefffinance\nsports \n游戏\n", encoding="utf-8")
    names = read_label_names(str(file))
    assert names == {"0": "finance", "1": "sports", "2": "游戏"}
    given = [*examples("2", "0", "other"), Example("x", None, None, "here", ["1", "0", "9"])]
    named = name_labels(given, names)
    assert [e.label for e in named] == ["游戏", "finance", "other", None]
    assert named[3].labels == ["sports", "finance", "9"]
    assert [e.place for e in named] == [e.place for e in given]
    assert read_label_names({1: "World", 2: "Sports"}) == {"1": "World", "2": "Sports"}  # type: ignore[dict-item]


def test_names_that_are_no_names(tmp_path) -> None:
    with pytest.raises(UserError, match="file not found"):
        read_label_names(str(tmp_path / "class.txt"))
    with pytest.raises(UserError, match=r"data\.label_names: \['a'\] stand for several labels"):
        read_label_names({"0": "a", "1": "a"})
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt' is not UTF-8"):
        read_label_names(str(tmp_path / "latin.txt"))
