"""Every format of tagged words gives the same sentences; what is wrong is named with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from ptft_lightning.data.examples import Columns
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.tagging import Tagging

TOKENS = [["Ada", "Lovelace", "met", "Babbage", "."], ["London", "slept"]]
TAGS = [["B-PER", "I-PER", "O", "B-PER", "O"], ["B-LOC", "O"]]
BIOES = [["B-PER", "E-PER", "O", "S-PER", "O"], ["S-LOC", "O"]]
KINDS = [[(0, 12, "PER"), (17, 24, "PER")], [(0, 6, "LOC")]]
IOB1 = [["I-PER", "I-PER", "O", "I-PER", "O"], ["I-LOC", "O"]]


def columns(tags, separator=" ", middle=()):
    sentences = [
        "".join(
            separator.join([token, *middle, tag]) + "\n"
            for token, tag in zip(tokens, their, strict=True)
        )
        for tokens, their in zip(TOKENS, tags, strict=True)
    ]
    return "\n".join(sentences)


def spans():
    found = []
    for tokens, kinds in zip(TOKENS, KINDS, strict=True):
        found.append((" ".join(tokens), kinds))
    return found


def doccano():
    return [{"text": text, "label": [list(span) for span in kinds]} for text, kinds in spans()]


def studio(annotations):
    return f'{{"data": {{"text": "x"}}, "annotations": {annotations}}}\n'


def label_studio(minimal=False):
    tasks = []
    for text, kinds in spans():
        values = [
            {"start": a, "end": b, "text": text[a:b], "labels": [kind]} for a, b, kind in kinds
        ]
        results = [{"type": "labels", "value": value} for value in values]
        results.append({"type": "choices", "value": {"choices": ["good"]}})
        cancelled = {"was_cancelled": True, "result": []}
        whole = {"data": {"text": text}, "annotations": [cancelled, {"result": results}]}
        tasks.append({"text": text, "label": values} if minimal else whole)
    return tasks


def json_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


UNIVERSAL = """\
# sent_id = 1
# text = Ada Lovelace met Babbage.
1-2\tAdaLovelace\t_\t_\t_\t_\t_\t_\t_\t_
1\tAda\t_\tB-PER\tO\t_\t_\t_\t_\t_
2\tLovelace\t_\tI-PER\tO\t_\t_\t_\t_\t_
3\tmet\t_\tO\tO\t_\t_\t_\t_\t_
3.1\tgladly\t_\tADV\tADV\t_\t_\t_\t_\t_
4\tBabbage\t_\tB-PER\tO\t_\t_\t_\t_\tSpaceAfter=No
5\t.\t_\tO\tO\t_\t_\t_\t_\t_

