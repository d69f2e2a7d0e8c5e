"""ELECTRA: what we pretrained is theirs without the generator, theirs goes on with a new one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from faults.kit import BACKBONE, Run, call, done, pretrain, weights, words
from interop.conftest import SHAPE, WORDPIECE, build_peer, edit_config

from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.interop.open import open_model
from ptft_lightning.modules.nets import build_backbone
from ptft_lightning.objectives.replaced import ReplacedTokens

LIKE_BERT = {
    **BACKBONE,
    "causal": False,
    "norm_first": False,
    "positions": "learned",
    "token_types": 2,
    "embedding_norm": True,
    "norm_eps": 1e-6,
}


def electra(run_dir: Path, store: Path, tokenizer: Path, **more: Any) -> dict[str, Any]:
    options = pretrain(run_dir, store, tokenizer, causal=False, **more)
    return {**options, "model.objective": "ReplacedTokens", "model.backbone": LIKE_BERT}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("electra")


@pytest.fixture(scope="module")
def source(folder_of: Any, place: Path) -> Path:
    return folder_of("electra", place / "source", build_peer("electra"))


@pytest.fixture(scope="module")
def pretraining(source: Path, corpus_file: Path, place: Path) -> Run:
    """Goes on from theirs for a few steps."""
    options = electra(place / "run", place / "store", source, trainer__max_steps=3)
    options |= {"model.backbone": None, "model.init_from": str(source)}
    return done(words("fit", options | {"data.files": [str(corpus_file)]}))


@pytest.fixture(scope="module")
def exported(pretraining: Run, place: Path) -> Path:
    run = done(["export", "--init_from", place / "run", "--output", place / "hf"])
    assert "ElectraForPreTraining, as transformers computes it" in run.out
    assert "electra has no generator beside the detector: left out" in run.err
    return place / "hf"


def test_theirs_goes_on_with_a_new_generator(pretraining: Run, source: Path, place: Path) -> None:
    assert "head 'replaced': what it shares with 'detector', the rest is new" in pretraining.err
    (new,) = re.findall(r"new: (.+?); unused: nothing", pretraining.err)
    before, after = open_model(source), weights(place / "run")
    generator = after.keys() - set(before.names())
    assert {"head.generator.narrow.weight", "head.projection.bias"} < generator
    assert all(name.startswith(("head.generator", "head.widen", "head.proj")) for name in generator)
    assert new.startswith("head.generator.")
    for name in before.names():  # of standard deviation 0.3, a little moved
        torch.testing.assert_close(after[name], before.tensor(name), atol=0.03, rtol=0)
    assert not torch.equal(after["head.dense.weight"], before.tensor("head.dense.weight"))


def test_the_detector_judges_as_theirs(exported: Path, place: Path) -> None:
    """Of two texts in a row, told apart by their types, and of shorter rows."""
    peer, found = transformers.ElectraForPreTraining.from_pretrained(
        exported, output_loading_info=True
    )
    assert not [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
    bundle = open_bundle(place / "run")
    shape, objective = bundle.config["backbone"], ReplacedTokens(**bundle.config["head"]["config"])
    backbone: Any = build_backbone(**shape)
    net = torch.nn.ModuleDict({"backbone": backbone, "head": objective.build_head(backbone, True)})
    net.load_state_dict({name: bundle.tensor(name) for name in bundle.names()})
    net.eval()
    real = torch.arange(24) < torch.tensor([24, 13, 2])[:, None]
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(8, shape["vocab_size"], real.shape, generator=draw).where(real, 0)
    types = (torch.arange(24) >= 11).long().expand(real.shape)
    with torch.no_grad():
        ours = net["head"].detect(net["backbone"](tokens, real.long(), None, types))
        theirs = peer.eval()(
            input_ids=tokens, attention_mask=real.long(), token_type_ids=types
        ).logits
    assert ours.shape == theirs.shape == real.shape
    assert theirs[real].std() > 0.1, "a flat model would agree with anything"
    torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=0)


def test_one_from_scratch_is_written(store: Path, bpe_path: Path, tmp_path: Path) -> None:
    done(words("fit", electra(tmp_path / "run", store, bpe_path, trainer__max_steps=1)))
    run = done(["export", "--init_from", tmp_path / "run", "--output", tmp_path / "hf"])
    assert "ElectraForPreTraining, as transformers computes it" in run.out
    again = open_model(tmp_path / "hf")
    ours = weights(tmp_path / "run")
    assert again.names()
    assert [n for n in again.names() if not torch.equal(again.tensor(n), ours[n])] == []


def test_a_narrow_embedding_is_refused(folder_of: Any, tmp_path: Path) -> None:
    """As ELECTRA-small has it; a file that does not tell its width has that of the small size."""
    for number, width in enumerate((16, None)):
        config = {**SHAPE, **WORDPIECE, "embedding_size": width or 32}
        peer = transformers.ElectraForPreTraining(transformers.ElectraConfig(**config))
        source = folder_of("electra", tmp_path / str(number), peer)
        edit_config(source, embedding_size=width)
        run = call(["export", "--init_from", source, "--output", tmp_path / "out"])
        assert run.code == 2
        (line,) = run.errors
        assert f"embedding_size {width or 128} and hidden_size 32" in line
        assert "discriminators of the base and large sizes load" in line
    assert not (tmp_path / "out").exists()


def test_what_a_detector_is_not_for(exported: Path, folder_of: Any, tmp_path: Path) -> None:
    run = call(["score", "--init_from", exported, "--text", "The river."])
    assert run.code == 2
    assert "which predicts no tokens" in run.errors[0]
    out = tmp_path / "out"
    run = call(["export", "--init_from", exported, "--output", out, "--format", "onnx"])
    assert run.code == 2
    assert "which is no logits of tokens" in run.errors[0]
    gpt2 = folder_of("gpt2", tmp_path / "gpt2", build_peer("gpt2"))
    run = call(["export", "--init_from", gpt2, "--output", out, "--family", "electra"])
    assert run.code == 2
    wanted = "the head is 'causal' and would have to be replaced or masked or classification"
    assert wanted in run.errors[0]
    assert not out.exists()


def test_masked_as_either_family(folder_of: Any, tmp_path: Path) -> None:
    """The same computation under two names: that of the folder, or the one asked for."""
    peer = build_peer("electra masked")
    source = folder_of("electra masked", tmp_path / "source", peer)
    given = ["export", "--init_from", source, "--output"]
    assert "ElectraForMaskedLM, as" in done([*given, tmp_path / "electra"]).out
    run = done([*given, tmp_path / "bert", "--family", "bert"])
    assert "BertForMaskedLM, as" in run.out
    tokens = torch.arange(10, 30)[None]
    other = transformers.BertForMaskedLM.from_pretrained(tmp_path / "bert").eval()
    with torch.no_grad():
        torch.testing.assert_close(other(tokens).logits, peer(tokens).logits, atol=1e-4, rtol=0)
