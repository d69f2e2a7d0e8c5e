"""A run that was stopped and resumed equals one that was not: samples, losses, weights."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.kit import (
    assert_same_weights,
    call,
    child_of,
    done,
    finetune,
    finish,
    kill_at,
    launch,
    pretrain,
    read_audit,
    read_metrics,
    wait_for_lines,
    weights,
    words,
    write_examples,
)
from safetensors.torch import load_file, save_file

from ptft_lightning.cli import main
from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.modules.checkpoints import Checkpoints, last_checkpoint, list_checkpoints
from ptft_lightning.modules.preempt import EXIT_CODE

STEPS = 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> Path:
    """A phase-one run to start phase two from."""
    run_dir = tmp_path_factory.mktemp("bundle") / "run"
    done(words("fit", pretrain(run_dir, store, bpe_path, trainer__max_steps=2)))
    return run_dir


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("examples"))


class Options:
    """Options of runs of one phase."""

    def __init__(self, phase: str, directory: Path, inputs: tuple[Path, Path]) -> None:
        self.phase, self.directory, self.inputs = phase, directory, inputs

    def __call__(self, run: str, **more: Any) -> dict[str, Any]:
        """Of a run in the test's own directory, of `STEPS` steps."""
        if self.phase == "pretrain":
            length, make = {"trainer__max_steps": STEPS}, pretrain
        else:
            length, make = {"trainer__max_epochs": STEPS // 5}, finetune
        return make(self.directory / run, *self.inputs, **{**length, **more})


@pytest.fixture(scope="module")
def inputs(
    store: Path, bpe_path: Path, bundle: Path, examples: Path
) -> dict[str, tuple[Path, Path]]:
    """What a run of each phase starts from."""
    return {"pretrain": (store, bpe_path), "finetune": (bundle, examples)}


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, tuple[Path, Path]]
) -> dict[str, Path]:
    """A run of each phase that nothing stopped."""
    at = tmp_path_factory.mktemp("undisturbed")
    for phase, given in inputs.items():
        done(words("fit", Options(phase, at, given)(phase)))
    return {phase: at / phase for phase in inputs}


@pytest.fixture
def options(
    request: pytest.FixtureRequest, tmp_path: Path, inputs: dict[str, tuple[Path, Path]]
) -> Options:
    """Of the phase that the test is parametrised with."""
    return Options(request.param, tmp_path, inputs[request.param])


both_phases = pytest.mark.parametrize("options", ["pretrain", "finetune"], indirect=True)
phase_one = pytest.mark.parametrize("options", ["pretrain"], indirect=True)


def resume(options: dict[str, Any], **environment: str) -> Any:
    return call(words("fit", options | {"ckpt_path": "last"}), **environment)


def assert_same_runs(one: Path, other: Path) -> None:
    """Samples, their content, losses, learning rates, gradients, validations, final weights."""
    assert read_audit(one) == read_audit(other)
    assert read_metrics(one) == read_metrics(other)
    assert_same_weights(one, other)


# SIGKILL.


CASES = [(phase, workers) for phase in ("pretrain", "finetune") for workers in (0, 2)]


@pytest.fixture(scope="module")
def killed(
    tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, tuple[Path, Path]]
) -> dict[tuple[str, int], dict[str, Any]]:
    """The options of runs that were killed, each at another step; see the slow test for more."""
    at, rng = tmp_path_factory.mktemp("killed"), random.Random(0)
    runs = {}
    for phase, workers in CASES:
        options = Options(phase, at, inputs[phase])
        runs[phase, workers] = options(f"{phase}{workers}", data__workers=workers)
    steps = rng.sample(range(2, STEPS - 6), len(CASES))
    audits = [Path(run["data.audit"]) for run in runs.values()]
    args = [words("fit", run) for run in runs.values()]
    kill_at(list(zip(args, audits, steps, strict=True)))
    return runs


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_killed_run_resumes_to_the_same_bits(killed, undisturbed, case):
    run_dir = Path(killed[case]["run_dir"])
    assert len(read_audit_so_far(run_dir)) < STEPS
    done(words("fit", killed[case] | {"ckpt_path": "last"}))
    assert_same_runs(undisturbed[case[0]], run_dir)


def read_audit_so_far(run_dir: Path) -> list[str]:
    """The lines of an audit whose last one may be torn."""
    return (run_dir / "audit").read_text().splitlines()