1\tLondon\t_\tB-LOC\tO\t_\t_\t_\t_\t_
2\tslept\t_\tO\tO\t_\t_\t_\t_\t_
"""

FILES = {
    "two.txt": (columns(TAGS), {}),
    "tabs.conll": (columns(TAGS, "\t"), {}),
    "windows.bio": ("\ufeff" + columns(TAGS).replace("\n", "\r\n"), {}),
    "docs.conll": (f"-DOCSTART- -X- O\n\n{columns(TAGS, ' ', ['NN'])}\n\n", {}),
    "id.conll": ("# id 3f\tdomain=en\n" + columns(TAGS, " ", ["_", "_"]), {}),
    "turned.conll": (
        "\n".join(" ".join(reversed(line.split(" "))) for line in columns(TAGS).split("\n")),
        {"token_column": 1, "tag_column": 0},
    ),
    "iob1.conll": (columns(IOB1), {"scheme": "IOB1"}),
    "iob1_found.conll": (columns(IOB1), {}),
    "panx.tsv": (columns(TAGS, "\t").replace("\n", "\nen:").replace("en:\n", "\n"), {}),
    "spans.jsonl": (json_lines(doccano()), {}),
    "tokens.jsonl": (
        json_lines({"tokens": t, "tags": g} for t, g in zip(TOKENS, TAGS, strict=True)),
        {},
    ),
    "studio.json": (json.dumps(label_studio()), {}),
    "studio_min.json": (json.dumps(label_studio(minimal=True)), {}),
    "universal.conllu": (UNIVERSAL, {}),
}
FILES["panx.tsv"] = ("en:" + FILES["panx.tsv"][0].removesuffix("en:"), {})


def read(path: Path, labelled=True, columns=Columns(), **settings):
    bad = BadExamples("skip")
    return Tagging(**settings).read(str(path), columns, labelled, bad), bad.found


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_sentences(name, tmp_path):
    text, settings = FILES[name]
    (tmp_path / name).write_bytes(text.encode())
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    for file in (name, f"{name}.gz"):
        examples, bad = read(tmp_path / file, **settings)
        assert bad == []
        assert [e.tokens for e in examples] == TOKENS
        assert [e.labels for e in examples] == TAGS
        assert all(e.place.startswith(f"{tmp_path / file} ") for e in examples)
        glued = "Ada Lovelace met Babbage." if "universal" in name else " ".join(TOKENS[0])
        assert examples[0].text == glued
    if "turned" not in name:
        found, _ = read(tmp_path / name, labelled=False, **settings)
        assert [e.tokens for e in found] == TOKENS
        assert [e.labels for e in found] == [None, None]


@pytest.mark.parametrize(
    "span",
    [
        {"start_offset": 4, "end_offset": 8, "label": "PER"},  # doccano's own `entities`
        {"start": 4, "end": 8, "labels": "PER"},
        {"start": 4, "end": 8, "labels": ["PER"]},
    ],
)
def test_spans_in_other_words(span, tmp_path):
    (tmp_path / "a.jsonl").write_text(json_lines([{"text": "old Anna", "entities": [span]}]))
    (example,), bad = read(tmp_path / "a.jsonl")
    assert (example.labels, bad) == (["O", "B-PER"], [])


def test_parallel_files(tmp_path):
    (tmp_path / "seq.in").write_text("".join(" ".join(t) + "\n" for t in TOKENS))
    (tmp_path / "seq.out").write_text("".join(" ".join(t) + "\n" for t in TAGS))
    examples, bad = read(tmp_path / "seq.in")
    assert bad == []
    assert [(e.tokens, e.labels) for e in examples] == list(zip(TOKENS, TAGS, strict=True))
    (tmp_path / "seq.out").write_text("O O O\n\n")
    with open(tmp_path / "seq.in", "a") as stream:
        stream.write("\n")
    with pytest.raises(UserError, match="differ in their number of lines"):
        read(tmp_path / "seq.in")


@pytest.mark.parametrize("scheme", ["BIOES", "BMES"])
def test_other_schemes_stay_what_they_are(tmp_path, scheme):
    letters = str.maketrans("I", "M") if scheme == "BMES" else {}
    tags = [[tag[0].translate(letters) + tag[1:] for tag in sentence] for sentence in BIOES]
    (tmp_path / "train.bmes").write_text(columns(tags))
    (spans_file := tmp_path / "spans.jsonl").write_text(json_lines(doccano()))
    examples, _ = read(tmp_path / "train.bmes")
    of_spans, _ = read(spans_file, scheme=scheme)
    assert [e.labels for e in examples] == [e.labels for e in of_spans] == tags
    inside = "M" if scheme == "BMES" else "I"
    # I and E alone would be BIOES: three words tell.
    more = tmp_path / "more.bmes"
    more.write_text(f"a B-PER\nb {inside}-PER\nc E-PER\n")
    labels = Tagging().schema(examples + read(more)[0])
    prefixes = "BMES" if scheme == "BMES" else "BIES"
    assert labels == ["O", *(f"{p}-LOC" for p in prefixes), *(f"{p}-PER" for p in prefixes)]


def test_any_column_of_universal_dependencies(tmp_path):
    (tmp_path / "a.conllu").write_text(UNIVERSAL)
    examples, _ = read(tmp_path / "a.conllu", tag_column="xpos")
    assert {tag for e in examples for tag in e.labels} == {"O"}


def test_characters_are_joined_without_spaces(tmp_path):
    text = "".join(f"{c}\t{'B-LOC' if c == '京' else 'O'}\n" for c in "在2008年的北京NBA")
    (tmp_path / "zh.txt").write_text(text)
    ((example,), _) = read(tmp_path / "zh.txt")
    assert example.text == "在2008年的北京NBA"


@pytest.mark.parametrize("how", [{}, {"split": "edges"}])
def test_texts_are_cut_as_the_training_file_is(how, tmp_path):
    (tmp_path / "zh.bmes").write_text("".join(f"{c}\tO\n" for c in "在2008年"))
    (tmp_path / "en.conll").write_text(columns(TAGS))
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"text": "在2008年"}, ensure_ascii=False) + "\n")
    for name, split in (("zh.bmes", "characters"), ("en.conll", "edges")):
        task = Tagging(**how)
        task.read(str(tmp_path / name), Columns(), True, BadExamples("refuse"))
        again = Tagging(**how)
        again.found = task.found  # as in the bundle
        again.read(str(tmp_path / "en.conll"), Columns(), True, BadExamples("refuse"))
        (example,) = again.read(str(plain), Columns(), False, BadExamples("refuse"))
        typed = again.typed("在2008年", Columns(), "--text 1")
        assert again.config()["split"] == how.get("split", split)
        whole = [*"在2008年"] if again.config()["split"] == "characters" else ["在", "2008", "年"]
        assert example.tokens == typed.tokens == whole


def test_an_ideographic_space_is_a_token(tmp_path):
    (tmp_path / "zh.txt").write_text("北\tO\n\u3000\tO\n京\tO\n")
    ((example,), bad) = read(tmp_path / "zh.txt", scheme="none")
    assert (example.tokens, bad) == (["北", "\u3000", "京"], [])


def test_all_comments_of_universal_dependencies(tmp_path):
    """Whatever begins with # is one there; in columns it may be a token."""
    comments = "# newdoc\n# newpar\n# the annotator was not sure\n"
    (tmp_path / "u.conllu").write_text(comments + UNIVERSAL)
    examples, bad = read(tmp_path / "u.conllu", tag_column="upos")
    assert bad == []
    assert [e.tokens for e in examples] == TOKENS
    (tmp_path / "u.conll").write_text("# O\n1 O\n")
    assert read(tmp_path / "u.conll")[0][0].tokens == ["#", "1"]


