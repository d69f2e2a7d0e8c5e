"""The page: well-formed, self-contained, safe with any text, its numbers those of the files."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptft_lightning.report.build import build_page
from ptft_lightning.report.curves import stretches
from ptft_lightning.report.drawing import columns, number, picture, shorten
from ptft_lightning.report.overview import duration
from ptft_lightning.report.reading import read_run

VOID = {"meta", "br", "link", "img", "input"}
EVIL = "<script>alert(1)</script> & \"quotes\" 'x' $\\frac{1}{2}$ \x07\u202e"


class Page(HTMLParser):
    """Checks nesting; keeps tags, attributes and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.cells: list[list[str]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


def assert_self_contained(text: str) -> Page:
    """Nothing is fetched and nothing runs."""
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), (name, value)
        if name.endswith(("href", "src")):
            assert value.startswith("#"), (name, value)
    assert not re.search(r"https?:|@import", text)
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", text))
    return page


def write_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), "utf-8")


def write_run(at: Path, steps: int = 30) -> Path:
    """A run directory made by hand."""
    at.mkdir()
    rows = [f"{s},{5 / s:.8g},0.001,{s * 100},50,0.5,{5.5 / s if s % 10 == 0 else ''}"
            for s in range(1, steps + 1)]  # fmt: skip
    head = "step,train_loss,lr,tokens,tokens_per_s,seconds_per_step,val_loss"
    (at / "metrics.csv").write_text("\n".join([head, *rows]) + "\n")
    (at / "config.yaml").write_text(
        "trainer: {max_steps: 40}\nmodel: {class_path: a.PretrainModule}"
    )
    return at


def classes(count: int, names: list[str], right: float = 0.7) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    lines = []
    for n in range(count):
        probabilities = rng.dirichlet(np.ones(len(names)) * 0.5).round(6).tolist()
        label = names[int(np.argmax(probabilities))]
        gold = label if rng.random() < right else str(rng.choice(names))
        scores = dict(zip(names, probabilities, strict=True))
        lines.append({"number": n, "text": f"句子 {n} 北京", "gold": gold, "label": label}
                     | {"probabilities": scores})  # fmt: skip
    return lines


def test_phase_one_page_tells_what_the_files_hold(tmp_path):
    run = write_run(tmp_path / "run")
    write_lines(run / "samples.jsonl", [
        {"step": s, "kind": "continuation", "prompt": "从前", "text": f"有座山 {s}"}
        for s in range(10, 310, 10)
    ])  # fmt: skip
    page = assert_self_contained(build_page([read_run(run)]))
    assert page.tags.count("svg") == 3  # loss, learning rate, tokens/s
    for told in ("0.1833", "val, step 30", "30 of 40 steps", "3,000", "15 s", "200"):
        assert told in page.words, told
    assert "从前" in page.words
    shown = [cells for cells in page.cells if cells and cells[0].startswith("step ")]
    assert shown[0] == ["step 10", "有座山 10"]
    assert shown[-1] == ["step 300", "有座山 300"]
    assert len(shown) == 8
    assert "8 of 30 steps shown" in page.words


@pytest.mark.parametrize("count", [2, 12, 20, 77, 100, 101])
def test_classes_from_two_to_many(tmp_path, count):
    run = write_run(tmp_path / "run")
    names = [f"类别{i}" for i in range(count)]
    lines = classes(400, names)
    write_lines(run / "validation_predictions.jsonl", lines)
    text = build_page([read_run(run)])
    page = assert_self_contained(text)
    assert page.tags.count("svg") == 5 + (count <= 100)
    rows = {cells[0]: cells for cells in page.cells if cells and cells[0] in names}
    support = [sum(line["gold"] == name for line in lines) for name in names]
    table = [cells for cells in page.cells if len(cells) == 6 and cells[0] in names]
    assert [int(cells[5]) for cells in table] == support
    assert rows.keys() == set(names)
    right = sum(line["gold"] == line["label"] for line in lines)
    assert f"{right / 400:.4f}" in page.words
    assert len(text) < 1.5e6
    if count <= 20:
        svg = text[text.index("Confusion matrix</h3>") :]
        cells = re.findall(r">(\d+)</text>", svg[: svg.index("</svg>")])
        assert sum(int(cell) for cell in cells) == 400


