"""Several texts at once: shares by weight or size, told one by one, changed on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.kit import (
    assert_same_weights,
    call,
    done,
    finish,
    launch,
    pretrain,
    read_audit,
    read_metrics,
    words,
)

from ptft_lightning.data.manifest import read_manifest
from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.modules.loading import load_pretrained

ROOT = Path(__file__).parent.parent
DDP = {"trainer.devices": 2, "config": str(ROOT / "configs" / "trainer" / "ddp.yaml")}


@pytest.fixture(scope="module")
def stores(store: Path, bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two texts, one of numbers alone."""
    at = tmp_path_factory.mktemp("mixture")
    lines = [" ".join(str(i * k % 97) for k in range(40)) for i in range(60)]
    (at / "numbers.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    prepare_store([str(at / "numbers.jsonl")], bpe, at / "numbers", validation_share=0.2)
    return {"prose": str(store), "numbers": str(at / "numbers")}


def mixing(run_dir: Path, stores: dict[str, str], tokenizer: Path, **more: Any) -> dict[str, Any]:
    options = pretrain(run_dir, Path("unused"), tokenizer, **more)
    del options["data.store"]
    options["model.backbone"] |= {"dropout": 0.0}
    return options | {"data.mixture.stores": stores}


def sources(run_dir: Path, column: str) -> list[float]:
    return [float(row[column]) for row in read_metrics(run_dir) if row.get(column)]


def test_losses_and_shares_are_told_by_source(stores, bpe_path, tmp_path):
    weights = {"data.mixture.weights": {"prose": 2.0, "numbers": 1.0}, "trainer.max_steps": 12}
    run = done(words("fit", mixing(tmp_path, stores, bpe_path) | weights))
    assert "mixture: prose 66.7%, numbers 33.3% of the rows" in run.err
    shares = sources(tmp_path, "train_numbers_share")
    assert np.mean(shares) == pytest.approx(1 / 3, abs=0.02)
    both = zip(
        sources(tmp_path, "train_prose_loss"),
        sources(tmp_path, "train_numbers_loss"),
        shares,
        sources(tmp_path, "train_loss"),
        strict=True,
    )
    for prose, numbers, share, loss in both:  # rows of blocks have about equally many targets
        assert share * numbers + (1 - share) * prose == pytest.approx(loss, rel=0.02)
    # Each text's held-out loss, too.
    assert sources(tmp_path, "val_numbers_loss")[-1] != sources(tmp_path, "val_loss")[-1]


def test_the_loss_of_a_source_is_that_of_its_rows(stores, bpe, bpe_path, tmp_path):
    """Of the first step, against the rows of each store alone through a model of the same seed."""
    options = mixing(tmp_path / "mixed", stores, bpe_path) | {"data.mixture.temperature": 1e9}
    done(words("fit", options | {"trainer.max_steps": 1, "model.optimizer.lr": 1e-30}))
    net, _ = load_pretrained(str(tmp_path / "mixed"), "cpu")
    for name, place in stores.items():
        rows = Rows(TokenStore(place, "train"), "blocks", 32, bpe.pad, 0, 16, shuffle=True)
        tokens, documents = (torch.from_numpy(a) for a in rows.read(np.arange(3)))
        with torch.inference_mode():
            hidden = net.backbone(tokens[:, :-1], documents[:, :-1])
            logits = net.head.logits(hidden, net.backbone.embedding.weight).double()
        same = documents[:, 1:] == documents[:, :-1]
        nats = -logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0][same].mean()
        (found,) = sources(tmp_path / "mixed", f"train_{name}_loss")
        assert found == pytest.approx(float(nats), rel=1e-4)


