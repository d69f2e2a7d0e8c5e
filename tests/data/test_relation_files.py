"""Relations read from files: marks, names and stretches say the same; what cannot be placed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults.files_relations import write_relations

from ptft_lightning.data.examples import Columns, Example
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.data.relation_files import MARKS, Related, RelationFormat, read_relations
from ptft_lightning.errors import UserError

FIELDS = RelationFormat(None, "head", "tail", None, last=False, joiner=" ")
BARE = Columns(names=["head", "tail", "label", "text"])


def marks(*pieces: str) -> RelationFormat:
    return RelationFormat(pieces or MARKS, "head", "tail", None, last=False, joiner=" ")


def read(
    path: Path, how: RelationFormat = FIELDS, columns: Columns = Columns()
) -> tuple[list[Example], list[tuple[str, str]]]:
    bad = BadExamples("skip")
    return read_relations(str(path), columns, how, True, bad), bad.found


def one(tmp_path: Path, record: dict[str, Any], how: RelationFormat = FIELDS) -> Related:
    (tmp_path / "one.jsonl").write_text(json.dumps({"label": "x", **record}) + "\n")
    (example,), bad = read(tmp_path / "one.jsonl", how)
    assert bad == []
    assert isinstance(example, Related)
    return example


def test_every_way_of_writing_says_the_same(tmp_path: Path) -> None:
    write_relations(tmp_path)
    marked, _ = read(tmp_path / "train.jsonl", marks())
    assert len(marked) == 60
    raw, _ = read(tmp_path / "train.txt", marks())
    spans, _ = read(tmp_path / "train_spans.jsonl")
    names, bad = read(tmp_path / "train.tsv", columns=BARE)
    assert bad == []
    said = [(e.said, e.label) for e in marked]
    assert [(e.said, e.label) for e in raw] == said
    assert [(e.said, e.label) for e in spans] == said
    # A name may occur twice; then the nearest one is meant, which is what was marked here.
    assert [(e.said, e.label) for e in names] == said


def test_the_official_file_has_comments_and_a_test_file_no_relations(tmp_path: Path) -> None:
    text = (
        '1\t"A <e1>child</e1> said ""no"" in its <e2>cradle</e2>."\nOther\n'
        "Comment: none\n\n\n2\tThe <e2>b</e2> of <e1>a</e1>\r\nMade-Of(e2,e1)\r\nComment:\r\n"
    )
    (tmp_path / "t.txt").write_text(text)
    (first, second), _ = read(tmp_path / "t.txt", marks())
    assert first.said == {
        **{"text": 'A child said ""no"" in its cradle.', "head": "child", "tail": "cradle"},
        **{"head_span": [2, 7], "tail_span": [27, 33]},
    }
    assert (first.label, second.label) == ("Other", "Made-Of(e2,e1)")
    assert (second.said["head"], second.said["tail"]) == ("a", "b")
    (tmp_path / "t.txt").write_text("8001\t<e1>a</e1> <e2>b</e2>\n\n8002\t<e1>c</e1> <e2>d</e2>\n")
    found = read_relations(str(tmp_path / "t.txt"), Columns(), marks(), False, BadExamples("stop"))
    assert [e.text for e in found] == ["a b", "c d"]
    with pytest.raises(UserError, match="line 1: no column 'label'"):
        read(tmp_path / "t.txt", marks())


BRACKETS = ("[[", "]]", "<<", ">>")


@pytest.mark.parametrize(
    ("text", "plain", "head", "tail"),
    [
        ("in [[ nouns ]] and << old verbs >> .", "in nouns and old verbs .", "nouns", "old verbs"),
        ("<< a >> [[ b ]]", "a b", "b", "a"),
        ("[[a]]<<b>>", "ab", "a", "b"),
        ("x[[ a ]]y << b>>", "x a y b", "a", "b"),
        ("电脑[[芯片]]由<<工厂>>制造", "电脑芯片由工厂制造", "芯片", "工厂"),
    ],
)
def test_marks_leave_with_their_spaces(
    text: str, plain: str, head: str, tail: str, tmp_path: Path
) -> None:
    found = one(tmp_path, {"text": text}, marks(*BRACKETS))
    assert found.text == plain
    assert (found.said["head"], found.said["tail"]) == (head, tail)


def test_names_that_occur_several_times_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"text": "Ada saw Ben, Cy and Ada; Cy left", "head": "Cy", "tail": "Ada"}
    found = one(tmp_path, record)
    # `Ada; Cy` is nearer than `Cy and Ada`.
    assert (found.head, found.tail) == ((25, 27), (20, 23))
    said = capsys.readouterr().err
    assert "1 of 1 examples name an entity that occurs several times" in said
    assert "one.jsonl line 1" in said
    # One inside the other does not count as a second place.
    found = one(
        tmp_path, {"text": "上海建工集团与建工集团", "head": "上海建工集团", "tail": "建工集团"}
    )
    assert (found.head, found.tail) == ((0, 6), (7, 11))
    assert capsys.readouterr().err == ""


def test_stretches_of_other_conventions(tmp_path: Path) -> None:
    words = ["Ada", "Lovelace", "met", "Ben"]
    last = RelationFormat(None, "h", "t", ("ht", "tt"), last=True, joiner="")
    record = {"text": words, "h": {"pos": [0, 1]}, "t": [3, 3], "ht": "PER", "tt": "ORG"}
    found = one(tmp_path, record, last)
    assert found.text == "AdaLovelacemetBen"
    assert (found.said["head"], found.said["tail"]) == ("AdaLovelace", "Ben")
    assert found.types == ("PER", "ORG")
    found = one(tmp_path, {"text": " Ada met Ben", "head": [0, 5], "tail": [9, 12]})
    assert (found.said["head"], found.said["tail"]) == ("Ada", "Ben")


@pytest.mark.parametrize(
    ("text", "head", "start"),
    [
        ("RUSSIA tells the US to pay Cuba", "US", 17),
        ("the business of us and Cuba", "us", 16),
        ("RUSSIA pays Cuba", "US", 1),  # only there
        ("中国人在国外 Cuba", "国", 4),  # the nearest: ideographs are no borders
    ],
)
def test_a_name_is_not_meant_inside_another_word(
    text: str, head: str, start: int, tmp_path: Path
) -> None:
    found = one(tmp_path, {"text": text, "head": head, "tail": "Cuba"})
    assert found.head == (start, start + len(head))


def test_what_is_empty_is_noted_and_no_label(tmp_path: Path) -> None:
    good = {"text": "Ada met Ben", "head": "Ada", "tail": "Ben", "label": "x"}
    rows = [good, good | {"head": None}, good | {"label": ""}, good | {"text": " "}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (example,), bad = read(tmp_path / "t.jsonl")
    assert example.label == "x"
    assert [reason.partition(" is")[0] for _, reason in bad] == ["head", "label", "text"]


BAD = [
    ({"text": "Ada met Ben", "head": "Ada", "tail": "Cy"}, "tail 'Cy' does not occur"),
    ({"text": "Ada met Ben", "head": "", "tail": "Ada"}, "head is empty"),
    ({"text": "Ada met Ben", "head": "Ada met", "tail": "met"}, "'Ada met' and tail 'met' overlap"),
    ({"text": "Ada met Ben", "head": [0, 3], "tail": [8, 12]}, "[8, 12], the text has 11 char"),
    ({"text": ["Ada", "met"], "head": [0, 1], "tail": [1, 3]}, "[1, 3], the text has 2 words"),
    ({"text": "Ada met Ben", "head": [3, 3], "tail": [8, 11]}, "head is [3, 3]"),
    ({"text": "Ada met Ben", "head": [3, 4], "tail": [8, 11]}, "the head is blank"),
    ({"text": "Ada met Ben", "head": [0, 3], "tail": 8}, "tail is 8: give a name, or [start, end]"),
]
BAD_MARKS = [
    ("<e1>Ada</e1> met Ben", "'<e2>' stands 0 times"),
    ("<e1>Ada</e1> met <e2>Ben</e2></e2>", "'</e2>' stands 2 times"),
    ("</e1>Ada<e1> met <e2>Ben</e2>", "'</e1>' stands before '<e1>'"),
    ("<e1>Ada <e2>met</e1> Ben</e2>", "overlap"),
    ("<e1> </e1> met <e2>Ben</e2>", "nothing stands between '<e1>' and '</e1>'"),
]


@pytest.mark.parametrize(
    ("record", "said", "how"),
    [
        *((record, said, FIELDS) for record, said in BAD),
        *(({"text": text}, said, marks()) for text, said in BAD_MARKS),
    ],
)
def test_what_cannot_be_placed_is_noted(
    record: dict[str, Any], said: str, how: RelationFormat, tmp_path: Path
) -> None:
    good = {"text": "Ada met Ben", "head": "Ada", "tail": "Ben"}
    good = good if how is FIELDS else {"text": "<e1>a</e1><e2>b</e2>"}
    lines = [json.dumps({**row, "label": "x"}) + "\n" for row in (good, record, good)]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    found, bad = read(tmp_path / "t.jsonl", how)
    assert len(found) == 2
    ((place, reason),) = bad
    assert place.endswith("line 2")
    assert said in reason


def test_a_label_may_be_0_but_not_empty(tmp_path: Path) -> None:
    record = {"text": "Ada met Ben.", "head": "Ada", "tail": "Ben"}
    rows = [json.dumps(record | {"label": label}) for label in (0, 1, "", " ", None)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    found, bad = read(tmp_path / "t.jsonl")
    assert [e.label for e in found] == ["0", "1"]
    assert [reason.split(":")[0] for _, reason in bad] == ["label is empty"] * 3