def test_mistakes_are_the_most_confident_first(tmp_path):
    run = write_run(tmp_path / "run")
    lines = classes(200, ["甲", "乙", "丙"])
    write_lines(run / "test_predictions.jsonl", lines)
    page = assert_self_contained(build_page([read_run(run)]))
    wrong = [x for x in lines if x["gold"] != x["label"]]
    wrong.sort(key=lambda x: -max(x["probabilities"].values()))
    shown = [cells for cells in page.cells if len(cells) == 4 and cells[0].startswith("句子")]
    assert [cells[:3] for cells in shown] == [
        [x["text"], x["gold"], x["label"]] for x in wrong[:20]
    ]


def test_sets_of_labels(tmp_path):
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    names = ["red", "绿", "blue"]
    lines = []
    for n in range(150):
        scores = rng.uniform(0, 1, 3).round(6)
        gold = [x for x, p in zip(names, scores, strict=True) if rng.random() < p]
        chosen = [x for x, p in zip(names, scores, strict=True) if p > 0.5]
        probabilities = dict(zip(names, scores.tolist(), strict=True))
        said = {"number": n, "text": f"text {n}", "gold": gold, "labels": chosen}
        lines.append(said | {"probabilities": probabilities})
    run = write_run(tmp_path / "run")
    write_lines(run / "validation_predictions.jsonl", lines)
    page = assert_self_contained(build_page([read_run(run)]))
    gold = [[x in line["gold"] for x in names] for line in lines]
    chosen = [[x in line["labels"] for x in names] for line in lines]
    for average in ("micro", "macro"):
        assert f"{f1_score(gold, chosen, average=average):.4f}" in page.words
    table = {cells[0]: cells for cells in page.cells if len(cells) == 6}
    per_label = f1_score(gold, chosen, average=None)
    assert [table[x][3] for x in names] == [f"{score:.4f}" for score in per_label]


def test_numbers(tmp_path):
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(0)
    gold = rng.uniform(0, 5, 80).round(2)
    predicted = (gold + rng.normal(0, 1, 80)).round(4)
    lines = [
        {"number": n, "text": f"a {n}", "pair": f"b {n}", "gold": str(g), "value": float(p)}
        for n, (g, p) in enumerate(zip(gold, predicted, strict=True))
    ]
    run = write_run(tmp_path / "run")
    write_lines(run / "validation_predictions.jsonl", lines)
    page = assert_self_contained(build_page([read_run(run)]))
    assert f"{pearsonr(gold, predicted)[0]:.4f}" in page.words
    assert f"{spearmanr(gold, predicted)[0]:.4f}" in page.words
    worst = int(np.argmax(np.abs(gold - predicted)))
    shown = [cells for cells in page.cells if cells and cells[0].startswith("a ")]
    assert shown[0][0] == f"a {worst}b {worst}"


def test_predictions_of_another_kind_stand_side_by_side(tmp_path):
    run = write_run(tmp_path / "run")
    line = {"number": 0, "question": "who?", "context": "Ann", "gold": ["Ann"], "answer": "<An>"}
    write_lines(run / "validation_predictions.jsonl", [line])
    page = assert_self_contained(build_page([read_run(run)]))
    assert ["questionwho?contextAnn", '["Ann"]', "<An>"] in [
        ["".join(cell.split()) for cell in cells] for cells in page.cells
    ]


def test_predictions_that_do_not_fit_are_counted(tmp_path):
    run = write_run(tmp_path / "run")
    lines = classes(30, ["a", "b"])
    write_lines(run / "validation_predictions.jsonl", [*lines, lines[0] | {"gold": "z"}])
    page = assert_self_contained(build_page([read_run(run)]))
    assert "30 predictions: " in page.words
    assert "1 lines have a gold label or scores that do not fit: left out." in page.words