@both_phases
def test_a_run_that_ends_right_after_a_save_has_the_row_of_its_step(
    options, undisturbed, monkeypatch
):
    """Nothing comes between the checkpoint of a step and what is told of it."""
    save, parts = Checkpoints.save, options("parts", checkpoint__every_n_steps=7)

    def last(self: Checkpoints, trainer: Any) -> None:
        save(self, trainer)
        raise RuntimeError("the machine burns")

    monkeypatch.setattr(Checkpoints, "save", last)
    with pytest.raises(RuntimeError, match="the machine burns"):
        call(words("fit", parts))
    monkeypatch.undo()
    run_dir = Path(parts["run_dir"])
    assert list_checkpoints(run_dir / "checkpoints")[-1].name == "step=00000007.ckpt"
    assert read_metrics(run_dir)[-1]["step"] == "7"
    assert resume(parts).code == 0
    assert_same_runs(undisturbed[options.phase], run_dir)


@pytest.mark.slow
@both_phases
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_again_and_again_resumes_to_the_same_bits(options, undisturbed, workers, seed):
    rng = random.Random(seed)
    kill_and_compare(options, undisturbed, workers, sorted(rng.sample(range(1, STEPS - 4), 4)))


def kill_and_compare(
    options: Options, undisturbed: dict[str, Path], workers: int, steps: list[int]
) -> None:
    parts = options("parts", data__workers=workers, ckpt_path="last")
    run_dir = Path(parts["run_dir"])
    for step in steps:
        kill_at([(words("fit", parts), run_dir / "audit", step)])
    done(words("fit", parts))
    assert len(read_audit(run_dir)) == STEPS
    assert_same_runs(undisturbed[options.phase], run_dir)


@phase_one
def test_what_a_killed_save_left_behind_is_removed(options, tmp_path):
    done(words("fit", options("run", trainer__max_steps=3)))
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "..step=00000006.ckpt.saving.99.tmp").write_bytes(b"half")
    (checkpoints / ".step=00000006.ckpt.saving").mkdir()
    done(words("fit", options("run", trainer__max_steps=5, ckpt_path="last")))
    left = sorted(path.name for path in checkpoints.iterdir())
    assert left == ["step=00000003.ckpt", "step=00000005.ckpt"]


# Torn checkpoints.


