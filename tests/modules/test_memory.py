"""Phase two loads a bundle into shards: no rank ever holds the whole model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import tiny

from ptft_lightning.data.tokenizer import Tokenizer

TESTS = Path(__file__).parent.parent
MB = 10**6


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_rank_holds_its_part_and_one_tensor(ranks: int, bpe: Tokenizer, tmp_path: Path) -> None:
    shape = {"dim": 512, "depth": 16, "heads": 8}
    bundle = tiny.bundle(tmp_path / "bundle", bpe, **shape)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", "ranks.memory", str(bundle)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    subprocess.run([*command, str(tmp_path / "seen")], env=environment, check=True, timeout=240)
    for rank in range(ranks):
        seen = json.loads((tmp_path / f"seen-{rank}.json").read_text())
        print({name: round(size / MB, 1) for name, size in seen.items()})
        assert seen["whole"] > 200 * MB
        assert seen["part"] == pytest.approx(seen["whole"] / ranks, rel=0.02)
        # The tensor as it is read, converted and cut, and what allocators round up to.
        assert seen["grew"] < seen["part"] + 3 * seen["largest"] + 8 * MB
        assert seen["grew"] > 0.9 * seen["part"]
