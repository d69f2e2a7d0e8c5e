"""From a run to text: `generate` and `score` on what `fit` leaves, as a user calls them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from faults.kit import (
    call,
    done,
    finish,
    launch,
    pretrain,
    read_json_lines,
    read_metrics,
    words,
)

from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer

PROMPTS = ["The river", "的一是了", "a"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> dict[bool, Path]:
    """A causal and a masked run."""
    at = tmp_path_factory.mktemp("runs")
    for causal in (True, False):
        options = pretrain(
            at / str(causal), store, bpe_path, causal=causal, data__layout="documents"
        )
        done(words("fit", options))
    return {causal: at / str(causal) for causal in (True, False)}


def generated(run_dir: Path, file: Path, **options) -> list[dict]:
    options = {"init_from": str(run_dir), "output": str(file), **options}
    assert done(words("generate", options)).out == ""
    return read_json_lines(file.read_text(encoding="utf-8"))


def test_what_is_printed_is_what_is_written(runs, tmp_path):
    options = {"init_from": str(runs[True]), "prompt": "The river 的", "max_new_tokens": 9}
    printed = done(words("generate", options))
    (record,) = generated(
        runs[True], tmp_path / "out.jsonl", prompt="The river 的", max_new_tokens=9
    )
    assert printed.out == f"The river 的{record['text']}\n"
    assert record["prompt"] == "The river 的"
    assert record["tokens"] <= 9


@pytest.mark.parametrize("prompt", ["# The river", "null", "- the river", "#"])
def test_what_yaml_reads_as_nothing_is_a_text(runs, tmp_path, prompt):
    (record,) = generated(runs[True], tmp_path / "a", prompt=prompt, max_new_tokens=2)
    assert record["prompt"] == prompt
    file = tmp_path / "scores.jsonl"
    done(["score", "--init_from", str(runs[True]), f"--text={prompt}", "--output", str(file)])
    assert read_json_lines(file.read_text())[0]["text"] == prompt


def test_a_draw_depends_on_seed_and_number_alone(runs, tmp_path):
    options = {"temperature": 1.0, "max_new_tokens": 8, "num_samples": 2, "prompt": PROMPTS}
    together = generated(runs[True], tmp_path / "one.jsonl", **options)
    assert [(r["number"], r["sample"]) for r in together] == [
        (n, s) for n in (1, 2, 3) for s in (1, 2)
    ]
    assert generated(runs[True], tmp_path / "two.jsonl", batch_size=1, **options) == together
    other = generated(runs[True], tmp_path / "three.jsonl", seed=1, **options)
    assert [r["text"] for r in other] != [r["text"] for r in together]
    assert len({r["text"] for r in together}) > 3


def test_prompts_from_files(runs, tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS) + "\n\n", encoding="utf-8")
    lines = [json.dumps({"body": text}) + "\n" for text in PROMPTS]
    (tmp_path / "p.jsonl").write_text("".join(lines), encoding="utf-8")
    given = generated(runs[True], tmp_path / "a", prompt=PROMPTS, max_new_tokens=3)
    for options in ({"prompts": str(tmp_path / "p.txt")}, {"prompts": str(tmp_path / "p.jsonl")}):
        column = {"column": "body"} if options["prompts"].endswith("l") else {}
        assert generated(runs[True], tmp_path / "b", max_new_tokens=3, **options, **column) == given
    assert [record["prompt"] for record in given] == PROMPTS


def test_beams_and_the_model_s_max_length(runs, tmp_path):
    options = {"prompt": PROMPTS, "beams": 3, "num_samples": 3, "max_new_tokens": 99}
    records = generated(runs[True], tmp_path / "out", **options)
    assert [record["sample"] for record in records] == [1, 2, 3] * 3
    scores = [record["score"] for record in records]
    assert scores[:3] == sorted(scores[:3], reverse=True)
    options = {"init_from": str(runs[True]), "prompt": PROMPTS, "max_new_tokens": 99}
    run = done(words("generate", {**options, "output": str(tmp_path / "long")}))
    finishes = [r["finish"] for r in read_json_lines((tmp_path / "long").read_text("utf-8"))]
    assert (cut := finishes.count("max_length")) > 0
    assert f"{cut} stopped at the model's max_length 32" in run.err


def test_masks(runs, bpe):
    prompt = "The [MASK] water [MASK]."
    run = done(words("generate", {"init_from": str(runs[False]), "prompt": prompt, "fills": 3}))
    first, second, *_ = run.out.splitlines()
    for number, line in ((1, first), (2, second)):
        name, _, fills = line.partition(": ")
        assert name == f"[MASK] {number}"
        shares = [float(fill.split()[-1]) for fill in fills.split(", ")]
        assert shares == sorted(shares, reverse=True)
        assert len(shares) == 3


# Scores.


def test_perplexity_is_the_validation_s(runs, store, bpe, bpe_path, tmp_path):
    """Of a run that saw every held-out document whole."""
    run_dir = tmp_path / "run"
    shape = {"dim": 32, "depth": 2, "heads": 2, "max_length": 512, "causal": True}
    options = pretrain(
        run_dir, store, bpe_path, data__layout="documents", data__length=512,
        model__backbone=shape, trainer__max_steps=4, trainer__val_check_interval=4,
        data__global_batch_size=2, data__micro_batch_size=2,
    )  # fmt: skip
    done(words("fit", options))
    held_out = tmp_path / "held_out.jsonl"
    texts = held_out_texts(store, bpe)
    held_out.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run = done(words("score", {"init_from": str(run_dir), "files": [str(held_out)],
                               "output": str(tmp_path / "scores")}))  # fmt: skip
    summary, row = json.loads(run.out), read_metrics(run_dir)[-1]
    assert math.log(summary["perplexity"]) == pytest.approx(float(row["val_loss"]), rel=1e-5)
    assert summary["bits_per_byte"] == pytest.approx(float(row["val_bits_per_byte"]), rel=1e-5)
    records = read_json_lines((tmp_path / "scores").read_text(encoding="utf-8"))
    assert [record["text"] for record in records] == texts
    assert sum(r["log_probability"] for r in records) == pytest.approx(summary["log_probability"])
    for record in records:
        assert record["token"][0] == "[CLS]"
        values = record["token_log_probability"]
        assert values[0] is None
        assert sum(values[1:]) == pytest.approx(record["log_probability"])


def held_out_texts(store: Path, tokenizer: Tokenizer) -> list[str]:
    opened = TokenStore(store, "validation")
    texts = []
    for shard in range(len(opened.shards)):
        tokens, start = opened.tokens(shard), 0
        for end in opened.ends(shard).tolist():
            texts.append(tokenizer.decode(tokens[start:end].tolist()))
            start = end
    return texts


def test_a_table_of_scores(runs):
    text = ["The river reads.", "的一" * 30]
    run = done(words("score", {"init_from": str(runs[True]), "text": text}))
    header, *rows, last = run.out.splitlines()
    assert header.split() == ["tokens", "log-prob", "perplexity", "bits/byte", "text"]
    tokens, total, perplexity, bits = (float(cell) for cell in rows[0].split()[:4])
    assert perplexity == pytest.approx(math.exp(-total / tokens), rel=1e-4)
    assert bits == pytest.approx(-total / math.log(2) / 16, abs=1e-3)
    assert last.endswith("all 2 texts")
    assert "the first token of each document is given" in run.err
    assert "1 texts longer than max_length 32 were read in windows, one every 16" in run.err


def test_masked_scores_say_what_they_are(runs):
    run = done(words("score", {"init_from": str(runs[False]), "text": "The river reads."}))
    assert "pseudo-log-likelihood" in run.err
    assert "no bits-per-byte: a masked model gives no likelihood" in run.err
    assert run.out.splitlines()[1].split()[3] == "-"


# Samples of a run.


def test_samples_of_each_validation(runs, bpe):
    for causal, kind in ((True, "continuation"), (False, "filled")):
        lines = read_json_lines((runs[causal] / "samples.jsonl").read_text(encoding="utf-8"))
        assert [(line["step"], line["kind"]) for line in lines] == [(6, kind)] * 3
        assert all(line["prompt"] for line in lines)
        if not causal:
            assert any("[MASK]" in line["prompt"] for line in lines)
            assert not any("[MASK]" in line["text"] for line in lines)


def test_samples_change_nothing_and_a_resume_writes_them_again(store, bpe_path, tmp_path):
    def fit(name: str, **more) -> Path:
        options = pretrain(tmp_path / name, store, bpe_path, **{"trainer__max_steps": 9, **more})
        done(words("fit", {**options, "trainer.val_check_interval": 2, "data.workers": 0}))
        return tmp_path / name

    with_samples = fit("with", samples__prompts=["The river", "的一"])
    without = fit("without", samples__count=0)
    assert not (without / "samples.jsonl").exists()
    assert read_metrics(with_samples) == read_metrics(without)
    written = (with_samples / "samples.jsonl").read_text()
    assert [json.loads(line)["step"] for line in written.splitlines()] == [2, 2, 4, 4, 6, 6, 8, 8]
    # From step 6 on anew, its own lines kept, what a kill tore off removed.
    (with_samples / "checkpoints" / "step=00000009.ckpt").unlink()
    # A separator that ends no line of a file, in a line to keep; a line torn inside a character.
    odd = json.dumps({"step": 3, "text": "a\u2028b"}, ensure_ascii=False) + "\n"
    torn = '{"step": 8, "text": "的'.encode()[:-1]
    (with_samples / "samples.jsonl").write_bytes((odd + written).encode() + torn)
    fit("with", samples__prompts=["The river", "的一"], ckpt_path="last")
    assert (with_samples / "samples.jsonl").read_text(encoding="utf-8") == odd + written


def test_a_sharded_run_says_that_it_writes_no_samples(store, bpe_path, tmp_path):
    options = pretrain(tmp_path / "run", store, bpe_path)
    two = {"trainer.devices": 2, "trainer.strategy": "fsdp2"}
    run = finish(launch(words("fit", options | two)))
    assert run.code == 0, run.err
    assert run.err.count("samples: none, the model is sharded over the ranks") == 1
    assert not (tmp_path / "run" / "samples.jsonl").exists()


# Mistakes.


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, ("--prompt TEXT or --prompts FILE",)),
        ({"prompt": "a", "prompts": "b.txt"}, ("--prompt TEXT or --prompts FILE",)),
        ({"prompts": "nope.txt"}, ("file not found: 'nope.txt'",)),
        ({"prompt": " of" * 40}, ("prompt 'of of", "at most 32", "give 31 or fewer")),
        ({"prompt": '["a", 3]'}, ("--prompt has 3", "in quotes")),
        ({"prompt": '["a", "b"'}, ("--prompt begins like a JSON list",)),
        ({"prompt": "a", "temperature": -1.0}, ("--temperature is -1.0",)),
        ({"prompt": "a", "top_k": 3}, ("--top_k", "give a --temperature")),
        ({"prompt": "a", "temperature": 1.0, "top_p": 1.5}, ("--top_p is 1.5",)),
        ({"prompt": "a", "num_samples": 2}, ("--num_samples is 2", "--temperature")),
        ({"prompt": "a", "beams": 2, "temperature": 1.0}, ("--beams", "leave out --temperature")),
        ({"prompt": "a", "beams": 2, "num_samples": 3}, ("--num_samples is 3", "--beams 2")),
        ({"prompt": "a", "max_new_tokens": 0}, ("--max_new_tokens is 0",)),
        ({"prompt": "a", "device": "cuba"}, ("--device is 'cuba'", "try auto or cpu")),
        ({"prompt": "a", "temprature": 1}, ("'--temprature'", "did you mean '--temperature'?")),
    ],
    ids=str,
)
def test_generating_mistakes(runs, options, parts):
    run = call(words("generate", {"init_from": str(runs[True]), **options}))
    assert (run.code, run.out, len(run.err.splitlines())) == (2, "", 1), run.err
    assert [part for part in parts if part not in run.err] == []


def test_a_masked_model_needs_masks(runs):
    run = call(words("generate", {"init_from": str(runs[False]), "prompt": "the river"}))
    assert run.code == 2
    assert run.err == (
        "error: nothing to fill in 'the river': write [MASK] where a word is missing\n"
    )


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, ("--text TEXT or --files",)),
        ({"text": "a", "stride": 32}, ("--stride is 32", "less than the model's max_length 32")),
        ({"text": "a", "batch_size": 0}, ("--batch_size is 0",)),
        ({"files": ["nope.jsonl"]}, ("file not found: 'nope.jsonl'",)),
    ],
    ids=str,
)
def test_scoring_mistakes(runs, options, parts):
    run = call(words("score", {"init_from": str(runs[True]), **options}))
    assert (run.code, run.out, len(run.err.splitlines())) == (2, "", 1), run.err
    assert [part for part in parts if part not in run.err] == []
