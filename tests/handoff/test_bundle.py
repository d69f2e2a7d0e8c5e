"""The bundle: what is written is read, whole or not at all, and nothing in it is executed."""

from __future__ import annotations

import json
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import tiny
from torch import Tensor

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.handoff import bundle as module
from ptft_lightning.handoff.bundle import Bundle, open_bundle, write_bundle
from ptft_lightning.modules.checkpoints import Checkpoints
from ptft_lightning.objectives.masked import MaskedLM

FILES = {"model.safetensors", "config.json", "tokenizer.json", "lineage.json", "README.md"}
CONFIG = {"phase": "pretrain", "backbone": {"kind": "transformer"}, "head": {"name": "causal"}}


def tensors(first: float = 1.0) -> dict[str, Tensor]:
    ramp = torch.arange(6.0).reshape(2, 3)
    return {
        "backbone.a": ramp * first,
        "backbone.turned": ramp.T,  # not contiguous
        "head.b": torch.full((3,), -0.0, dtype=torch.bfloat16),
    }


def write(place: Path, tokenizer: Tokenizer, first: float = 1.0, **config: Any) -> Path:
    write_bundle(place, {**CONFIG, **config}, tokenizer, tensors(first), {"steps": 7}, "# Été\n")
    return place


def assert_holds(bundle: Bundle, wanted: dict[str, Tensor]) -> None:
    assert sorted(bundle.names()) == sorted(wanted)
    for name, value in wanted.items():
        got = bundle.tensor(name)
        assert got.dtype == value.dtype
        assert torch.equal(got, value), name


def test_what_is_written_is_read(tmp_path: Path, bpe: Tokenizer) -> None:
    place = write(tmp_path / "bundle", bpe)
    assert {p.name for p in place.iterdir()} == FILES
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    opened = open_bundle(place)
    assert_holds(opened, tensors())
    assert opened.config == {"format": 1, **CONFIG}
    assert opened.lineage == {"steps": 7}
    assert opened.tokenizer.fingerprint == bpe.fingerprint
    assert (place / "README.md").read_text(encoding="utf-8") == "# Été\n"