@pytest.mark.parametrize(
    ("tag", "settings"),
    [("B_PER", {}), ("b-per", {}), ("PER-B", {}), ("PER", {"scheme": "BIO"})],
)
def test_tags_that_only_look_like_a_scheme_s_are_refused(tag, settings, tmp_path):
    """Each would be a plain tag, O another one, and the share of O a high F1."""
    (tmp_path / "a.conll").write_text(f"Ada {tag}\nmet O\n")
    with pytest.raises(UserError, match=f"'B-PER'; they are {tag}: write them so"):
        read(tmp_path / "a.conll", **settings)
    examples, _ = read(tmp_path / "a.conll", scheme="none")
    assert examples[0].labels == [tag, "O"]


def test_spaces_around_a_span_do_not_belong_to_it(tmp_path):
    row = {"text": "Ada Lovelace met Ben.", "label": [[0, 13, "PER"], [16, 20, "PER"]]}
    (tmp_path / "a.jsonl").write_text(json_lines([row]))
    (example,), bad = read(tmp_path / "a.jsonl", lost_borders=0.0)
    assert (example.labels, bad) == (["B-PER", "I-PER", "O", "B-PER", "O"], [])


def test_several_annotators_are_told(tmp_path, capsys):
    tasks = label_studio()
    tasks[0]["annotations"].append({"result": []})
    (tmp_path / "a.jsonl").write_text(json_lines(tasks))
    examples, _ = read(tmp_path / "a.jsonl")
    assert [e.labels for e in examples] == TAGS
    assert "1 tasks have several annotations, of which the first is read" in capsys.readouterr().err


