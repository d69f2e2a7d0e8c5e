"""Generation through the command line: learned, judged, predicted, resumed, on several ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from faults.files_generation import pairs, write_answers
from faults.kit import (
    assert_same_weights,
    call,
    done,
    finetune,
    finish,
    launch,
    pretrain,
    read_json_lines,
    read_metrics,
    weights,
    words,
)

SHAPE = {"dim": 32, "depth": 2, "heads": 4, "max_length": 48, "causal": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("files")
    write_answers(at)
    return at


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> Path:
    """A causal run whose projection is its own."""
    at = tmp_path_factory.mktemp("bundle") / "run"
    more = {"model__backbone": SHAPE | {"tie_embeddings": False}, "trainer__max_steps": 2}
    done(words("fit", pretrain(at, store, bpe_path, **more)))
    return at


def options(run_dir: Path, bundle: Path, files: Path, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "model__task": "Generation",
        "model__task__decoding": {"max_new_tokens": 16},
        "model__task__validation_examples": 12,
        "model__task__monitor": "bleu",
        "model__optimizer__lr": 1e-2,
        "data__max_length": 48,
        "trainer__max_epochs": 12,
        "trainer__val_check_interval": 10,
    }
    return finetune(run_dir, bundle, files, **{**given, **more})


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, bundle: Path, files: Path) -> Path:
    at = tmp_path_factory.mktemp("runs") / "run"
    given = options(at, bundle, files, trainer__max_epochs=24, trainer__val_check_interval=40)
    run = done(words("fit", given))
    assert "new: nothing; unused: nothing" in run.err
    return at


def test_it_learns_to_answer(run_dir, bundle, files, tmp_path):
    """The bundle is the best by BLEU, far above what the model wrote before."""
    rows = [row for row in read_metrics(run_dir) if row["val_bleu"]]
    best = max(float(row["val_bleu"]) for row in rows)
    lineage = json.loads((run_dir / "bundle" / "lineage.json").read_text())
    assert lineage["metrics"]["val_bleu"] == pytest.approx(best)
    short = options(tmp_path / "short", bundle, files, trainer__max_epochs=1)
    done(words("fit", short | {"trainer.val_check_interval": 5, "model.optimizer.lr": 1e-6}))
    (untrained,) = [r for r in read_metrics(tmp_path / "short") if r["val_bleu"]]
    assert best > 40 > 20 > float(untrained["val_bleu"])


def test_scores_are_those_of_the_lines_that_users_see(run_dir, files):
    measured = json.loads(done(["test", "--run_dir", str(run_dir)]).out)
    lines = read_json_lines((run_dir / "test_predictions.jsonl").read_text())
    texts, golds = [line["prediction"] for line in lines], [line["gold"] for line in lines]
    assert [(line["source"], line["gold"]) for line in lines] == pairs("test")
    assert measured["test_bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [golds]).score)
    right = sum(text == gold for text, gold in zip(texts, golds, strict=True))
    assert measured["test_exact_match"] == pytest.approx(right / len(lines))
    assert measured["test_perplexity"] == pytest.approx(
        torch.tensor(measured["test_loss"]).exp().item(), rel=1e-4
    )
    given = {"run_dir": str(run_dir), "data.predict": str(files / "test.jsonl")}
    done(
        words("predict", given | {"output": str(run_dir / "out.jsonl"), "data.micro_batch_size": 3})
    )
    predicted = read_json_lines((run_dir / "out.jsonl").read_text())
    wanted = [
        {"source": s, "prediction": p, "reference": g}
        for (s, g), p in zip(pairs("test"), texts, strict=True)
    ]
    assert predicted == wanted
    typed = done(["predict", "--run_dir", str(run_dir), "--text", pairs("test")[0][0]])
    assert read_json_lines(typed.out) == [{"source": wanted[0]["source"], "prediction": texts[0]}]


FORMATS: dict[str, dict[str, Any]] = {
    "parallel": {"model__task__parallel": [".en", ".de"], "data__audit": None},
    "alpaca": {},
    "messages": {},
    "sharegpt": {},
    "turns": {},
}


def test_every_format_trains_the_same(bundle, files, tmp_path):
    one = {"trainer__max_epochs": 1, "trainer__val_check_interval": 5}
    done(words("fit", options(tmp_path / "columns", bundle, files, **one)))
    for format, more in FORMATS.items():
        given = options(tmp_path / format, bundle, files, **one, **more, model__task__format=format)
        if format == "parallel":
            given |= {f"data.{s}": str(files / f"{s}.en") for s in ("train", "validation", "test")}
        done(words("fit", given))
        assert_same_weights(tmp_path / format, tmp_path / "columns")


def test_a_template_is_kept_in_the_bundle(bundle, files, tmp_path):
    source = (
        "{% for m in messages %}{{ 'Q ' if m.role == 'user' else 'A ' }}{{ m.content }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}A {% endif %}"
    )
    (tmp_path / "chat.jinja").write_text(source)
    more = {"model__task__template": str(tmp_path / "chat.jinja"), "trainer__max_epochs": 4}
    done(words("fit", options(tmp_path / "run", bundle, files, **more)))
    (tmp_path / "chat.jinja").unlink()
    config = json.loads((tmp_path / "run" / "bundle" / "config.json").read_text())
    assert config["head"]["config"]["template"] == source


def test_a_resumed_run_ends_as_an_uninterrupted_one(bundle, files, tmp_path):
    for name, epochs, checkpoint in (("whole", 4, None), ("parts", 2, None), ("parts", 4, "last")):
        more = {"trainer__max_epochs": epochs, "model__optimizer__schedule": "constant"}
        more |= {"model__optimizer__warmup": 0.0, "model__task__monitor": "loss"}
        done(words("fit", options(tmp_path / name, bundle, files, **more, ckpt_path=checkpoint)))
    rows = [read_metrics(tmp_path / name)[-1] for name in ("whole", "parts")]
    assert rows[0] == rows[1]
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_write_the_same_answers(strategy, run_dir, bundle, files, tmp_path):
    """Trained, and judged at its end, by one process and by two."""
    runs = []
    for ranks in (1, 2):
        at = tmp_path / str(ranks)
        more = {
            "trainer__max_epochs": 4,
            "model__init_from": str(run_dir),
            "model__optimizer__lr": 1e-4,
        }
        given = options(at, run_dir, files, **more)
        if ranks == 2:
            given |= {"trainer.devices": 2, "trainer.strategy": strategy}
        runs.append((at, launch(words("fit", given))))
    for _, process in runs:
        run = finish(process, timeout=240)
        assert run.code == 0, run.err
    one, two = (at for at, _ in runs)
    lines = [(at / "validation_predictions.jsonl").read_text() for at in (one, two)]
    assert lines[0] == lines[1]
    mine, theirs = weights(one), weights(two)
    for name, value in mine.items():
        assert torch.allclose(theirs[name], value, atol=1e-5), name
    rows = ([r for r in read_metrics(at) if r["val_bleu"]] for at in (one, two))
    for single, double in zip(*rows, strict=True):
        for name in (name for name in single if name.startswith("val_")):
            assert float(double[name]) == pytest.approx(float(single[name]), rel=1e-4), name


def test_a_masked_bundle_is_refused(store, bpe_path, files, tmp_path):
    shape = {k: v for k, v in SHAPE.items() if k != "causal"}
    more = {"causal": False, "model__backbone": shape, "trainer__max_steps": 1}
    done(words("fit", pretrain(tmp_path / "masked", store, bpe_path, **more)))
    run = call(words("fit", options(tmp_path / "run", tmp_path / "masked", files)))
    assert run.code == 2
    (error,) = run.errors
    assert "give model.init_from a causal model (of CausalLM)" in error


def test_bad_examples_stop_or_are_counted(bundle, files, tmp_path):
    lines = (files / "train.jsonl").read_text().splitlines()
    lines[4] = json.dumps({"messages": [{"role": "tool", "content": "a"}]})
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    more = {"model__task__format": "messages", "data__train": str(tmp_path / "train.jsonl")}
    more["trainer__max_epochs"] = 1
    run = call(words("fit", options(tmp_path / "run", bundle, files, **more)))
    assert run.code == 2
    assert "train.jsonl line 5: messages 1 is of role 'tool'" in run.errors[0]
    skipping = options(tmp_path / "run", bundle, files, **more, data__bad_examples="skip")
    assert "1 of 60 examples (1.7%) left out" in done(words("fit", skipping)).err


def test_talks_that_the_template_refuses_are_counted(bundle, files, tmp_path):
    lines = (files / "train.jsonl").read_text().splitlines()
    talk = [("system", "be brief"), ("user", "a"), ("assistant", "b")]
    lines[4] = json.dumps({"messages": [{"role": role, "content": said} for role, said in talk]})
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "chat.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no rules') }}"
        "{% endif %}{{ 'Q ' if m.role == 'user' else 'A ' }}{{ m.content }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}A {% endif %}"
    )
    more = {"model__task__format": "messages", "data__train": str(tmp_path / "train.jsonl")}
    more |= {"model__task__template": str(tmp_path / "chat.jinja"), "trainer__max_epochs": 1}
    run = call(words("fit", options(tmp_path / "run", bundle, files, **more)))
    assert run.code == 2
    (error,) = run.errors
    assert "train.jsonl line 5: the chat template refuses this conversation: no rules" in error
    assert "(1 of 60 examples (1.7%)" in error
    skipping = options(tmp_path / "run", bundle, files, **more, data__bad_examples="skip")
    assert "1 of 60 examples (1.7%) left out" in done(words("fit", skipping)).err
