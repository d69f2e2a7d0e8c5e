"""Going on with pretraining on other text: replay, new tokens, what is forgotten and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.kit import (
    assert_same_weights,
    call,
    done,
    finetune,
    finish,
    launch,
    pretrain,
    read_audit,
    read_metrics,
    weights,
    words,
    write_examples,
)

from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.handoff.vocabulary import ExtendedBundle, grow

ROOT = Path(__file__).parent.parent
DDP = {"trainer.devices": 2, "config": str(ROOT / "configs" / "trainer" / "ddp.yaml")}
DOMAIN = ["nephropathy of the glomerulus", "myocarditis and dermatitis", "the carcinoma of river"]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adaptation")


@pytest.fixture(scope="module")
def base(at: Path, store: Path, bpe_path: Path) -> Path:
    """A masked model to start from."""
    done(words("fit", pretrain(at / "base", store, bpe_path, causal=False, trainer__max_steps=2)))
    return at / "base"


@pytest.fixture(scope="module")
def domain_file(at: Path) -> Path:
    file = at / "domain.jsonl"
    lines = [json.dumps({"text": f"{DOMAIN[i % 3]} {i}. {DOMAIN[i % 2]}"}) for i in range(120)]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def domain(at: Path, domain_file: Path, bpe: Tokenizer) -> Path:
    prepare_store([str(domain_file)], bpe, at / "domain", validation_share=0.2)
    return at / "domain"


@pytest.fixture(scope="module")
def extended(at: Path, base: Path, domain_file: Path) -> Path:
    """A tokenizer with the domain's tokens."""
    args = ["extend", "--init_from", str(base), "--files", f"[{domain_file}]", "--add", "12"]
    run = done([*args, "--output", str(at / "extended")])
    assert "600 + 12 ids" in run.out
    assert "fertility: " in run.out
    return at / "extended"


def going_on(run_dir: Path, base: Path, domain: Path, **more: Any) -> dict[str, Any]:
    options = pretrain(run_dir, domain, Path("unused"), causal=False, **more)
    del options["data.tokenizer"], options["model.backbone"]
    return options | {"model.init_from": str(base)}


@pytest.fixture(scope="module")
def mixed(at: Path, base: Path, domain: Path, store: Path) -> dict[str, Any]:
    """A run on the domain with a third of general text, never disturbed."""
    options = going_on(at / "mixed", base, domain) | {"data.replay": {str(store): 0.33}}
    options["said"] = done(words("fit", {**options})).err
    return options