@phase_one
def test_a_torn_checkpoint_is_named_and_passed_over(options, undisturbed, tmp_path):
    run_dir = tmp_path / "torn"
    shutil.copytree(undisturbed["pretrain"], run_dir)
    newest = run_dir / "checkpoints" / "step=00000020.ckpt"
    os.truncate(newest, newest.stat().st_size // 2)
    run = done(words("fit", options("torn", ckpt_path="last")))
    assert f"checkpoint '{newest}' is torn: passed over" in run.err
    assert f"resuming from '{run_dir}/checkpoints/step=00000018.ckpt'" in run.err
    assert_same_runs(undisturbed["pretrain"], run_dir)


@phase_one
def test_a_torn_checkpoint_given_by_name_is_refused(options, tmp_path):
    done(words("fit", options("run", trainer__max_steps=3)))
    newest = tmp_path / "run" / "checkpoints" / "step=00000003.ckpt"
    os.truncate(newest, newest.stat().st_size // 2)
    run = call(words("fit", options("run", ckpt_path=str(newest))))
    assert run.code == 2
    assert run.err == f"error: --ckpt_path '{newest}' is torn or not a checkpoint: try 'last'\n"


@phase_one
def test_going_back_puts_later_checkpoints_aside(options, undisturbed, tmp_path):
    """The run goes on from the checkpoint that was named, and `last` means the new ones."""
    run_dir = tmp_path / "back"
    shutil.copytree(undisturbed["pretrain"], run_dir)
    at = run_dir / "checkpoints"
    first, second = (at / f"step={step:08d}.ckpt" for step in (18, 20))
    again = options("back", trainer__max_steps=19, ckpt_path=str(first), checkpoint__keep=1)
    run = done(words("fit", again))
    assert "checkpoints after step 18 are kept as later-..: 1" in run.err
    assert sorted(path.name for path in at.iterdir()) == [
        f"later-1-{second.name}",
        "step=00000019.ckpt",
    ]
    run = done(words("fit", options("back", ckpt_path="last", checkpoint__keep=1)))
    assert "step=00000019.ckpt" in run.err
    assert second.is_file()


@phase_one
def test_a_torn_checkpoint_does_not_count_as_the_newest(options, undisturbed, tmp_path):
    """Else all that are whole would be removed as older."""
    run_dir = tmp_path / "torn"
    shutil.copytree(undisturbed["pretrain"], run_dir)
    torn = run_dir / "checkpoints" / "step=00000020.ckpt"
    os.truncate(torn, torn.stat().st_size // 2)
    more = {"trainer__max_steps": 19, "checkpoint__keep": 1, "ckpt_path": "last"}
    done(words("fit", options("torn", **more)))
    left = last_checkpoint(torn.parent)
    assert left is not None
    assert left.name == "step=00000019.ckpt"


@phase_one
def test_a_trial_run_leaves_the_audit_and_the_checkpoints(options, undisturbed, tmp_path):
    run_dir = tmp_path / "trial"
    shutil.copytree(undisturbed["pretrain"], run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    done(words("fit", options("trial", trainer__fast_dev_run=True)))
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


@phase_one
def test_another_run_leaves_an_audit_that_is_there(options, undisturbed, tmp_path):
    mine = (undisturbed["pretrain"] / "audit").read_bytes()
    (tmp_path / "audit").write_bytes(mine)
    few = {"data__audit": str(tmp_path / "audit"), "trainer__max_steps": 2}
    for n, run in enumerate(("one", "two"), start=1):
        said = done(words("fit", options(run, **few))).err
        assert f"what '{tmp_path / 'audit'}' held is now in '{tmp_path / f'audit-{n}'}'" in said
    assert (tmp_path / "audit-1").read_bytes() == mine
    two = (tmp_path / "audit").read_text()
    assert (tmp_path / "audit-2").read_text() == two == "".join(mine.decode().splitlines(True)[:2])


@phase_one
def test_one_fit_at_a_time_works_in_a_directory(options, tmp_path):
    first = launch(words("fit", options("run", trainer__max_steps=100_000)))
    wait_for_lines(first, tmp_path / "run" / "audit", 2)
    second = call(words("fit", options("run", data__audit=None, ckpt_path="last")))
    first.send_signal(signal.SIGTERM)
    assert finish(first, timeout=60).code == EXIT_CODE
    assert second.code == 2
    assert f"--run_dir '{tmp_path / 'run'}': another fit works there" in second.err


# Ctrl-C.


@phase_one
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_saves(options, tmp_path, workers):
    """A terminal sends it to every process."""
    more = {"trainer__max_steps": 100_000, "data__workers": workers}
    process = launch(words("fit", options("run", **more)))
    wait_for_lines(process, tmp_path / "run" / "audit", 4)
    os.killpg(process.pid, signal.SIGINT)
    run = finish(process, timeout=60)
    assert run.code == EXIT_CODE, run.err
    assert "stopping after this step; once more: at once" in run.err
    assert "Traceback" not in run.err
    saved = len(read_audit(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / f"step={saved:08d}.ckpt").is_file()


# SIGTERM.


# Phase one validates every 6 steps and phase two every 5; both save every 3.
@pytest.mark.parametrize(
    ("options", "step"),
    [("pretrain", 7), ("pretrain", 11), ("finetune", 7), ("finetune", 9), ("finetune", 14)],
    ids=["one", "one-validates-and-saves", "two", "two-validates", "two-validates-and-saves"],
    indirect=["options"],
)
def test_a_terminated_run_saves_and_resumes(options, undisturbed, tmp_path, step):
    stop = {"class_path": "faults.kit.Terminate", "init_args": {"step": step}}
    audit = {"audit": str(tmp_path / "parts" / "audit")}
    check = {"class_path": "faults.kit.CheckAudit", "init_args": audit}
    run = call(words("fit", options("parts", trainer__callbacks=[stop, check])))
    assert run.code == EXIT_CODE
    assert f"told to end: saved step {step + 1}, resume with --ckpt_path last" in run.err
    assert len(read_audit(tmp_path / "parts")) == step + 1
    assert (tmp_path / "parts" / "checkpoints" / f"step={step + 1:08d}.ckpt").is_file()
    assert "done:" not in run.err
    done(words("fit", options("parts", ckpt_path="last")))
    assert_same_runs(undisturbed[options.phase], tmp_path / "parts")


@pytest.mark.parametrize(
    ("options", "step"), [("pretrain", 6), ("finetune", 15)], indirect=["options"]
)
def test_a_validation_due_where_a_run_broke_off_is_not_skipped(
    options, undisturbed, tmp_path, step
):
    """A checkpoint is due at the same step; Lightning would skip the validation after resuming."""
    crash = {"class_path": "faults.kit.CrashInValidation", "init_args": {"step": step}}
    with pytest.raises(RuntimeError, match="the machine burns"):
        call(words("fit", options("parts", trainer__callbacks=[crash])))
    done(words("fit", options("parts", ckpt_path="last")))
    assert_same_runs(undisturbed[options.phase], tmp_path / "parts")


@phase_one
def test_a_terminated_process_exits_with_75(options, tmp_path):
    process = launch(words("fit", options("run", trainer__max_steps=100_000)))
    wait_for_lines(process, tmp_path / "run" / "audit", 4)
    process.send_signal(signal.SIGTERM)
    run = finish(process, timeout=60)
    assert run.code == EXIT_CODE, run.err
    saved = len(read_audit(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / f"step={saved:08d}.ckpt").is_file()
    assert not (tmp_path / "run" / "bundle").exists()


# Other ranks.

OVERLAYS = Path(__file__).parent.parent / "configs" / "trainer"
DDP = {"trainer__devices": 2, "config": str(OVERLAYS / "ddp.yaml")}
FSDP = {"trainer__devices": 2, "config": str(OVERLAYS / "fsdp.yaml")}
# Without dropout, whose seed holds the rank, and with a rate that does not depend on max_steps.
STEADY = {
    "model__backbone": {"dim": 32, "depth": 2, "heads": 2, "max_length": 32, "causal": True},
    "model__optimizer": {"schedule": "constant", "warmup": 0},
}


def assert_close_runs(one: Path, other: Path) -> None:
    """The same samples; losses and weights that differ by rounding alone."""
    assert read_audit(one) == read_audit(other)
    mine, theirs = read_metrics(one), read_metrics(other)
    for name in ("step", "train_loss", "grad_norm", "lr", "tokens", "val_loss"):
        left, right = ([row[name] for row in rows] for rows in (mine, theirs))
        assert [v == "" for v in left] == [v == "" for v in right], name
        assert [float(v) for v in left if v] == pytest.approx([float(v) for v in right if v], 1e-3)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(other)[name], rtol=1e-3, atol=1e-5)


@phase_one
def test_two_ranks_then_one_then_two(options, tmp_path):
    """SIGTERM reaches one of two ranks alone; the run goes on with one rank, then with two."""
    long = options("parts", trainer__max_steps=100_000, **STEADY, **DDP)
    process = launch(words("fit", long))
    wait_for_lines(process, tmp_path / "parts" / "audit", 3)
    os.kill(child_of(process), signal.SIGTERM)
    run = finish(process, timeout=60)
    assert run.code == EXIT_CODE, run.err
    assert "Traceback" not in run.err
    saved = len(read_audit(tmp_path / "parts"))
    part = {"ckpt_path": "last", **STEADY}
    done(words("fit", options("parts", trainer__max_steps=saved + 7, **part)))
    run = finish(
        launch(words("fit", options("parts", trainer__max_steps=saved + 15, **part, **DDP)))
    )
    assert run.code == 0, run.err
    done(words("fit", options("whole", trainer__max_steps=saved + 15, **STEADY)))
    assert_close_runs(tmp_path / "whole", tmp_path / "parts")


@phase_one
def test_sharded_checkpoints_resume_and_torn_ones_are_passed_over(options, tmp_path):
    done(words("fit", options("whole", trainer__max_steps=9, **STEADY)))
    sharded = options("parts", trainer__max_steps=6, **STEADY, **FSDP)
    run = finish(launch(words("fit", sharded)))
    assert run.code == 0, run.err
    newest = tmp_path / "parts" / "checkpoints" / "step=00000006.ckpt"
    (newest / ".metadata").unlink()
    run = finish(launch(words("fit", sharded | {"trainer.max_steps": 9, "ckpt_path": "last"})))
    assert run.code == 0, run.err
    assert f"checkpoint '{newest}' is torn: passed over" in run.err
    assert "step=00000003.ckpt" in run.err
    assert_close_runs(tmp_path / "whole", tmp_path / "parts")


# What a resume may change, and what it may not.


@phase_one
def test_micro_batch_and_workers_may_change(options, tmp_path):
    done(words("fit", options("whole", trainer__max_steps=12, **STEADY)))
    done(words("fit", options("parts", trainer__max_steps=7, **STEADY)))
    changed = {"data__micro_batch_size": 2, "data__workers": 1}
    run = options("parts", trainer__max_steps=12, ckpt_path="last", **STEADY, **changed)
    done(words("fit", run))
    assert_close_runs(tmp_path / "whole", tmp_path / "parts")


@both_phases
def test_another_global_batch_begins_a_segment_without_gap_or_repeat(options, tmp_path):
    done(words("fit", options("run", trainer__max_steps=7)))
    for size, steps in ((9, 12), (4, 16)):
        changed = {"data__global_batch_size": size, "trainer__max_steps": steps}
        done(words("fit", options("run", ckpt_path="last", **changed)))
    lines = read_audit(tmp_path / "run")
    numbers = [number for line in lines for number, _ in line["samples"]]
    assert [line["step"] for line in lines] == list(range(16))
    assert sorted(numbers) == list(range(len(numbers)))
    sizes = [len(line["samples"]) for line in lines]
    if options.phase == "pretrain":
        assert sizes == [6] * 7 + [9] * 5 + [4] * 4
    else:  # 60 examples: no step crosses an epoch
        assert sizes == [14, 14, 14, 14, 4, 14, 14, *[9, 9, 9, 5, 9], *[4] * 4]
    saved = torch.load(tmp_path / "run" / "checkpoints" / "step=00000016.ckpt", weights_only=True)
    (state,) = (v for v in saved.values() if isinstance(v, dict) and "segments" in v)
    assert [segment["first_step"] for segment in state["segments"]] == [0, 7, 12]


@pytest.fixture(scope="module")
def started(
    tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path
) -> dict[str, Any]:
    """The options of a phase-one run that has done 3 of its steps."""
    run_dir = tmp_path_factory.mktemp("started") / "run"
    options = pretrain(run_dir, store, bpe_path, trainer__max_steps=3)
    done(words("fit", options))
    return options | {"trainer.max_steps": 5}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data.seed": 1}, "seed was 0, is 1"),
        ({"data.length": 16}, "length was 32, is 16"),
        ({"data.layout": "documents"}, "layout was 'blocks', is 'documents'"),
        ({"model.seed": 1}, "seed was 0, is 1"),
        ({"model.backbone.dim": 16}, "backbone.config.dim was 32, is 16"),
        ({"model.objective": "MaskedLM", "model.backbone.causal": False}, "head.name was 'causal'"),
        ({"tokenizer": "foreign"}, "store was"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_decides_the_run_may_not_change(started, change, said, request, tmp_path):
    if change == {"tokenizer": "foreign"}:
        change = foreign_store(request, tmp_path)
    before = {path: path.read_bytes() for path in Path(started["run_dir"]).glob("*.*")}
    run = resume(started | change)
    assert run.code == 2
    assert len(run.errors) == 1
    assert run.err.endswith(run.errors[0] + "\n")
    assert said in run.errors[0]
    # A refused resume leaves metrics and config as they were.
    assert before == {path: path.read_bytes() for path in Path(started["run_dir"]).glob("*.*")}


def test_what_decides_phase_two_may_not_change(bundle, examples, tmp_path):
    options = finetune(tmp_path / "run", bundle, examples, trainer__max_steps=2)
    done(words("fit", options))
    for change, said in (
        ({"model.tuning": "Frozen"}, "tuning.name was 'full', is 'frozen'"),
        ({"data.train": str(examples / "test.jsonl")}, "examples was"),
        ({"data.max_length": 16}, "max_length was 32, is 16"),
    ):
        run = resume(options | {"trainer.max_steps": 4} | change)
        assert run.code == 2
        assert len(run.errors) == 1
        assert said in run.errors[0]


def test_the_bundle_a_run_started_from_may_move_and_not_change(bundle, examples, tmp_path):
    options = finetune(tmp_path / "run", bundle, examples, trainer__max_steps=2)
    done(words("fit", options))
    moved = tmp_path / "moved"
    shutil.copytree(bundle / "bundle", moved)
    longer = options | {"model.init_from": str(moved), "trainer.max_steps": 3}
    done(words("fit", longer | {"ckpt_path": "last"}))
    tensors = load_file(moved / "model.safetensors")
    tensors[next(iter(tensors))][0] += 1
    save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    run = resume(longer | {"trainer.max_steps": 4})
    assert run.code == 2
    was, now = open_bundle(bundle / "bundle").hash, open_bundle(moved).hash
    assert f"started from {was}, and this one would from {now}" in run.errors[0]
    run = resume(options | {"model.from_scratch": True, "trainer.max_steps": 4})
    assert run.code == 2
    assert f"started from {was}, and this one would from scratch" in run.errors[0]
    assert "give the same model.init_from and model.from_scratch again" in run.errors[0]


def foreign_store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The same text under a tokenizer of the same size."""
    text = (request.getfixturevalue("bpe_path") / "tokenizer.json").read_text()
    lowering = json.loads(text) | {"normalizer": {"type": "Lowercase"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(lowering))
    files = [str(request.getfixturevalue("corpus_file"))]
    change = {"data.store": str(tmp_path / "store"), "data.tokenizer": str(tmp_path)}
    options = {"tokenizer": str(tmp_path), "output": change["data.store"], "files": files}
    done(words("prepare", options))
    return change


@phase_one
def test_an_explicit_rate_is_honoured(options, tmp_path):
    """Lightning 2.6.6 would restore the optimizer's own silently. Adam's step is linear in it."""
    before = options("before", trainer__max_steps=4, **STEADY)
    done(words("fit", before))
    start, moved = weights(tmp_path / "before"), {}
    for rate in (0.001, 0.003):
        shutil.copytree(tmp_path / "before", tmp_path / str(rate))
        optimizer = {"schedule": "constant", "warmup": 0, "lr": rate, "weight_decay": 0}
        more = {**STEADY, "model__optimizer": optimizer, "ckpt_path": "last"}
        done(words("fit", options(str(rate), trainer__max_steps=5, **more)))
        assert read_metrics(tmp_path / str(rate))[-1]["lr"] == str(rate)
        after = weights(tmp_path / str(rate))
        moved[rate] = torch.cat([(after[k] - start[k]).flatten() for k in sorted(start)])
    assert moved[0.001].norm() > 0
    torch.testing.assert_close(moved[0.003], 3 * moved[0.001], rtol=1e-2, atol=1e-6)


@phase_one
def test_a_checkpoint_of_any_name_resumes(options, undisturbed, tmp_path):
    shutil.copytree(undisturbed["pretrain"], tmp_path / "parts")
    kept = tmp_path / "kept.ckpt"
    (tmp_path / "parts" / "checkpoints" / "step=00000018.ckpt").rename(kept)
    done(words("fit", options("parts", ckpt_path=str(kept))))
    assert_same_runs(undisturbed["pretrain"], tmp_path / "parts")


@phase_one
def test_resuming_a_finished_run_changes_nothing(options, undisturbed, tmp_path):
    shutil.copytree(undisturbed["pretrain"], tmp_path / "run")
    done(words("fit", options("run", ckpt_path="last")))
    assert_same_runs(undisturbed["pretrain"], tmp_path / "run")


@phase_one
def test_last_begins_a_run_that_has_no_checkpoint(options, tmp_path):
    """So that a scheduler can start and restart a job with the same words."""
    run = done(words("fit", options("run", trainer__max_steps=2, ckpt_path="last")))
    assert f"no checkpoint in '{tmp_path / 'run'}': starting at step 0" in run.err


@phase_one
def test_a_taken_run_directory_is_refused(options, tmp_path, capsys):
    done(words("fit", options("run", trainer__max_steps=2)))
    with pytest.raises(SystemExit) as end:
        main(words("fit", options("run", trainer__max_steps=2)))
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: --run_dir '{tmp_path / 'run'}' already holds a run: go on with --ckpt_path last, "
        "give another --run_dir, or remove it\n"
    )


def test_phase_one_s_checkpoint_does_not_resume_phase_two(bundle, examples, tmp_path):
    """Lightning's own command line silently rebuilds the phase-one class."""
    checkpoint = bundle / "checkpoints" / "step=00000002.ckpt"
    run = call(words("fit", finetune(tmp_path, bundle, examples, ckpt_path=str(checkpoint))))
    assert run.code == 2
    assert run.errors == [
        "error: ckpt_path names a pretrain checkpoint, this is a finetune run: to start from its "
        "weights give --model.init_from instead"
    ]
    assert not (tmp_path / "bundle").exists()
