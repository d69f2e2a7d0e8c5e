"""What both phases share: what a resume refuses, what is reported, what a bundle remembers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import tiny

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.modules.meter import Meter
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.terms import Output, Term

SIZES = {"global_batch_size": 4, "micro_batch_size": 4}


@pytest.fixture(scope="module")
def checkpoint(store: Path, bpe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of masked pretraining."""
    file = tmp_path_factory.mktemp("checkpoint") / "x.ckpt"
    data = tiny.corpus(store, bpe_path, **SIZES)
    tiny.fit(tiny.pretrain(MaskedLM(0.3)), data, steps=1).save_checkpoint(file)
    return file


def resume(module: Any, data: Any, file: Path) -> str:
    with pytest.raises(UserError) as refused:
        tiny.fit(module, data, steps=2, ckpt_path=file)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_resume_refuses_another_model(checkpoint: Path, store: Path, bpe_path: Path) -> None:
    data = tiny.corpus(store, bpe_path, **SIZES)
    deeper = tiny.pretrain(MaskedLM(0.3), shape={"norm_eps": 1e-6})
    said = resume(deeper, data, checkpoint)
    assert "another one (backbone.config.norm_eps was" in said
    assert "is 1e-06" in said
    said = resume(tiny.pretrain(MaskedLM(0.2)), tiny.corpus(store, bpe_path, **SIZES), checkpoint)
    assert "head.config.rate was 0.3, is 0.2" in said


def test_resume_refuses_another_phase(checkpoint: Path, bpe_path: Path, tmp_path: Path) -> None:
    data = tiny.examples(tiny.write_examples(tmp_path / "x.jsonl"), bpe_path)
    said = resume(tiny.finetune(), data, checkpoint)
    assert "a pretrain checkpoint, this is a finetune run" in said
    assert "--model.init_from" in said


def test_resume_refuses_a_foreign_checkpoint(
    checkpoint: Path, store: Path, bpe_path: Path, tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    del content["bundle"]
    torch.save(content, tmp_path / "foreign.ckpt")
    data = tiny.corpus(store, bpe_path, **SIZES)
    said = resume(tiny.pretrain(MaskedLM(0.3)), data, tmp_path / "foreign.ckpt")
    assert "not written by ptft_lightning" in said


def test_lineage_names_the_parent(bpe: Tokenizer, tmp_path: Path) -> None:
    parent = tiny.bundle(tmp_path / "parent", bpe)
    data = tiny.examples(tiny.write_examples(tmp_path / "x.jsonl"), None, **SIZES)
    module = tiny.finetune(init_from=str(parent))
    tiny.fit(module, data, steps=3)
    lineage = module.lineage()
    assert [(p["hash"], p["phase"]) for p in lineage["parents"]] == [
        (open_bundle(parent).hash, "pretrain")
    ]
    assert (lineage["steps"], lineage["samples"], lineage["seed"]) == (3, 12, 3)
    assert lineage["tokens"] == module.tokens_seen > 12
    assert lineage["parameters"] == sum(p.numel() for p in module.parameters())


def test_tokens_are_counted_between_reports_too(
    store: Path, bpe_path: Path, tmp_path: Path
) -> None:
    counts = []
    for every in (1, 4):
        file = tmp_path / f"{every}.ckpt"
        module = tiny.pretrain(MaskedLM(0.3))
        data = tiny.corpus(store, bpe_path, **SIZES)
        tiny.fit(module, data, steps=3, log_every_n_steps=every).save_checkpoint(file)
        module = tiny.pretrain(MaskedLM(0.3))
        data = tiny.corpus(store, bpe_path, **SIZES)
        tiny.fit(module, data, steps=6, log_every_n_steps=every, ckpt_path=file)
        counts.append(module.lineage()["tokens"])
    assert counts[0] == counts[1] > 6


def test_reported_loss_is_the_mean_over_targets() -> None:
    class Alone:
        def reduce(self, value: torch.Tensor, reduce_op: str) -> torch.Tensor:
            assert reduce_op == "sum"
            return value

    batch = type("Rows", (), {"real_tokens": 5, "tokens": torch.zeros(2, 4)})()
    meter = Meter()
    for total, count in ((6.0, 2), (0.0, 0), (1.5, 3)):
        terms = {
            "first": Term(torch.tensor(total), torch.tensor(count), nominal=9.0),
            "second": Term(torch.tensor(4.0), torch.tensor(1), nominal=9.0, weight=0.5),
        }
        meter.add(Output(terms, {"accuracy": torch.tensor(count / 2)}), batch)
    sums = meter.take(Alone())
    assert sums.losses == pytest.approx({"first": 7.5 / 5, "second": 2.0})
    assert sums.metrics == pytest.approx({"accuracy": 0.5})
    assert (sums.tokens, sums.places) == (15, 24)

    # Begins anew; nothing but empty micro-batches is no division by zero.
    terms = {"first": Term(torch.tensor(0.0), torch.tensor(0), nominal=9.0)}
    meter.add(Output(terms), batch)
    assert meter.take(Alone()).losses == {"first": 0.0}


def test_validation_reports_what_the_objective_means(store: Path, bpe_path: Path) -> None:
    data = tiny.corpus(store, bpe_path, **SIZES)
    trainer = tiny.fit(tiny.pretrain(CausalLM()), data, steps=1, limit_val_batches=None)
    (values,) = trainer.validate(trainer.lightning_module, datamodule=data, verbose=False)
    assert set(values) == {"val_loss", "val_accuracy", "val_perplexity", "val_bits_per_byte"}
    assert values["val_perplexity"] == pytest.approx(math.exp(values["val_loss"]), rel=1e-5)
    rate = data.predicted_per_byte
    assert rate is not None
    bits = values["val_loss"] / math.log(2) * rate
    assert values["val_bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_validation_does_not_depend_on_the_micro_batch(store: Path, bpe_path: Path) -> None:
    losses = []
    for micro in (2, 5):
        data = tiny.corpus(store, bpe_path, global_batch_size=5, micro_batch_size=micro)
        module = tiny.pretrain(MaskedLM(0.3))
        trainer = tiny.fit(module, data, steps=1, limit_val_batches=None)
        (values,) = trainer.validate(module, datamodule=data, verbose=False)
        losses.append(values["val_loss"])
        assert "val_bits_per_byte" not in values, "a masked loss is no likelihood of the text"
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_predictions_leave_empty_slots_out(bpe: Tokenizer, tmp_path: Path) -> None:
    tuned = tiny.bundle(tmp_path / "tuned", bpe, "classification")
    file = tiny.write_examples(tmp_path / "x.jsonl", count=5)
    scores = []
    for micro in (2, 5):
        data = tiny.examples(file, None, predict=str(file), micro_batch_size=micro)
        module = tiny.finetune(init_from=str(tuned))
        trainer = tiny.L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        parts = trainer.predict(module, datamodule=data)
        assert parts is not None
        numbers, rows = (torch.cat(x) for x in zip(*parts, strict=True))
        assert numbers.tolist() == [0, 1, 2, 3, 4]
        scores.append(rows)
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=1e-5)