def test_ill_formed_tags_are_repaired_or_refused(tmp_path, capsys):
    file = tmp_path / "a.conll"
    file.write_text("a I-PER\nb I-LOC\nc O\n\nd B-PER\ne I-PER\n")
    examples, bad = read(file)
    assert bad == []
    assert examples[0].labels == ["B-PER", "B-LOC", "O"]
    assert "2 tags in 1 of 2 sentences are out of the order of BIO" in capsys.readouterr().err
    examples, bad = read(file, ill_formed="refuse")
    assert [e.tokens for e in examples] == [["d", "e"]]
    ((place, reason),) = bad
    assert place == f"{file} line 1"
    assert reason.startswith("tag 'I-PER' of word 1, 'a', is out of the order of BIO")


def test_a_txt_without_tags_is_said_to_be_columns(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("Ada met\nBabbage slept\n")
    (example,) = Tagging().read(str(tmp_path / "t.txt"), Columns(), False, BadExamples("skip"))
    assert example.tokens == ["Ada", "Babbage"]
    assert "t.txt' is read as CoNLL columns, a word a line" in capsys.readouterr().err


def test_borders_inside_words_are_counted(tmp_path, capsys):
    rows = [{"text": "New York-based firms", "label": [[0, 8, "LOC"]]}] + doccano() * 40
    (tmp_path / "a.jsonl").write_text(json_lines(rows))
    examples, _ = read(tmp_path / "a.jsonl")
    assert examples[0].labels == ["B-LOC", "I-LOC", "O"]
    assert "1 of 121 entities (0.8%) begin or end inside a word" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"\('New York'\): set task.split signs"):
        read(tmp_path / "a.jsonl", lost_borders=0.001)
    examples, _ = read(tmp_path / "a.jsonl", lost_borders=0.0, split="signs")
    assert examples[0].tokens == ["New", "York", "-", "based", "firms"]
    assert examples[0].labels == ["B-LOC", "I-LOC", "O", "O", "O"]


