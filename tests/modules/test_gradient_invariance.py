"""However a step's samples are split over micro-batches and ranks, its gradient is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import tiny
from ranks.gradients import CASES, GLOBAL, TUNINGS, one_step

from ptft_lightning.handoff.bundle import open_bundle

TESTS = Path(__file__).parent.parent
cases = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def setup(store: Path, bpe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("gradients")
    file = tiny.write_examples(directory / "train.jsonl")
    places = {"store": store, "tokenizer": bpe_path, "examples": file, "run_dir": directory / "run"}
    return {name: str(place) for name, place in places.items()}


@pytest.fixture(scope="module")
def whole(setup: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Each case's step in one process and one micro-batch."""
    return {case: one_step(case, GLOBAL, setup) for case in CASES}


@pytest.fixture(scope="module")
def ranks(setup: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks saw; see `ranks.gradients`."""
    return seen_by(2, setup, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def four_ranks(setup: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What four saw."""
    return seen_by(4, setup, tmp_path_factory.mktemp("four"))


def seen_by(ranks: int, setup: dict[str, str], directory: Path) -> dict[str, Any]:
    (directory / "setup.json").write_text(json.dumps(setup))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", "ranks.gradients"]
    command += [str(directory / "setup.json"), str(directory / "out.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300 * ranks, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    results: dict[str, Any] = torch.load(directory / "out.pt", weights_only=True)
    return results


def assert_same(result: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert list(result["gradient"]) == list(wanted["gradient"])
    assert list(result["initial"]) == list(wanted["initial"])
    for name, gradient in wanted["gradient"].items():
        error = (result["gradient"][name] - gradient).norm() / gradient.norm()
        assert error < 1e-5, name
    for name, value in wanted["initial"].items():
        assert torch.equal(result["initial"][name], value), name
    assert result["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert result["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-5)


@cases
def test_every_parameter_has_a_gradient(case: str, whole: dict[str, Any]) -> None:
    gradients, initial = whole[case]["gradient"], whole[case]["initial"]
    parts = dict.fromkeys(TUNINGS, ("head.", "reader.")) | {"lora": ("head.", "lora_")}
    trained = [name for name in initial if any(p in name for p in parts.get(case, ("",)))]
    assert list(gradients) == trained
    for name, gradient in gradients.items():
        assert gradient.norm() > 0, name


@cases
@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_micro_batches(case: str, micro: int, whole: dict[str, Any], setup: dict[str, str]) -> None:
    assert_same(one_step(case, micro, setup), whole[case])


@pytest.mark.parametrize(
    ("row", "case"), [(24, "classification"), (17, "classification"), (30, "generation")]
)
def test_packing(row: int, case: str, whole: dict[str, Any], setup: dict[str, str]) -> None:
    """Shorter rows: other neighbours, other starts."""
    assert_same(one_step(case, GLOBAL, setup, row), whole[case])


@cases
@pytest.mark.parametrize("micro", [4, 3])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ranks(
    strategy: str, micro: int, case: str, ranks: dict[str, Any], whole: dict[str, Any]
) -> None:
    assert_same(ranks[f"{strategy}-{case}-{micro}"], whole[case])


@pytest.mark.slow
@pytest.mark.timeout(1500)
@cases
@pytest.mark.parametrize("micro", [2, 1])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_four_ranks(
    strategy: str, micro: int, case: str, four_ranks: dict[str, Any], whole: dict[str, Any]
) -> None:
    assert_same(four_ranks[f"{strategy}-{case}-{micro}"], whole[case])


def test_sharding_over_some_ranks_is_refused(ranks: dict[str, Any]) -> None:
    """They would train apart. That `fsdp2` shards over all is what `test_ranks` rests on."""
    assert "shards over 1 of 2 ranks" in ranks["refusal"]
    assert "configs/trainer/fsdp.yaml" in ranks["refusal"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_mixed_precision_with_fused_optimizer_and_clipping(
    strategy: str, ranks: dict[str, Any], whole: dict[str, Any]
) -> None:
    assert ranks[f"{strategy}-mixed"]["grad_norm"] == pytest.approx(
        whole["causal"]["grad_norm"], rel=0.02
    )


def test_bundle_beside_a_sharded_checkpoint(ranks: dict[str, Any], setup: dict[str, str]) -> None:
    run_dir = Path(setup["run_dir"])
    beside = open_bundle(run_dir / "checkpoints" / "step=00000001.ckpt")
    for bundle in (beside, open_bundle(run_dir)):
        trained = ranks["sharded"]["parameters"]
        assert sorted(bundle.names()) == sorted(trained)
        for name, value in trained.items():
            assert torch.equal(bundle.tensor(name), value), name
        assert bundle.lineage["steps"] == 1
