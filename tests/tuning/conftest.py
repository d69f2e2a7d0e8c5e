"""Tiny products on one thread: threads that wait for each other's core cost a hundredfold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import tiny

from ptft_lightning.data.example_rows import ExampleDataset
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.steps import Slots
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.modules.nets import TaskNet
from ptft_lightning.tuning.base import Tuning

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_examples(tmp_path_factory.mktemp("examples") / "train.jsonl")


@pytest.fixture(scope="session", params=["masked", "causal"])
def either(
    request: pytest.FixtureRequest, bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle of phase one, of each kind."""
    return tiny.bundle(tmp_path_factory.mktemp("either") / "bundle", bpe, request.param)


@pytest.fixture(scope="session")
def base(bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of phase one."""
    return tiny.bundle(tmp_path_factory.mktemp("base") / "bundle", bpe)


def trained(base: Path, file: Path, tuning: Tuning, **changes: Any) -> Any:
    """A module after 3 steps; `module.began` is what its parameters were."""
    sizes = {"global_batch_size": 7, "micro_batch_size": 4, "validation_share": 0.3}
    module: Any = tiny.finetune(init_from=str(base), tuning=tuning, **changes)
    gradients = tiny.Gradients()
    tiny.fit(module, tiny.examples(file, None, **sizes), steps=3, callbacks=[gradients])
    module.began = gradients.initial
    return module


def rows_of(dataset: ExampleDataset, numbers: Ids) -> Any:
    """A batch of some examples."""
    return dataset[Slots(numbers, numbers)]


def scores(net: TaskNet, dataset: ExampleDataset, numbers: Ids) -> torch.Tensor:
    """(E, classes) of some examples in one batch."""
    with torch.no_grad():
        found = net.eval()(rows_of(dataset, numbers)).scores
    assert found is not None
    return found