def test_no_pickle(tmp_path: Path, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was called")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("save", "load"):
        monkeypatch.setattr(torch, name, refuse)
    place = write(tmp_path / "bundle", bpe)
    assert_holds(open_bundle(place), tensors())


def test_hash_names_config_and_weights(tmp_path: Path, bpe: Tokenizer) -> None:
    one = write(tmp_path / "one", bpe)
    write_bundle(tmp_path / "two", CONFIG, bpe, tensors(), {"steps": 8}, "another card")
    wanted = open_bundle(one).hash
    assert len(wanted) == 16
    assert open_bundle(tmp_path / "two").hash == wanted
    assert open_bundle(write(tmp_path / "three", bpe, first=1.0000001)).hash != wanted
    assert open_bundle(write(tmp_path / "four", bpe, phase="finetune")).hash != wanted


@pytest.mark.parametrize("part", ["save_file", "write_atomically", "replace_directory"])
def test_an_error_leaves_the_old_bundle(
    part: str, tmp_path: Path, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write(tmp_path / "bundle", bpe)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, part, fail)
    with pytest.raises(OSError, match="No space"):
        write(place, bpe, first=2.0)
    monkeypatch.undo()
    assert_holds(open_bundle(place), tensors())
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"], "a full disk is not filled further"
    assert_holds(open_bundle(write(place, bpe, first=2.0)), tensors(2.0))
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("part", ["save_file", "write_atomically", "replace_directory"])
def test_a_kill_leaves_the_old_bundle(part: str, tmp_path: Path, bpe: Tokenizer) -> None:
    place = write(tmp_path / "bundle", bpe)
    child = os.fork()
    if not child:
        setattr(module, part, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        write(place, bpe, first=2.0)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert_holds(open_bundle(place), tensors())
    assert_holds(open_bundle(write(place, bpe, first=2.0)), tensors(2.0))


@pytest.fixture(scope="module")
def run_dir(store: Path, bpe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    checkpoints = Checkpoints()
    checkpoints.run_dir = tmp_path_factory.mktemp("run")
    data = tiny.corpus(store, bpe_path, global_batch_size=4, micro_batch_size=4)
    tiny.fit(tiny.pretrain(MaskedLM()), data, steps=2, callbacks=[checkpoints])
    return checkpoints.run_dir


def test_a_run_opens_by_its_directory_its_bundle_and_its_checkpoint(
    run_dir: Path, bpe: Tokenizer
) -> None:
    checkpoint = run_dir / "checkpoints" / "step=00000002.ckpt"
    opened = [open_bundle(place) for place in (run_dir, run_dir / "bundle", checkpoint)]
    for other in opened[1:]:
        assert other.config == opened[0].config
        assert_holds(other, {name: opened[0].tensor(name) for name in opened[0].names()})
    assert {b.tokenizer.fingerprint for b in opened} == {bpe.fingerprint}
    assert len({b.hash for b in opened}) == 1
    assert opened[2].lineage["steps"] == 2
    assert not [name for name in opened[2].names() if name.startswith("net.")]


def test_a_checkpoint_executes_nothing(run_dir: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    file = tmp_path / "x.ckpt"
    torch.save({"state_dict": {}, "bundle": Bomb()}, file)
    with pytest.raises(UserError, match="cannot be loaded"):
        open_bundle(file)
    assert not (tmp_path / "executed").exists()


def damaged(kind: str, place: Path, tokenizer: Tokenizer) -> Path:
    """What a user may name by mistake."""
    file = place / "x.ckpt"
    if kind == "nothing there":
        return place / "nothing"
    if kind == "an empty directory":
        (place / "empty").mkdir()
        return place / "empty"
    if kind == "another kind of file":
        file = place / "x.txt"
        file.write_text("text")
        return file
    if kind in ("a torn checkpoint", "a foreign checkpoint"):
        torch.save({"state_dict": {"w": torch.ones(100)}}, file)
        if kind == "a torn checkpoint":
            file.write_bytes(file.read_bytes()[:-100])
        return file
    bundle = write(place / "bundle", tokenizer)
    if kind == "another format":
        (bundle / "config.json").write_text(json.dumps({"format": 99}))
    elif kind == "broken config":
        (bundle / "config.json").write_text("{")
    elif kind == "broken tensors":
        file = bundle / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-3])
    elif kind == "no tokenizer":
        (bundle / "tokenizer.json").unlink()
    elif kind == "broken tokenizer":
        (bundle / "tokenizer.json").write_text("{}")
    return bundle


def open_everything(place: Path) -> tuple[list[str], Tokenizer]:
    bundle = open_bundle(place)
    return bundle.names(), bundle.tokenizer


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nothing there", "bundle not found: '{place}'"),
        ("an empty directory", "'{place}' is not a bundle: expected"),
        ("another kind of file", "'{place}' is not a bundle: expected"),
        ("a torn checkpoint", "'{place}' is torn"),
        ("a foreign checkpoint", "'{place}' is a checkpoint of another program"),
        ("another format", "'{place}' has bundle format 99, this version reads 1"),
        ("broken config", "'{place}/config.json' is not JSON"),
        ("broken tensors", "'{place}/model.safetensors' cannot be read"),
        ("no tokenizer", "'{place}/tokenizer.json' is missing"),
        ("broken tokenizer", "'{place}' has a broken tokenizer"),
    ],
)
def test_mistakes_are_one_line(kind: str, words: str, tmp_path: Path, bpe: Tokenizer) -> None:
    place = damaged(kind, tmp_path, bpe)
    with pytest.raises(UserError) as refused:
        open_everything(place)
    message = str(refused.value)
    assert words.format(place=place) in message
    assert "\n" not in message
