"""Preflight: each planted fault is named with its fix, all at once; good pairs raise nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import tiny

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.modules.phase import PhaseModule
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedLM


@pytest.fixture(scope="module")
def bundles(bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundles")
    for head in ("masked", "causal", "classification"):
        tiny.bundle(directory / head, bpe, head)
    return directory


def change(bundle: Path, *keys: str, to: Any) -> str:
    """Write another value into a copy of a bundle's config."""
    copy = bundle.with_name(f"{bundle.name}-{'-'.join(keys)}-{to}")
    copy.mkdir(exist_ok=True)
    for file in bundle.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    place = config
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    (copy / "config.json").write_text(json.dumps(config))
    return str(copy)


def corpus(tokenizer: Tokenizer, **changes: Any) -> Any:
    data = tiny.corpus(Path("nowhere"), None, **changes)
    data.tokenizer = tokenizer
    return data


def examples(tokenizer: Tokenizer, **changes: Any) -> Any:
    data = tiny.examples(Path("nowhere.jsonl"), None, **changes)
    data.tokenizer = tokenizer
    return data


def refusal(module: PhaseModule, data: Any) -> str:
    with pytest.raises(UserError) as refused:
        module.preflight(data)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_good_pairs_pass_and_tell_what_they_inherit(
    bundles: Path, bpe: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.pretrain(CausalLM()).preflight(corpus(bpe))
    tiny.finetune().preflight(examples(bpe))
    assert capsys.readouterr().err == ""

    goes_on = tiny.pretrain(MaskedLM(), backbone=None, init_from=str(bundles / "masked"))
    goes_on.preflight(corpus(bpe))
    said = capsys.readouterr().err
    assert f"inherited: tokenizer {bpe.fingerprint} ({bpe.size} ids" in said
    assert f"inherited: backbone transformer, vocabulary {bpe.size}, dim 32, depth 2" in said

    for head in ("masked", "causal", "classification"):
        tiny.finetune(init_from=str(bundles / head)).preflight(examples(bpe))
        labels = "inherited: labels left, right, up" in capsys.readouterr().err
        assert labels is (head == "classification")


def test_settings_younger_than_a_tuned_bundle_are_free(bundles: Path, bpe: Tokenizer) -> None:
    old = {"pooling": "auto", "dropout": 0.5}
    bundle = change(bundles / "classification", "head", "config", to=old)
    tiny.finetune(init_from=bundle).preflight(examples(bpe))
    old["pooling"] = "last"
    bundle = change(bundles / "classification", "head", "config", to=old)
    said = refusal(tiny.finetune(init_from=bundle), examples(bpe))
    assert "model.task.pooling 'last', yours is 'auto'" in said


def test_foreign_tokenizer(bundles: Path, bpe: Tokenizer, wordpiece: Tokenizer) -> None:
    init = {"init_from": str(bundles / "masked")}
    for said in (
        refusal(tiny.pretrain(MaskedLM(), backbone=None, **init), corpus(wordpiece)),
        refusal(tiny.finetune(**init), examples(wordpiece)),
    ):
        assert wordpiece.fingerprint in said
        assert bpe.fingerprint in said
        assert "leave data.tokenizer out" in said


def test_vocabulary_larger_than_the_embedding(bundles: Path, bpe: Tokenizer) -> None:
    said = refusal(tiny.pretrain(MaskedLM(), vocab_size=bpe.size - 1), corpus(bpe))
    assert f"ids up to {bpe.size - 1}" in said
    assert "model.vocab_size" in said
    small = change(bundles / "masked", "backbone", "vocab_size", to=50)
    assert "50 rows" in refusal(tiny.finetune(init_from=small), examples(bpe))
    tiny.pretrain(MaskedLM(), vocab_size=bpe.size + 9).preflight(corpus(bpe))


def test_rows_longer_than_the_backbone_reads(bundles: Path, bpe: Tokenizer) -> None:
    said = refusal(tiny.pretrain(CausalLM()), corpus(bpe, length=33))
    assert "data.length is 33, the backbone reads at most 32 tokens: lower data.length" in said
    said = refusal(tiny.finetune(init_from=str(bundles / "causal")), examples(bpe, max_length=40))
    assert "data.max_length is 40, the backbone reads at most 32" in said


@pytest.mark.parametrize(
    ("objective", "causal"), [(CausalLM(), False), (MaskedLM(), True)], ids=["causal", "masked"]
)
def test_wrong_direction(objective: Any, causal: bool, bpe: Tokenizer) -> None:
    module = tiny.pretrain(objective, backbone=tiny.TransformerConfig(causal=causal))
    wanted = f"objective '{objective.name}' needs model.backbone.causal {str(not causal).lower()}"
    assert wanted in refusal(module, corpus(bpe))


def test_wrong_direction_of_a_bundle(bundles: Path, bpe: Tokenizer) -> None:
    module = tiny.pretrain(CausalLM(), backbone=None, init_from=str(bundles / "masked"))
    assert "needs model.backbone.causal true, it is false" in refusal(module, corpus(bpe))


def test_wrong_phase(bundles: Path, bpe: Tokenizer) -> None:
    other = change(bundles / "masked", "phase", to="adapter")
    said = refusal(tiny.pretrain(MaskedLM(), backbone=None, init_from=other), corpus(bpe))
    assert "is a adapter bundle, PretrainModule starts from pretrain or finetune bundles" in said
    said = refusal(tiny.finetune(init_from=other), examples(bpe))
    assert "is a adapter bundle, FinetuneModule starts from pretrain or finetune bundles" in said


def test_another_task(bundles: Path, bpe: Tokenizer) -> None:
    other = change(bundles / "classification", "head", "name", to="tagging")
    said = refusal(tiny.finetune(init_from=other), examples(bpe))
    assert "tuned for 'tagging', model.task is 'classification'" in said
    assert "start from the phase-one bundle" in said


def test_no_mask_token(bpe: Tokenizer) -> None:
    without = Tokenizer(bpe.text.replace("[MASK]", "[SOMETHING]"))
    said = refusal(tiny.pretrain(MaskedLM()), corpus(without))
    assert "needs a mask token" in said
    assert "train one with" in said
    tiny.pretrain(CausalLM()).preflight(corpus(without))


def test_all_problems_at_once(bundles: Path, wordpiece: Tokenizer) -> None:
    other = change(bundles / "masked", "phase", to="other")
    module = tiny.pretrain(CausalLM(), backbone=None, init_from=other)
    said = refusal(module, corpus(wordpiece, length=64))
    for part in ("fingerprint", "other bundle", "data.length is 64", "backbone.causal true"):
        assert part in said


def test_shape_and_bundle_together_are_refused(bundles: Path) -> None:
    init = {"init_from": str(bundles / "masked"), "backbone": tiny.TransformerConfig()}
    for make in (lambda: tiny.pretrain(MaskedLM(), **init), lambda: tiny.finetune(**init)):
        with pytest.raises(UserError, match=r"model\.backbone and model\.init_from: give one"):
            make()


def test_nothing_is_built_before(store: Path, bpe_path: Path) -> None:
    module = tiny.pretrain(CausalLM(), backbone=tiny.TransformerConfig(causal=False))
    with pytest.raises(UserError, match=r"backbone\.causal true"):
        tiny.fit(module, tiny.corpus(store, bpe_path), steps=1)
    assert not module.built
