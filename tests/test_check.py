"""`check` passes what is healthy, finds what is planted, and leaves nothing behind."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from faults.kit import Run, call, done, finetune, pretrain, words, write_examples

from ptft_lightning.commands.check import first_loss_finding, gradient_finding, overfit_finding
from ptft_lightning.commands.check_data import piece, unknown_id
from ptft_lightning.data.tokenizer import Tokenizer

CELLS = re.compile(r"^│(.+)│$", re.M)


def table(run: Run) -> list[list[str]]:
    """The cells of the sample that was shown."""
    return [[cell.strip() for cell in line.split("│")] for line in CELLS.findall(run.out)]


def levels(run: Run) -> dict[str, list[str]]:
    """The lines of the verdict."""
    names = ("ok", "warning", "problem")
    lines = [line.partition(": ") for line in run.out.splitlines()]
    return {n: [text for head, _, text in lines if head == n] for n in names}


def files(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> Path:
    """A run of each phase, and examples."""
    at = write_examples(tmp_path_factory.mktemp("check"))
    done(words("fit", pretrain(at / "one", store, bpe_path, trainer__max_steps=2)))
    done(words("fit", finetune(at / "two", at / "one", at, trainer__max_epochs=1)))
    return at


def causal(tmp_path: Path, store: Path, tokenizer: Path, **more: Any) -> dict[str, Any]:
    return pretrain(tmp_path / "run", store, tokenizer, model__optimizer__lr=0.02, **more)


def test_a_healthy_causal_run(store, bpe_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = done(words("check", causal(tmp_path, store, bpe_path)))
    found = levels(run)
    assert found["warning"] == found["problem"] == []
    assert "every one of 27 trained parameters gets a finite gradient" in found["ok"]
    assert "made: nothing" in run.out
    assert files(tmp_path) == {}
    rows = table(run)
    assert len(rows) == 32
    for (_, document, _, target), (_, following, token, _) in pairwise(rows):
        assert target == (token if document == following else "")
    assert {row[1] for row in rows} >= {"1", "2"}


def test_a_healthy_masked_run_prepares_the_store(corpus_file, wordpiece_path, tmp_path):
    options = causal(tmp_path, tmp_path / "store", wordpiece_path, causal=False)
    more = {"data.files": [str(corpus_file)], "data.layout": "documents"}
    run = done(words("check", options | more | {"data.validation_share": 0.1}))
    assert levels(run)["warning"] == levels(run)["problem"] == []
    assert f"made: the token store '{tmp_path / 'store'}'" in run.out
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    rows = table(run)
    assert re.search("[\u4e00-\u9fff]", run.out)
    plain = [row for row in rows if row[1] != "padding" and row[2] not in ("[CLS]", "[SEP]")]
    assert sum(bool(row[3]) for row in rows) == round(0.15 * len(plain))
    for _, _, token, target, what in rows:
        fate = "masked" if token == "[MASK]" else "kept" if token == target else "replaced"
        assert what == (fate if target else "")


def test_a_healthy_classification(phases, tmp_path):
    run = done(words("check", finetune(tmp_path / "run", phases / "one", phases)))
    found = levels(run)
    assert found["warning"] == found["problem"] == []
    records = [json.loads(line) for line in (phases / "train.jsonl").read_text().splitlines()]
    share = Counter(r["label"] for r in records).most_common()
    assert f"labels: {', '.join(f'{n} {c / 60:.0%}' for n, c in share)}" in found["ok"]
    tokens = [row[2] for row in table(run)]
    assert tokens[0] == "[CLS]"
    assert tokens[-1] == "[SEP]"
    assert "\nlabel: " in run.out
    text = "".join(tokens[1:-1]).replace("·", " ")
    (record,) = (r for r in records if r["text"].startswith(text))
    assert f"\nlabel: {record['label']}\n" in run.out
    assert list(tmp_path.iterdir()) == []


def test_a_pair_shows_its_segments(phases, tmp_path):
    options = finetune(tmp_path / "run", phases / "one", phases)
    run = call(words("check", options | {"data.columns.pair": "second"}))
    segments = [row[1] for row in table(run)]
    assert segments == sorted(segments)
    assert set(segments) == {"0", "1"}


def test_frozen_features_need_not_reach_zero(phases, tmp_path):
    options = finetune(tmp_path / "run", phases / "one", phases, model__tuning="Frozen")
    found = levels(done(words("check", options)))
    assert found["warning"] == found["problem"] == []
    assert "every one of 2 trained parameters gets a finite gradient" in found["ok"]


def test_a_finished_run_stays_as_it_is(phases, store, bpe_path):
    before = files(phases)
    run = done(words("check", pretrain(phases / "one", store, bpe_path)))
    assert files(phases) == before
    assert "it falls, not near zero" in levels(run)["warning"][0]


def test_a_tuned_bundle_s_loss_is_that_of_a_loaded_model(phases, tmp_path):
    run = done(words("check", finetune(tmp_path / "run", phases / "two", phases)))
    assert "the loaded model's loss is " in run.out


# What is planted is found.


@pytest.mark.parametrize("rate", [30.0, 1e-9])
def test_a_rate_that_cannot_learn(rate, store, bpe_path, tmp_path):
    options = causal(tmp_path, store, bpe_path) | {"model.optimizer.lr": rate}
    run = call(words("check", options | {"overfit_steps": 30}))
    assert run.code == 1
    assert "it does not fall" in levels(run)["problem"][-1]


def test_one_label(phases, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"text": "the river", "label": "water"}\n' * 20)
    options = finetune(tmp_path / "run", phases / "two", phases)
    run = call(words("check", options | {"data.train": str(tmp_path / "one.jsonl")}))
    assert run.code == 1
    (problem,) = levels(run)["problem"]
    assert problem.startswith("labels: water 100%; none is land: a constant answer")


def test_a_tokenizer_that_does_not_know_the_text(wordpiece_path, tmp_path):
    file = tmp_path / "cyrillic.jsonl"
    lines = [{"text": f"модель языка номер {i} читает реку и город"} for i in range(60)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = causal(tmp_path, tmp_path / "store", wordpiece_path) | {"data.files": [str(file)]}
    run = call(words("check", options | {"data.validation_share": 0.0}))
    assert run.code == 1
    (problem,) = levels(run)["problem"]
    assert "are unknown ([UNK]): the tokenizer does not know this text" in problem
    assert any("nothing is held out" in text for text in levels(run)["warning"])


def test_a_gradient_that_does_not_arrive(store, bpe_path, tmp_path):
    options = causal(tmp_path, store, bpe_path)
    options |= {"model.objective": "faults.planted.DetachedLM", "overfit_steps": 20}
    options["model.backbone"]["tie_embeddings"] = False
    run = call(words("check", options))
    assert run.code == 1
    problem = levels(run)["problem"][0]
    assert "is missing or zero for 27 of 28 parameters (backbone.embedding.weight, " in problem
    assert " and 19 more)" in problem


@pytest.mark.parametrize(
    ("loss", "guess", "loaded", "level"),
    [
        (6.4, 6.397, False, "ok"),
        (12.0, 6.397, False, "warning"),  # a wrong initialisation
        (1.0, 6.397, False, "warning"),  # the target is in the input
        (1.0, 6.397, True, "ok"),
        (12.0, 6.397, True, "warning"),
        (float("nan"), 6.397, True, "problem"),
        (3.0, None, False, "ok"),
    ],
)
def test_first_loss(loss, guess, loaded, level):
    assert first_loss_finding(loss, guess, loaded).level == level


def test_a_gradient_that_is_not_finite():
    finding = gradient_finding(["a"], ["a", "b"], 3)
    assert finding.level == "problem"
    assert "is not finite for 2 of 3 parameters (a, b)" in finding.text


def test_overfitting_what_a_loaded_model_knows():
    assert overfit_finding([0.01] * 10, 4, 0.69, whole=True).level == "ok"


# As a person reads it.


def test_pieces_of_a_byte_level_tokenizer(bpe):
    (ids,) = bpe.encode([" the 模\n"])
    shown = [piece(bpe, i) for i in ids]
    assert shown[0] == "·the"
    assert shown[-1] == "\\n"
    assert "".join(shown[1:-1]) == "·" + "".join(f"<{byte:02X}>" for byte in "模".encode())


def test_unknown_tokens(bpe: Tokenizer, wordpiece: Tokenizer):
    (ids,) = wordpiece.encode(["модель"])
    assert ids == [unknown_id(wordpiece)]


# A mistake in a config is fit's own.


def test_a_mistake_is_one_line(store, bpe_path, tmp_path):
    run = call(words("check", causal(tmp_path, store, bpe_path) | {"data.lenght": 3}))
    assert (run.code, run.out) == (2, "")
    assert "'data.lenght'" in run.errors[0]