def test_no_text_can_break_the_page(tmp_path):
    run = write_run(tmp_path / "run")
    names = [EVIL, "<b>bold</b>", "plain"]
    lines = [line | {"text": EVIL} for line in classes(50, names)]
    write_lines(run / "validation_predictions.jsonl", lines)
    sample = {"step": 1, "kind": EVIL, "prompt": EVIL, "text": EVIL}
    write_lines(run / "samples.jsonl", [sample])
    (run / "config.yaml").write_text(json.dumps({"data": {"init_args": {"train": EVIL}}}))
    text = build_page([read_run(run)])
    page = assert_self_contained(text)
    assert "<script" not in text
    assert "<b>bold" not in text
    assert "alert(1)" in page.words
    assert "\x07" not in text


def test_torn_files_are_counted_and_the_rest_is_shown(tmp_path):
    run = write_run(tmp_path / "run")
    with open(run / "metrics.csv", "a") as stream:
        stream.write("31,0.1")
    with open(run / "samples.jsonl", "w") as stream:
        stream.write('{"step": 1, "prompt": "a", "text": "b\u2028c"}\n{"step": 2, "pro')
    (run / "test.json").write_text('{"test_')
    read = read_run(run)
    assert read.step == 30
    assert read.troubles == [
        "1 of 31 rows of metrics.csv could not be read.",
        "test.json could not be read.",
        "1 of 2 lines of samples.jsonl could not be read.",
    ]
    page = assert_self_contained(build_page([read]))
    assert all(trouble in page.words for trouble in read.troubles)


def test_a_run_that_has_logged_nothing_yet(tmp_path):
    (tmp_path / "config.yaml").write_text("trainer: {max_steps: 9}")
    page = assert_self_contained(build_page([read_run(tmp_path)]))
    assert "There is no metrics.csv: nothing has been logged yet." in page.words
    assert "svg" not in page.tags


def test_a_run_that_diverged(tmp_path):
    run = write_run(tmp_path / "run", steps=3)
    with open(run / "metrics.csv", "a") as stream:
        stream.write("4,nan,0.001,400,50,0.5,inf\n")
    page = assert_self_contained(build_page([read_run(run)]))
    assert "train_loss was not finite at 1 of 4 steps, first at step 4." in page.words
    assert "val_loss was not finite at 1 of 1 steps, first at step 4." in page.words


def test_several_runs_are_drawn_over_each_other(tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", steps=20)
    (two / "config.yaml").write_text("trainer: {max_steps: 40}\nmodel: {class_path: a.Other}")
    text = build_page([read_run(one), read_run(two)])
    page = assert_self_contained(text)
    assert ["model.class_path", "a.PretrainModule", "a.Other"] in page.cells
    assert not [cells for cells in page.cells if cells[:1] == ["trainer.max_steps"]]
    loss = text[text.index("Loss</h3>") :]
    loss = loss[: loss.index("</svg>")]
    assert "var(--c1)" in loss
    assert "var(--c2)" in loss


def test_a_long_curve_stays_small_and_keeps_its_spikes():
    values = np.sin(np.arange(100_000) / 9000)
    values[77_777] = 40.0
    at, low, high, mean = stretches(np.arange(100_000.0), values, 600)
    assert len(at) == 600
    assert high.max() == 40.0
    assert low.min() == values.min()
    assert mean.mean() == pytest.approx(values.mean(), abs=1e-3)


def test_colours_are_the_page_s_and_fonts_the_reader_s():
    svg = picture("Name <&>", lambda axes: axes.set_title("标题 $x$ <b>"), (200, 100))
    assert "font-family" not in svg
    assert "#01020" not in svg
    assert "var(--" in svg
    assert "标题 $x$ &lt;b&gt;" in svg
    assert 'aria-label="Name &lt;&amp;&gt;"' in svg


def test_words():
    assert [number(x) for x in (0, 0.00002, 3.21987, 12345.6, 1.24e6, 3e9, float("nan"))] == [
        *("0", "2e-05", "3.22", "12,346", "1.24 M", "3 G", "not finite")
    ]
    assert [duration(s) for s in (12, 600, 9000)] == ["12 s", "10 min", "2.5 h"]
    assert columns("ab你好") == 6
    assert shorten("你好" * 20, 11) == "你好你好你…"
    assert shorten("two\nlines\x00") == "two lines"
