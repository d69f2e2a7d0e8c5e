"""`transfer`: many fine-tunings, one table; what it says of a gain and of none."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.kit import call, done, finetune, pretrain, words, write_examples
from safetensors.torch import load_file, save_file

from ptft_lightning.commands.transfer import Transfer
from ptft_lightning.commands.transfer_results import Outcome, Outcomes, Trial


def made(gains: dict[str, float], noise: float, seeds: int, labels: Any = (50, "all")) -> Outcomes:
    """Accuracies of .6 + gain, with a noise that is the seed's and one that is the trial's."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.05, seeds)
    return Outcomes(
        [
            Outcome(
                Trial(arm, count, s), "test", 0.6 + gain + shared[s] + rng.normal(0, noise), 10.0
            )
            for arm, gain in gains.items()
            for count in labels
            for s in range(seeds)
        ],
        higher_is_better=True,
    )


def test_a_gain_and_none_are_told_apart():
    """Pairs share a seed, so that its own effect (here .05) does not hide a gain of .03."""
    found = made({"random": 0.0, "source": 0.03, "shuffled": 0.0}, noise=0.005, seeds=5)
    for labels in (50, "all"):
        assert found.difference("source", "random", labels, "test").verdict == "gain"
        assert found.difference("shuffled", "random", labels, "test").verdict == "not told apart"
    lines = found.verdicts()
    assert len(lines) == 4
    assert lines[0].startswith("source against random, 50 labels, test: gain +0.0")
    assert "5 pairs" in lines[0]


def test_no_gain_is_rarely_taken_for_one():
    """Of 200 comparisons of equals, 2.5 % may be called a gain; 6 % would be 3 deviations more."""
    rng = np.random.default_rng(1)
    calls = 0
    for _ in range(200):
        rows = [
            Outcome(Trial(arm, "all", s), "test", float(rng.normal(0.6, 0.02)), 1.0)
            for arm in ("a", "b")
            for s in range(4)
        ]
        calls += Outcomes(rows, True).difference("b", "a", "all", "test").verdict == "gain"
    assert calls <= 12


def test_lower_is_better_for_errors():
    rows = [
        Outcome(Trial(arm, "all", s), "test", value + s / 100, 1.0)
        for arm, value in (("a", 2.0), ("b", 1.0))
        for s in range(3)
    ]
    assert Outcomes(rows, False).difference("b", "a", "all", "test").value == pytest.approx(1.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("base") / "run"
    done(words("fit", pretrain(run_dir, store, bpe_path, trainer__max_steps=2)))
    return run_dir


@pytest.fixture
def config(tmp_path: Path, files: Path, base: Path) -> Path:
    options = finetune(tmp_path / "x", base, files, trainer__max_epochs=1)
    options["data.audit"] = None
    text = done([*words("fit", options), "--print_config"]).out
    (tmp_path / "config.yaml").write_text(text)
    return tmp_path / "config.yaml"


def test_starts_labels_seeds_and_tests_become_a_table(config, base, files, tmp_path, monkeypatch):
    called: list[list[str]] = []

    def here(self: Transfer, at: Path, words: list[str]) -> None:
        called.append(words)
        done(words)

    monkeypatch.setattr(Transfer, "_call", here)
    args = ["transfer", "--config", str(config), "--output", str(tmp_path / "out")]
    args += ["--start", "random", "--start", f"source={base}", "--labels", "9,all", "--seeds", "2"]
    args += ["--test", f"here={files / 'test.jsonl'}", "--test", f"there={files / 'train.jsonl'}"]
    said = done(args).out
    assert [w[0] for w in called].count("fit") == 8
    lines = list(csv.DictReader((tmp_path / "out" / "transfer.csv").open()))
    assert len(lines) == 16
    run_dir = tmp_path / "out" / "runs" / "source-9-1"
    wanted = json.loads((run_dir / "test_there.json").read_text())["test_accuracy"]
    (line,) = (
        row
        for row in lines
        if (row["from"], row["labels"], row["seed"], row["test"]) == ("source", "9", "1", "there")
    )
    assert float(line["value"]) == wanted
    lineage = json.loads((run_dir / "bundle" / "lineage.json").read_text())
    assert lineage["samples"] == 9
    assert lineage["seed"] == 1
    assert "source against random, all labels, here: " in said
    assert "random, 9 labels: there is " in said
    page = (tmp_path / "out" / "transfer.html").read_text()
    assert page.count("<svg") == 2
    assert "source against random" in page

    called.clear()
    assert done(args).out == said
    assert called == []

    config.write_text(config.read_text().replace("lr: 0.003", "lr: 0.004"))
    moved = shutil.copytree(base / "bundle", tmp_path / "moved")
    other = [word.replace(f"source={base}", f"source={moved}") for word in args]
    refused = call(other)
    assert refused.code == 2
    assert "holds a comparison with other settings (config, starts source)" in refused.err


def test_what_changed_behind_its_name_is_not_compared(config, base, files, tmp_path, monkeypatch):
    monkeypatch.setattr(Transfer, "_call", lambda self, at, words: done(words))
    test = tmp_path / "test.jsonl"
    test.write_bytes((files / "test.jsonl").read_bytes())
    start = shutil.copytree(base / "bundle", tmp_path / "start")
    args = ["transfer", "--config", str(config), "--output", str(tmp_path / "out"), "--seeds", "1"]
    args += ["--start", f"a={start}", "--labels", "9", "--test", f"here={test}"]
    said = done(args).out
    assert done(args).out == said
    test.write_text(test.read_text().replace("river", "brook"))
    refused = call(args)
    assert refused.code == 2
    assert f"holds a comparison with other settings (contents {test})" in refused.err
    test.write_bytes((files / "test.jsonl").read_bytes())
    tensors = load_file(start / "model.safetensors")
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1}, start / "model.safetensors")
    assert f"(contents {start})" in call(args).err


def test_a_fine_tuning_that_fails_ends_it_with_its_reason(config, base, tmp_path):
    args = ["transfer", "--config", str(config), "--output", str(tmp_path / "out")]
    run = call([*args, "--start", "a=nowhere"])
    assert (run.code, run.errors) == (2, ["error: bundle not found: 'nowhere'"])
    run = call([*args, "--start", f"a={base}", "--labels", "9999"])
    assert run.code == 2
    assert run.errors[0].startswith("error: a-9999-0 failed: data.train_examples is 9999")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--start", "random"], "--start random needs another start, whose shape it takes"),
        (["--start", "a"], "--start 'a': give NAME=PATH"),
        (["--start", "a=x", "--start", "a=y"], "--start 'a' is given twice"),
        (["--start", "a-b=x"], "--start 'a-b': a name has neither / nor -"),
        (["--start", "a=x", "--labels", "9,some"], "--labels '9,some': give numbers and all"),
        (["--start", "a=x", "--seeds", "0"], "--seeds is 0: give 1 or more"),
    ],
)
def test_mistakes(config, tmp_path, more, message):
    run = call(["transfer", "--config", str(config), "--output", str(tmp_path / "out"), *more])
    assert run.code == 2
    assert message in run.err
    assert len(run.errors) == 1


def test_fewer_examples_than_there_are(files, base, tmp_path):
    options = finetune(tmp_path / "run", base, files)
    run = call(words("fit", options | {"data.train_examples": 61}))
    assert run.errors == ["error: data.train_examples is 61, there are 60: give fewer"]