def test_weights_may_change_at_a_resume(stores, bpe_path, tmp_path):
    """The past stays, each text goes on where it was, and the lineage tells."""
    options = mixing(tmp_path, stores, bpe_path, data__global_batch_size=12)
    even = options | {"data.mixture.weights": {"prose": 1.0, "numbers": 1.0}}
    done(words("fit", even | {"trainer.max_steps": 3}))
    before = read_audit(tmp_path)
    odd = even | {"data.mixture.weights": {"prose": 5.0, "numbers": 1.0}, "ckpt_path": "last"}
    run = done(words("fit", odd | {"trainer.max_steps": 6}))
    assert "mixture: prose 83.3%, numbers 16.7% of the rows" in run.err
    audit = read_audit(tmp_path)
    assert audit[:3] == before
    assert [n for line in audit for n, _ in line["samples"]] == list(range(72))
    table = open_bundle(tmp_path).lineage["segments"]
    assert [row["first_step"] for row in table] == [0, 3]
    assert table[0]["shares"] == [0.5, 0.5]
    assert table[1]["shares"] == pytest.approx([5 / 6, 1 / 6])
    shares = sources(tmp_path, "train_numbers_share")
    assert shares == pytest.approx([0.5] * 3 + [1 / 6] * 3)
    # The same weights again: no new segment, and nothing is said of it.
    run = done(words("fit", odd | {"trainer.max_steps": 9}))
    assert len(open_bundle(tmp_path).lineage["segments"]) == 2
    # The text of a row is hashed: no row comes twice before all rows of its text came.
    hashes = [h for line in read_audit(tmp_path) for _, h in line["samples"]]
    assert len(hashes) == 108
    turns = {"numbers": 3 * 6 + 6 * 2, "prose": 3 * 6 + 6 * 10}
    rows = {n: sum(s.tokens // 32 for s in read_manifest(p).train) for n, p in stores.items()}
    assert len(set(hashes)) == sum(min(turns[name], rows[name]) for name in stores)


def test_a_resumed_mixture_is_the_undisturbed_one(stores, bpe_path, tmp_path):
    whole, parts = (
        mixing(tmp_path / name, stores, bpe_path)
        | {"data.mixture.temperature": 2.0, "model.optimizer.schedule": "constant"}
        for name in ("whole", "parts")
    )
    done(words("fit", whole))
    done(words("fit", parts | {"trainer.max_steps": 3}))
    done(words("fit", parts | {"ckpt_path": "last"}))
    assert read_audit(tmp_path / "parts") == read_audit(tmp_path / "whole")
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")


def test_two_ranks_tell_the_same(stores, bpe_path, tmp_path):
    one = mixing(tmp_path / "one", stores, bpe_path, trainer__max_steps=4)
    done(words("fit", one))
    two = mixing(tmp_path / "two", stores, bpe_path, trainer__max_steps=4) | DDP
    run = finish(launch(words("fit", two)), timeout=300)
    assert run.code == 0, run.err
    assert read_audit(tmp_path / "two") == read_audit(tmp_path / "one")
    for column in ("train_prose_loss", "train_numbers_loss", "train_numbers_share"):
        expected = sources(tmp_path / "one", column)
        assert sources(tmp_path / "two", column) == pytest.approx(expected, rel=1e-4)


def test_a_store_is_not_read_too_often(stores, bpe_path, tmp_path):
    more = {"data.mixture.temperature": 1e9, "data.mixture.max_passes": 1.0}
    options = mixing(tmp_path, stores, bpe_path) | more | {"data.global_batch_size": 60}
    done(words("fit", options))
    hashes = [h for line in read_audit(tmp_path) for _, h in line["samples"]]
    assert len(hashes) == 480
    assert len(set(hashes)) >= 478  # once each, but for a row or two of rounding
    refused = call(
        words("fit", options | {"trainer.max_steps": 800, "run_dir": str(tmp_path / "x")})
    )
    assert refused.code == 2
    assert "data.mixture.max_passes is 1: the stores give" in refused.err


def test_a_mixture_does_not_resume_a_run_of_one_store(stores, bpe_path, tmp_path):
    one = pretrain(tmp_path, Path(stores["prose"]), bpe_path, trainer__max_steps=3)
    done(words("fit", one))
    two = mixing(tmp_path, stores, bpe_path) | {"ckpt_path": "last"}
    two["model.backbone"] = one["model.backbone"]
    refused = call(words("fit", two))
    assert refused.code == 2
    assert "sources was None" in refused.err


def test_weights_do_not_change_while_samples_are_to_be_left_out(stores, bpe_path, tmp_path):
    options = mixing(tmp_path, stores, bpe_path) | {"trainer.max_steps": 3}
    done(words("fit", options))
    (tmp_path / "skips.json").write_text(json.dumps([{"samples": [30, 36], "step": 5}]))
    more = {"ckpt_path": "last", "trainer.max_steps": 8}
    refused = call(words("fit", options | more | {"data.mixture.temperature": 3.0}))
    assert refused.code == 2
    assert "samples 30 to 35 are still to be left out" in refused.err
    done(words("fit", options | more))
    numbers = [n for line in read_audit(tmp_path) for n, _ in line["samples"]]
    assert numbers == [*range(30), *range(36, 54)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data.mixture.weights": {"prose": -1.0, "numbers": 1.0}}, "weights.prose is -1"),
        ({"data.mixture.weights": {"prose": 0.0, "numbers": 0.0}}, "are all 0"),
        ({"data.mixture.weights": {"prose": 1.0}}, "do not both name 'numbers'"),
        ({"data.mixture.stores": {"a": "nowhere"}}, "no token store at 'nowhere'"),
        ({"data.store": "somewhere"}, "data.mixture: give one of the two"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(change, said, stores, bpe_path, tmp_path):
    refused = call(words("fit", mixing(tmp_path, stores, bpe_path) | change))
    assert refused.code == 2
    assert said in refused.err
    assert "Traceback" not in refused.err
