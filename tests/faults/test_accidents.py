"""A hundred kills at random moments: what comes out is what an undisturbed run gives.

In a step, in a save, in a worker, while it starts; alone and as two ranks; and while a corpus is
prepared. test_resume.py and data/test_prepare.py have the short ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from faults.kit import (
    assert_same_weights,
    done,
    finish,
    launch,
    pretrain,
    read_audit,
    read_metrics,
    words,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parent.parent.parent
DDP = {"trainer.devices": 2, "config": str(ROOT / "configs" / "trainer" / "ddp.yaml")}
KILLS = int(os.environ.get("PTFT_KILLS", "25"))  # of each kind
START_S = 8.0  # about as long as a fit takes to begin
STEP_S = 0.2  # a step and its save


def children(process: subprocess.Popen[str]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []


def strike(process: subprocess.Popen[str], rng: random.Random, one: bool) -> None:
    """SIGKILL to the whole group, or to one of its processes: a worker, or a rank."""
    if one and (alive := children(process)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(alive), signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)  # it should notice by itself
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def lines_in(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def killed_fit(options: dict[str, Any], rng: random.Random, one: bool) -> int:
    """Resume a fit until it was killed KILLS times, and then to its end; how often it was."""
    audit, kills = Path(options["data.audit"]), 0
    while kills < KILLS:
        process = launch(words("fit", options | {"ckpt_path": "last"}))
        try:
            if rng.random() < 0.2:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(0, START_S))
            else:
                before, more = lines_in(audit), rng.randint(1, 3)
                began = time.monotonic()
                while process.poll() is None and time.monotonic() - began < 120:
                    # A resume first cuts what the checkpoint does not know.
                    if lines_in(audit) > before or time.monotonic() - began > 60:
                        break
                    before = min(before, lines_in(audit))
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, more * STEP_S))
            if process.poll() is not None:  # it came to its end before
                break
            kills += 1
        finally:
            strike(process, rng, one and rng.random() < 0.5)
    done_ = finish(launch(words("fit", options | {"ckpt_path": "last"})), timeout=600)
    assert done_.code == 0, done_.err
    return kills


@pytest.mark.parametrize(
    ("name", "more", "one"),
    [
        ("alone", {}, False),
        ("with workers", {"data.workers": 2}, True),
        ("two ranks", DDP, True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fit_killed_at_random_moments_is_the_undisturbed_one(
    name, more, one, store, bpe_path, tmp_path
):
    steps = {"trainer.max_steps": 6 * KILLS, "checkpoint.every_n_steps": 1}
    quiet = {"trainer.val_check_interval": 2 * KILLS}
    whole = pretrain(tmp_path / "whole", store, bpe_path) | steps | quiet | more
    parts = pretrain(tmp_path / "parts", store, bpe_path) | steps | quiet | more
    run = finish(launch(words("fit", whole)), timeout=900)
    assert run.code == 0, run.err
    kills = killed_fit(parts, random.Random(name), one)
    assert kills >= KILLS // 2
    assert read_audit(tmp_path / "parts") == read_audit(tmp_path / "whole")
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    print(f"{name}: {kills} kills survived")


def test_a_run_goes_through_one_two_four_and_one_ranks(store, bpe_path, tmp_path):
    """With other workers and micro-batches each time; the samples are those of one rank."""
    one = pretrain(tmp_path / "one", store, bpe_path, data__global_batch_size=12)
    done(words("fit", one | {"trainer.max_steps": 16}))
    options = pretrain(tmp_path / "many", store, bpe_path, data__global_batch_size=12)
    ddp = str(ROOT / "configs" / "trainer" / "ddp.yaml")
    for ranks, workers, micro, until in ((1, 0, 4, 4), (2, 2, 3, 8), (4, 1, 2, 12), (1, 2, 6, 16)):
        more = {"data.workers": workers, "data.micro_batch_size": micro, "ckpt_path": "last"}
        if ranks > 1:
            more |= {"trainer.devices": ranks, "config": ddp}
        run = finish(launch(words("fit", options | more | {"trainer.max_steps": until})), 600)
        assert run.code == 0, run.err
    assert read_audit(tmp_path / "many") == read_audit(tmp_path / "one")


def test_a_corpus_whose_preparation_is_killed_at_random_moments_has_the_same_bytes(
    bpe_path, tmp_path
):
    rng = random.Random(0)
    text = [
        " ".join(rng.choices(["river", "stone", "winter", "letter", "green"], k=60))
        for _ in range(400 * KILLS)
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in text))
    given = {"files": [str(tmp_path / "corpus.jsonl")], "tokenizer": str(bpe_path)}
    given |= {"unit_bytes": 20_000, "validation_share": 0.1}
    done(words("prepare", given | {"output": str(tmp_path / "whole")}))
    kills, parts = 0, tmp_path / "parts"
    while kills < KILLS:
        process = launch(words("prepare", given | {"output": str(parts)}))
        before = len(list(parts.glob("shard-*.json")))
        wanted = before + rng.randint(0, 3)
        while process.poll() is None and len(list(parts.glob("shard-*.json"))) < wanted:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        if process.poll() is not None:
            break
        kills += 1
        strike(process, rng, one=False)
    done(words("prepare", given | {"output": str(parts)}))
    assert kills == KILLS
    for file in sorted((tmp_path / "whole").iterdir()):
        assert (parts / file.name).read_bytes() == file.read_bytes(), file.name
    assert {f.name for f in parts.iterdir()} == {f.name for f in (tmp_path / "whole").iterdir()}
    print(f"prepare: {kills} kills survived")