@pytest.mark.parametrize(
    ("name", "text", "place", "reason"),
    [
        ("a.conll", "a O\nb\n\nc O\n", "line 2", "1 columns that are not empty, the first line"),
        ("a.tsv", "a\tO\n\tO\n\nc\tO\n", "line 2", "2 columns that are not empty"),
        ("a.conllu", "1\ta\n\n" + UNIVERSAL, "line 1", "not the 10 columns of CoNLL-U"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}\n', "line 1", "2 tokens and 1 tags"),
        ("a.jsonl", '{"tokens": ["a"], "tags": "O"}\n', "line 1", "1 tokens and 'O' tags"),
        ("a.jsonl", '{"tokens": [], "tags": []}\n', "line 1", "a sentence without tokens"),
        ("a.jsonl", '{"tokens": [""], "tags": ["O"]}\n', "line 1", "a token is empty"),
        ("a.jsonl", '{"body": "x"}\n', "line 1", "no text or tokens under text or tokens"),
        ("a.jsonl", '{"text": "x"}\n', "line 1", "no spans under label or labels or entities"),
        ("a.jsonl", '{"text": 3, "label": []}\n', "line 1", "the text is 3"),
        ("a.jsonl", studio("[1]"), "line 1", "'annotations' is no list of objects"),
        ("a.jsonl", studio('[{"result": 3}]'), "line 1", "'result' is no list of objects"),
        (
            "a.jsonl",
            studio('[{"result": [{"type": "hypertextlabels", "value": {}}]}]'),
            "line 1",
            "it is marked by hypertextlabels: use a <Labels> of a <Text>",
        ),
        ("a.jsonl", '{"text": "ab", "label": "A"}\n', "line 1", "the spans are 'A'"),
        ("a.jsonl", '{"text": "ab", "label": [[0, 3, "A"]]}\n', "line 1", "not inside the text"),
        ("a.jsonl", '{"text": "ab", "label": [[1, 1, "A"]]}\n', "line 1", "not inside the text"),
        ("a.jsonl", '{"text": "ab", "label": [[0, "1", "A"]]}\n', "line 1", "whole numbers"),
        ("a.jsonl", '{"text": "ab", "label": [[0, 1]]}\n', "line 1", "is not [start, end, kind]"),
        (
            "a.jsonl",
            '{"text": "a b c", "label": [[0, 3, "A"], [2, 5, "B"]]}\n',
            "line 1",
            "spans 0 to 3 (A) and 2 to 5 (B) overlap",
        ),
        (
            "a.jsonl",
            '{"text": "a b c", "label": [{"start": 0, "end": 1, "label": "A", "text": "b"}]}\n',
            "line 1",
            "is 'a', not 'b' as the file says",
        ),
        (
            "a.jsonl",
            '{"text": "ab", "label": [{"start": 0, "end": 1, "labels": ["A", "B"]}]}\n',
            "line 1",
            "a span of 2 kinds",
        ),
        ("a.json", '[{"data": {"text": "a"}}]', "record 1", "a task without an annotation"),
        (
            "a.json",
            '[{"data": {"text": "a"}, "annotations": null}]',
            "record 1",
            "a task without an annotation",
        ),
        ("a.json", '[{"data": {"text": 3}}]', "record 1", "not a string"),
    ],
)
def test_bad_sentences_are_noted(tmp_path, name, text, place, reason):
    file = tmp_path / name
    file.write_text(text)
    _, ((found, said), *_) = read(file)
    assert found == f"{file} {place}"
    assert reason in said


@pytest.mark.parametrize(
    ("name", "text", "settings", "reason"),
    [
        ("a.conll", "\n\n", {}, "holds no sentences"),
        ("a.conll", "a\n", {}, "column 0 of 1 would hold both tokens and tags"),
        ("a.conll", "a O\n", {"tag_column": 2}, "task.tag_column 2 is none of them"),
        ("a.conll", "a O\n", {"token_column": -3}, "task.token_column -3 is none of them"),
        ("a.conll", "a O\n", {"tag_column": "upos"}, "is no CoNLL-U, give a number"),
        ("a.conllu", UNIVERSAL, {"tag_column": "pos"}, "CoNLL-U has no column 'pos'"),
        ("a.conll", "a B-A\nb NOUN\n", {}, "'NOUN' is neither O nor"),
        ("a.conll", "a B-A\nb E-A\n", {"scheme": "BIO"}, "begin with E, which BIO does not know"),
        ("a.conll", "a M-A\nb L-A\n", {}, "LM are those of none of BIO, BIOES, BMES, BILOU"),
        ("a.jsonl", json_lines(doccano()), {"scheme": "none"}, "set task.scheme auto"),
        ("a.json", "{", {}, "is not JSON"),
        ("a.json", '{"a": 1}', {}, "is not a list of JSON objects"),
        ("a.jsonl", "[1]\n", {}, "not a JSON object"),
        ("a.jsonl", "{\n", {}, "not a JSON line"),
        ("a.in", "a b\n", {"format": "parallel"}, "name the one called seq.in"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, text, settings, reason):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read(file, **settings)
    assert reason in str(error.value)
    assert str(file) in str(error.value)


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "a.conll").write_bytes("café O\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8"):
        read(tmp_path / "a.conll")
