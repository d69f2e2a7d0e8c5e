"""Hidden states kept on disk give what the backbone gives, are computed once, and are whole."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ranks import tiny
from tuning.conftest import rows_of

from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.data.examples import Columns
from ptft_lightning.errors import UserError
from ptft_lightning.tasks.classification import Classification
from ptft_lightning.tasks.generation import Generation
from ptft_lightning.tasks.matching import Matching
from ptft_lightning.tuning import features
from ptft_lightning.tuning.frozen import Frozen

SIZES = {"global_batch_size": 7, "micro_batch_size": 4, "validation_share": 0.3}
mixes = pytest.mark.parametrize("mix", [False, True])


class Run:
    """Eight steps, two validations; the losses, and how often the backbone ran."""

    def __init__(
        self, base: Path, file: Path, tuning: Frozen, steps: int = 8, **changes: Any
    ) -> None:
        self.calls = 0
        task = changes.pop("task", Classification(dropout=0.0))
        module: Any = tiny.finetune(init_from=str(base), tuning=tuning, task=task)
        whole = Transformer.forward

        def counted(backbone: Transformer, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.calls += 1
            return whole(backbone, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Transformer, "forward", counted)
            options: dict[str, Any] = {
                "limit_val_batches": 1.0,
                "val_check_interval": min(4, steps),
            }
            data = tiny.examples(file, None, **{**SIZES, **changes})
            trainer = tiny.fit(module, data, steps=steps, **options)
        self.module, self.data = module, data
        self.losses = [
            module.train_values["train_loss"],
            float(trainer.callback_metrics["val_loss"]),
        ]
        self.parameters = tiny.parameters(module)


def named(place: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in place.iterdir()}


@mixes
@pytest.mark.parametrize("workers", [0, 1])
def test_training_is_the_same_without_the_backbone(
    mix: bool, workers: int, base: Path, file: Path, tmp_path: Path
) -> None:
    plain = Run(base, file, Frozen(mix=mix))
    kept = Run(base, file, Frozen(cache=str(tmp_path), mix=mix), workers=workers)
    assert kept.losses == pytest.approx(plain.losses, rel=1e-5)
    for name, value in plain.parameters.items():
        torch.testing.assert_close(kept.parameters[name], value, rtol=1e-5, atol=1e-6)
    # Each example once, in micro-batches of 4; against every step and validation.
    sets = [len(kept.data.datasets[split]) for split in ("train", "validation")]
    assert kept.calls == sum(-(-count // 4) for count in sets)
    assert plain.calls == 8 * 2 + 2 * -(-sets[1] // 4)
    assert len(named(tmp_path)) == 2


def test_examples_of_two_texts_read_apart(base: Path, tmp_path: Path) -> None:
    rows = [{"text": "river stone " * (i % 4 + 1), "second": "bread " * (i % 3)} for i in range(23)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = Columns(text="text", pair="second")
    plain = Run(base, file, Frozen(mix=True), task=Matching(), columns=columns)
    cache = Frozen(cache=str(tmp_path / "kept"), mix=True)
    kept = Run(base, file, cache, task=Matching(), columns=columns)
    assert kept.losses == pytest.approx(plain.losses, rel=1e-5)
    assert kept.calls < plain.calls


@mixes
def test_a_second_run_reads_what_the_first_kept(
    mix: bool, base: Path, file: Path, tmp_path: Path
) -> None:
    first = Run(base, file, Frozen(cache=str(tmp_path), mix=mix))
    before = named(tmp_path)
    again = Run(base, file, Frozen(cache=str(tmp_path), mix=mix))
    assert again.calls == 0
    assert again.losses == first.losses
    assert named(tmp_path) == before
    # Other layers, tokens or precision are other files.
    Run(base, file, Frozen(cache=str(tmp_path), mix=not mix), steps=1)
    Run(base, file, Frozen(cache=str(tmp_path), mix=mix), steps=1, max_length=6)
    Run(base, file, Frozen(cache=str(tmp_path), mix=mix, cache_dtype="float16"), steps=1)
    assert len(named(tmp_path)) == 2 + 2 + 2 + 1  # validation's are float32
    assert before.items() <= named(tmp_path).items()


def test_states_are_the_backbone_s(base: Path, file: Path, tmp_path: Path) -> None:
    run = Run(base, file, Frozen(cache=str(tmp_path)), steps=1)
    dataset, net = run.data.datasets["train"], run.module.net.eval()
    batch = rows_of(dataset, np.array([2, -1, 0, 5, 1]))
    assert batch.documents is not None
    with torch.no_grad():
        wanted = net.backbone(batch.tokens, batch.documents, batch.positions, batch.segments)
    got = batch.targets["hidden"]
    real = batch.documents > 0
    torch.testing.assert_close(got[real], wanted[real], atol=1e-5, rtol=1e-5)
    assert (got[~real] == 0).all()


def test_half_precision_takes_half_the_room(base: Path, file: Path, tmp_path: Path) -> None:
    plain = Run(base, file, Frozen())
    kept = Run(base, file, Frozen(cache=str(tmp_path), cache_dtype="float16"))
    assert kept.losses == pytest.approx(plain.losses, rel=1e-3)
    assert kept.losses != plain.losses
    widths = {np.load(p, mmap_mode="r").dtype.itemsize for p in tmp_path.iterdir()}
    assert widths == {2, 4}


@pytest.mark.parametrize("damage", ["torn", "garbage", "empty", "of another shape"])
def test_a_damaged_file_is_made_again(damage: str, base: Path, file: Path, tmp_path: Path) -> None:
    first = Run(base, file, Frozen(cache=str(tmp_path)), steps=1)
    whole = {p: p.read_bytes() for p in tmp_path.iterdir()}
    for path, content in whole.items():
        if damage == "of another shape":
            np.save(path, np.zeros((3, 32), np.float32))
        else:
            content = {"torn": content[:-100], "garbage": b"\0garbage" * 99, "empty": b""}[damage]
            path.write_bytes(content)
    again = Run(base, file, Frozen(cache=str(tmp_path)), steps=1)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == whole
    assert again.losses == first.losses


def test_what_killed_runs_left_is_removed(base: Path, file: Path, tmp_path: Path) -> None:
    old, fresh = tmp_path / ".a.npy.1.tmp", tmp_path / ".b.npy.1.tmp"
    for path in (old, fresh):
        path.write_bytes(b"x")
    os.utime(old, (0, time.time() - 2 * features.STALE_S))
    Run(base, file, Frozen(cache=str(tmp_path)), steps=1)
    assert not old.exists()
    assert fresh.exists()  # perhaps of a run that is writing


def test_nothing_is_left_of_a_write_that_failed(
    base: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        Run(base, file, Frozen(cache=str(tmp_path)), steps=1)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_half_precision_cannot_hold_are_refused(
    base: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = features._read

    def large(*args: Any) -> Any:
        return ((numbers, states * 1e7) for numbers, states in whole(*args))

    monkeypatch.setattr(features, "_read", large)
    with pytest.raises(UserError, match=r"do not fit tuning\.cache_dtype float16"):
        Run(base, file, Frozen(cache=str(tmp_path), cache_dtype="float16"), steps=1)
    assert list(tmp_path.iterdir()) == []


def test_more_than_the_limit_or_the_disk_holds_is_refused(
    base: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tuning, words in (
        (Frozen(cache=str(tmp_path), cache_limit_gb=1e-5), r"cache_limit_gb is 1e-05: raise it"),
        (Frozen(cache=str(tmp_path)), r"has room for 0: name another place"),
    ):
        if tuning.cache_limit_gb > 1:
            full = type("Usage", (), {"free": 0})
            monkeypatch.setattr(features.shutil, "disk_usage", lambda place, full=full: full)
        with pytest.raises(UserError, match=words):
            Run(base, file, tuning, steps=1)
    assert list(tmp_path.iterdir()) == []


def test_states_that_a_prefix_lm_would_not_see_are_refused(tmp_path: Path) -> None:
    net = SimpleNamespace(backbone=SimpleNamespace(prefix_lm=True))
    module = SimpleNamespace(data=None, net=net, task=Generation())
    with pytest.raises(UserError, match="a prefix-LM, which reads prompts in both"):
        features.store_features(module, tmp_path, "float32", 1.0)


def test_stored_states_travel_by_name(tmp_path: Path) -> None:
    """To workers that are spawned; a map would travel as its content."""
    array = np.arange(7 * 3, dtype=np.float32).reshape(7, 3)
    np.save(tmp_path / "a.npy", array)
    stored = features.StoredStates(tmp_path / "a.npy", np.array([2, 4, 1]), np.array([1, 2]))
    assert stored.array.shape == (7, 3)
    sent = pickle.dumps(stored.place)
    assert len(sent) < 1000
    placed = pickle.loads(sent)(
        np.array([1, -1, 0]), np.array([1, 0, 0, 0]), np.array([0, 3, 0, 1]), (2, 5)
    )
    wanted = np.zeros((2, 5, 3), np.float32)
    wanted[1, :4], wanted[0, 3], wanted[0, 1:3] = array[2:6], array[6], array[:2]
    assert np.array_equal(placed, wanted)


@pytest.mark.parametrize("pooling", ["first", "last", "mean", "attention"])
def test_a_frozen_backbone_has_no_dropout(
    pooling: Any, base: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning 2.6.6 leaves modes as they are; so that features are features."""
    seen = []
    monkeypatch.setattr(
        tiny.Gradients,
        "on_before_optimizer_step",
        lambda self, trainer, module, optimizer: seen.append(
            (module.net.backbone.training, module.net.head.training)
        ),
    )
    module = tiny.finetune(
        init_from=str(base), tuning=Frozen(), task=Classification(pooling=pooling)
    )
    data = tiny.examples(file, None, **SIZES)
    options: dict[str, Any] = {"limit_val_batches": 1.0, "val_check_interval": 1}
    tiny.fit(module, data, steps=2, callbacks=[tiny.Gradients()], **options)
    assert seen == [(False, True)] * len(seen)
    assert seen