def said_of(options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    return {k: v for k, v in options.items() if k != "said"}, options["said"]


def test_the_log_says_what_is_inherited(mixed, base):
    said = mixed["said"]
    assert "inherited: head 'masked'" in said
    rate = open_bundle(base).lineage["lr"]
    assert f"inherited: learning rate of the bundle: {rate:.3g} at its end" in said


def test_other_text_is_measured_before_and_after(mixed, store, tmp_path):
    options, said = said_of(mixed)
    run_dir, name = Path(options["run_dir"]), store.name
    column = [row[f"val_{name}_loss"] for row in read_metrics(run_dir)]
    before, *_, last = [float(value) for value in column if value]
    assert f"loss on {name}: {before:.4f} before, {last:.4f} at step 6" in said
    assert "loss on own text: " in said
    # The same as other commands find: with the base, and with a bundle of that step.
    # (The run's own bundle is of step 8.)
    more = {"data.store": str(store), "data.replay": None}
    checks = {before: options["model.init_from"]}
    checks[last] = str(run_dir / "checkpoints" / "step=00000006.ckpt")
    for value, start in checks.items():
        known = {k: v for k, v in options.items() if k not in ("data.replay", "data.audit")}
        own = {"run_dir": str(tmp_path / "n"), "model.init_from": start}
        found = json.loads(done(words("validate", known | more | own)).out)
        assert found["val_loss"] == pytest.approx(value, rel=1e-5)
    assert open_bundle(run_dir).lineage["metrics"][f"val_{name}_loss"] == pytest.approx(last)


def test_without_validation_other_text_is_not_measured(base, domain, store, tmp_path):
    options = going_on(tmp_path / "run", base, domain, data__replay={str(store): 0.25})
    said = done(words("fit", options | {"trainer.limit_val_batches": 0})).err
    assert "loss before training" not in said


def test_a_mixture_resumes_to_the_same_bits(mixed, tmp_path):
    options, _ = said_of(mixed)
    options |= {"model.optimizer.schedule": "constant", "model.optimizer.warmup": 0}
    whole, parts = (
        options | {"run_dir": str(tmp_path / n), "data.audit": str(tmp_path / n / "audit")}
        for n in ("whole", "parts")
    )
    done(words("fit", whole))
    done(words("fit", parts | {"trainer.max_steps": 3}))
    run = done(words("fit", parts | {"ckpt_path": "last"}))
    assert read_audit(tmp_path / "parts") == read_audit(tmp_path / "whole")
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    assert "loss before training" not in run.err  # it stood in the checkpoint
    assert " before, " in run.err
    more = parts | {"ckpt_path": "last", "trainer.max_steps": 9, "data.replay": None}
    refused = call(words("fit", more))
    assert refused.code == 2
    assert "this checkpoint's run had other data (sources was" in refused.err


def test_a_mixture_is_the_same_over_two_ranks(mixed, tmp_path):
    options, _ = said_of(mixed)
    two = options | DDP | {"run_dir": str(tmp_path / "run"), "data.audit": str(tmp_path / "audit")}
    run = finish(launch(words("fit", two)), timeout=300)
    assert run.code == 0, run.err
    audit = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert audit == read_audit(Path(options["run_dir"]))
    mine, theirs = read_metrics(tmp_path / "run"), read_metrics(Path(options["run_dir"]))
    column = f"val_{Path(*options['data.replay']).name}_loss"
    for one, other in zip(mine, theirs, strict=True):
        assert bool(one[column]) == bool(other[column])
        if one[column]:
            assert float(one[column]) == pytest.approx(float(other[column]), rel=1e-3)


def test_a_model_of_phase_two_is_a_start_too(at, base, domain, tmp_path):
    examples = write_examples(tmp_path)
    done(words("fit", finetune(tmp_path / "two", base, examples, trainer__max_epochs=1)))
    run = done(words("fit", going_on(tmp_path / "run", tmp_path / "two", domain)))
    assert "has a head for 'classification', the one for 'masked' begins anew" in run.err
    parents = open_bundle(tmp_path / "run").lineage["parents"]
    assert parents[0]["phase"] == "finetune"
    assert parents[0]["parents"][0]["phase"] == "pretrain"


# New tokens.


def test_rows_of_new_tokens_are_means_and_all_others_keep_their_bits(base, extended):
    old, tokenizer = open_bundle(base), Tokenizer.load(extended)
    new = grow(old, tokenizer)
    assert isinstance(new, ExtendedBundle)
    assert new.hash == old.hash
    assert sorted(new.names()) == sorted(old.names())
    for name in old.names():
        before, after = old.tensor(name), new.tensor(name)
        if before.shape == after.shape:
            assert torch.equal(before, after)
            continue
        assert torch.equal(before, after[: len(before)])
        for i in range(old.tokenizer.size, tokenizer.size):
            text = tokenizer.decode([i])
            ids = old.tokenizer.encode([text])[0]
            assert len(ids) > 1
            assert torch.allclose(after[i], before[ids].mean(0), atol=1e-7)
    grown = {n for n in old.names() if old.tensor(n).shape != new.tensor(n).shape}
    assert grown == {"backbone.embedding.weight", "head.projection.bias"}


def test_rows_kept_in_reserve_are_used_first(base, extended):
    """A published model often has more rows than its tokenizer has ids."""
    old, tokenizer = open_bundle(base), Tokenizer.load(extended)
    old.config["backbone"]["vocab_size"] = 640
    embedding = torch.cat([old.tensor("backbone.embedding.weight"), torch.full((40, 32), 9.0)])
    old.tensor = lambda name: embedding  # type: ignore[method-assign]
    value = grow(old, tokenizer).tensor("backbone.embedding.weight")
    assert value.shape == (640, 32)
    assert (value[612:] == 9).all()
    assert not (value[600:612] == 9).any()


def test_a_run_trains_new_tokens_and_its_bundle_goes_on(base, extended, domain_file, tmp_path):
    options = going_on(tmp_path / "run", base, tmp_path / "store")
    options |= {"data.tokenizer": str(extended), "data.files": [str(domain_file)]}
    run = done(words("fit", options))
    assert "inherited: vocabulary 600 ids, 12 new ones" in run.err
    bundle = open_bundle(tmp_path / "run")
    assert bundle.config["backbone"]["vocab_size"] == 612
    assert bundle.tokenizer.fingerprint == Tokenizer.load(extended).fingerprint
    assert bundle.lineage["parents"][0]["hash"] == open_bundle(base).hash
    before = weights(base)["backbone.embedding.weight"]
    after = weights(tmp_path / "run")["backbone.embedding.weight"]
    assert after.shape == (612, before.shape[1])
    examples = write_examples(tmp_path)
    done(
        words("fit", finetune(tmp_path / "two", tmp_path / "run", examples, trainer__max_epochs=1))
    )
    # A second extension is one of the new bundle.
    again = ["--files", f"[{domain_file}]", "--add", "3", "--output", str(tmp_path / "more")]
    done(["extend", "--init_from", str(tmp_path / "run"), *again])
    second = going_on(tmp_path / "third", tmp_path / "run", tmp_path / "store3")
    second |= {"data.tokenizer": str(tmp_path / "more"), "data.files": [str(domain_file)]}
    assert "vocabulary 612 ids, 3 new ones" in done(words("fit", second)).err
    # But the first bundle does not know what the second extension builds on.
    second |= {"model.init_from": str(base), "run_dir": str(tmp_path / "fourth")}
    refused = call(words("fit", second))
    assert refused.code == 2
    assert "it extends another one" in refused.err


def test_phase_two_wants_new_tokens_trained_first(base, extended, tmp_path):
    options = finetune(tmp_path / "two", base, write_examples(tmp_path))
    refused = call(words("fit", options | {"data.tokenizer": str(extended)}))
    assert refused.code == 2
    assert "it extends that one: train its new tokens in phase one first" in refused.err


# Mistakes.


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"data.replay": {"nowhere": 0.2}}, ("no token store at 'nowhere'",)),
        ({"data.replay": {"a/x": 0.1, "b/x": 0.1}}, ("stores of the same last name",)),
        ({"data.replay": {"STORE": 0.6, "b": 0.6}}, ("data.replay sum to 1.2",)),
        ({"data.replay": {"OTHER": 0.2}}, ("was made with another tokenizer",)),
        ({"data.replay": {"DOMAIN": 0.2}}, ("names data.store", "leave it out")),
        ({"data.validation_stores": {"wiki": "nowhere"}}, ("no token store at 'nowhere'",)),
        ({"data.validation_stores": {"wiki": "WHOLE"}}, ("has no held-out documents",)),
        ({"model.objective": "CausalLM"}, ("needs model.backbone.causal true", "take MaskedLM")),
        ({"data.tokenizer": "WORDPIECE"}, ("leave data.tokenizer out",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_one_line(
    change, parts, base, domain, store, domain_file, wordpiece, wordpiece_path, bpe, tmp_path
):
    names = {"STORE": store, "DOMAIN": domain, "WORDPIECE": wordpiece_path}
    if "OTHER" in str(change):
        names["OTHER"] = tmp_path / "other"
        prepare_store([str(domain_file)], wordpiece, names["OTHER"])
    if "WHOLE" in str(change):
        names["WHOLE"] = tmp_path / "whole"
        prepare_store([str(domain_file)], bpe, names["WHOLE"], validation_share=0.0)
    text = json.dumps(change)
    for name, path in names.items():
        text = text.replace(name, str(path))
    run = call(words("fit", going_on(tmp_path / "run", base, domain) | json.loads(text)))
    assert run.code == 2
    (error,) = run.errors
    assert [part for part in parts if part not in error] == []
    assert "Traceback" not in run.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--add", "0"], "--add is 0: give 1 or more"),
        (["--output", "HERE"], "is already there"),
        (["--init_from", "nowhere"], "tokenizer not found: 'nowhere'"),
        (["--files", "[nowhere.jsonl]"], "nowhere.jsonl"),
    ],
)
def test_mistakes_of_extend(args, said, base, extended, domain_file, tmp_path):
    given = {
        "--init_from": str(base),
        "--files": f"[{domain_file}]",
        "--output": str(tmp_path / "t"),
    } | {args[0]: args[1].replace("HERE", str(extended))}
    run = call(["extend", *(word for pair in given.items() for word in pair)])
    assert run.code == 2
    assert said in run.errors[0]
