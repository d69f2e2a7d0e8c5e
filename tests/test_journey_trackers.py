"""What trackers are told of both phases: W&B offline, read back by its own reader; others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import wandb
import yaml
from faults.kit import (
    CrashInValidation,
    Run,
    call,
    done,
    finetune,
    pretrain,
    read_json_lines,
    read_metrics,
    wandb_file,
    wandb_records,
    words,
    write_examples,
)
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback

from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.interop.open import open_model
from ptft_lightning.modules.checkpoints import Checkpoints
from ptft_lightning.modules.spikes import Spikes
from ptft_lightning.modules.tracking import Tracking
from ptft_lightning.tracking import artifacts
from ptft_lightning.tracking.identity import group_of, wandb_logger
from ptft_lightning.tracking.listeners import WandbListener

STEPS = 4


def tracked(command: list[str], home: Path, code: int = 0, **environment: str) -> Run:
    """Run a command with W&B offline, as it is by default, and end its run as a process does."""
    given = {"WANDB_MODE": "offline", "WANDB_CONSOLE": "off", "HOME": str(home), **environment}
    try:
        run = call(command, **given)
    finally:
        wandb.finish()
        wandb.teardown()  # the next run reads its own environment
    assert run.code == code, run.err
    return run


def short(run_dir: Path, store: Path, tokenizer: Path, **more: Any) -> dict[str, Any]:
    """Phase one, validated every second step."""
    settings = {"trainer.max_steps": STEPS, "trainer.val_check_interval": 2, "samples.count": 2}
    return pretrain(run_dir, store, tokenizer, **more) | settings


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> Path:
    """A directory with a run of each phase, the second from the first."""
    at = tmp_path_factory.mktemp("both")
    tracked(words("fit", short(at / "one", store, bpe_path)), at)
    options = finetune(at / "two", at / "one", write_examples(at), trainer__max_epochs=1)
    tracked(words("fit", options), at)
    return at


def of_kind(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


def tables(run_dir: Path, name: str) -> list[tuple[int, list[dict[str, Any]]]]:
    """A table's step and rows, each time it was logged."""
    file, found = wandb_file(run_dir), []
    for row in of_kind(wandb_records(file), "history"):
        if path := row["item"].get(f"tables/{name}.path"):
            content = json.loads((file.parent / "files" / path).read_text())
            rows = [dict(zip(content["columns"], line, strict=True)) for line in content["data"]]
            found.append((row["item"]["trainer/global_step"], rows))
    return found


def alerts(run_dir: Path) -> list[tuple[str, str]]:
    told = of_kind(wandb_records(wandb_file(run_dir)), "alert")
    return [(alert["title"], alert["level"]) for alert in told]


# W&B offline.


def test_a_lineage_is_a_group_and_a_phase_a_job_type(both):
    found = {}
    for name in ("one", "two"):
        (about,) = of_kind(wandb_records(wandb_file(both / name)), "run")
        assert about["run_id"] == (both / name / "wandb_id").read_text().strip()
        assert about["display_name"] == name
        found[name] = about
    root = found["one"]["run_id"]
    assert found["two"]["run_id"] != root
    assert [found[name]["run_group"] for name in ("one", "two")] == [root, root]
    assert [found[name]["job_type"] for name in ("one", "two")] == ["pretrain", "finetune"]
    lineage = json.loads((both / "two" / "bundle" / "lineage.json").read_text())
    names = {"group": root, "project": "ptft_lightning"}
    assert lineage["tracking"] == {"run": found["two"]["run_id"], **names}
    assert lineage["parents"][0]["tracking"] == {"run": root, **names}


@pytest.mark.parametrize(
    ("parents", "group"),
    [
        ([], "mine"),
        ([{"hash": "a"}], "a"),
        ([{"hash": "a", "parents": [{"hash": "b"}]}], "b"),
        ([{"hash": "a", "parents": [{"hash": "b", "tracking": {"group": "g"}}]}], "g"),
    ],
)
def test_the_group_of_what_was_not_tracked_is_its_first_bundle(parents, group):
    assert group_of(parents, "mine") == group


def test_other_ranks_note_no_id(tmp_path, monkeypatch):
    """Started at once by a launcher, they would each note another one."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    wandb_logger(tmp_path / "run", "pretrain", [])
    assert not (tmp_path / "run" / "wandb_id").exists()
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    logger = wandb_logger(tmp_path / "run", "pretrain", [])
    assert (tmp_path / "run" / "wandb_id").read_text() == f"{logger.version}\n"


def test_tables_of_samples_and_predictions(both):
    samples = read_json_lines((both / "one" / "samples.jsonl").read_text())
    steps = [2, 4]
    assert [step for step, _ in tables(both / "one", "samples")] == steps
    for step, rows in tables(both / "one", "samples"):
        assert rows == [line for line in samples if line["step"] == step]
        assert len(rows) == 2
    lines = read_json_lines((both / "two" / "validation_predictions.jsonl").read_text())
    ((step, rows),) = tables(both / "two", "validation_predictions")
    assert (step, len(rows)) == (5, 23)
    assert [row | {"probabilities": json.loads(row["probabilities"])} for row in rows] == lines


def test_the_end_is_told(both):
    assert [alerts(both / name) for name in ("one", "two")] == [[("run finished", "INFO")]] * 2


class Change(Callback):
    """Multiply the first weights by a factor right before a step; once."""

    def __init__(self, step: int, factor: str, note: str) -> None:
        self.step, self.factor, self.note = step, float(factor), Path(note)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step and not self.note.exists():
            self.note.touch()
            with torch.no_grad():
                next(pl_module.net.parameters()).mul_(self.factor)


def change(step: int, factor: str, note: Path) -> dict[str, Any]:
    given = {"step": step, "factor": factor, "note": str(note)}
    return {"class_path": f"{__name__}.Change", "init_args": given}


@pytest.mark.parametrize(
    ("factor", "told"),
    [("100", ("loss spike", "WARN")), ("nan", ("loss is not finite", "ERROR"))],
)
def test_a_spike_is_told_and_the_run_stays_one(factor, told, store, bpe_path, tmp_path):
    """It goes back and on in the same process, hence in the same record."""
    changing = change(9, factor, tmp_path / "note")
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__callbacks=[changing])
    options |= {"trainer.max_steps": 12, "trainer.val_check_interval": 50}
    options |= {"spikes.history": 4, "spikes.patience": 1, "spikes.every_n_steps": 2}
    run = tracked(words("fit", options), tmp_path)
    assert "going back to" in run.err
    assert alerts(tmp_path / "run") == [told, ("run finished", "INFO")]


def test_phase_two_tells_once_of_no_number_and_of_its_failure(both, tmp_path):
    name = f"{CrashInValidation.__module__}.{CrashInValidation.__name__}"
    crash = {"class_path": name, "init_args": {"step": 5}}
    callbacks = [change(1, "nan", tmp_path / "note"), crash]
    options = finetune(tmp_path / "run", both / "one", both, trainer__callbacks=callbacks)
    with pytest.raises(RuntimeError, match="the machine burns"):
        tracked(words("fit", options), tmp_path)
    told = [("loss is not finite", "ERROR"), ("run failed", "ERROR")]
    assert alerts(tmp_path / "run") == told


def test_a_second_pretraining_adapts(both, store, tmp_path):
    again = short(tmp_path / "run", store, both / "one" / "bundle")
    options = {k: v for k, v in again.items() if k not in ("model.backbone", "data.tokenizer")}
    options |= {"model.init_from": str(both / "one"), "trainer.max_steps": 1}
    tracked(words("fit", options), tmp_path, WANDB_PROJECT="elsewhere")
    (about,) = of_kind(wandb_records(wandb_file(tmp_path / "run")), "run")
    root = (both / "one" / "wandb_id").read_text().strip()
    assert (about["job_type"], about["run_group"]) == ("adapt", root)
    assert about["project"] == "elsewhere"


# Artifacts: what can be seen without a server.


def test_sync_lists_records_inputs_and_the_bundle(both):
    ids = {name: (both / name / "wandb_id").read_text().strip() for name in ("one", "two")}
    hashes = {name: open_bundle(both / name).hash for name in ("one", "two")}
    for name in ("one", "two"):
        run = done(["sync", "--run_dir", str(both / name), "--dry_run", "true"])
        used = f"use ptft_lightning/bundle-{ids['one']}:{hashes['one']}"
        assert run.out.splitlines() == [
            f"upload {wandb_file(both / name)}",
            *([used] if name == "two" else []),
            f"log bundle-{ids[name]}:{hashes[name]} {both / name / 'bundle'}",
        ]


def test_sync_refuses_what_it_cannot_do(both, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = call(["sync", "--run_dir", str(both / "two")], HOME=str(tmp_path))
    assert run.code == 2
    assert "no key for W&B" in run.errors[0]
    run = call(["sync", "--run_dir", str(tmp_path)])
    assert run.code == 2
    assert str(tmp_path) in run.errors[0]


@pytest.mark.parametrize(
    ("parent", "name"),
    [
        ({"hash": "h", "tracking": {"run": "r", "project": "p"}}, "p/bundle-r:h"),
        ({"hash": "h", "tracking": {"run": "r", "project": "p", "entity": "e"}}, "e/p/bundle-r:h"),
        (
            {"hash": "h", "merged_from": "m", "tracking": {"run": "r", "project": "p"}},
            "p/bundle-r:m",
        ),
        ({"hash": "h", "artifact": "e/p/by-hand:v3"}, "e/p/by-hand:v3"),
        ({"hash": "h"}, None),
    ],
)
def test_where_wandb_has_a_parent(parent, name):
    assert artifacts.artifact_of(parent) == name


@pytest.mark.parametrize(
    ("address", "mode", "said"),
    [
        ("wandb://e/p/n:latest", "offline", "WANDB_MODE=online"),
        ("wandb://p/n", "disabled", "wandb artifact get p/n --root DIR"),
        ("wandb://e/p/n:v3", "online", "no key"),
        ("wandb://n", "online", "[entity/]project/name[:alias]"),
        ("wandb://a/b/c/d", "online", "[entity/]project/name[:alias]"),
        ("wandb://e/p/n:", "online", "[entity/]project/name[:alias]"),
        ("wandb://../../x:v3", "online", "[entity/]project/name[:alias]"),
    ],
)
def test_an_artifact_that_cannot_be_had_is_refused(
    address, mode, said, both, tmp_path, monkeypatch
):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    options = finetune(tmp_path / "run", Path("x"), both) | {"model.init_from": address}
    run = call(words("fit", options), WANDB_MODE=mode, HOME=str(tmp_path), XDG_CACHE_HOME="")
    assert run.code == 2
    (error,) = run.errors
    assert f"'{address}'" in error
    assert said in error


def test_a_version_in_the_cache_needs_no_network(both, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    place = tmp_path / "ptft_lightning" / "wandb" / "wandb.example.org" / "e" / "p" / "n" / "v3"
    place.parent.mkdir(parents=True)
    place.symlink_to(both / "one" / "bundle")
    bundle = open_model("wandb://e/p/n:v3")
    assert (bundle.path, bundle.hash) == ("wandb://e/p/n:v3", open_bundle(both / "one").hash)
    assert artifacts.inputs_of({"parents": [{"hash": "", **bundle.lineage}]}) == ["e/p/n:v3"]


def test_a_bundle_that_is_not_the_uploaded_one_is_refused(both, capsys):
    place = both / "one" / "bundle"
    artifacts.check_hash(place, open_bundle(place).hash, "wandb://p/n")
    with pytest.raises(UserError, match="wandb://p/n"):
        artifacts.check_hash(place, "0" * 16, "wandb://p/n")
    assert capsys.readouterr().err == ""
    artifacts.check_hash(place, None, "wandb://p/n")
    assert "not compared" in capsys.readouterr().err


def test_a_bundle_as_an_artifact_and_a_failed_upload(both, tmp_path, monkeypatch, capsys):
    """Offline W&B records an artifact, and then cannot wait for it: a line, and the run is fine."""
    for name, value in {"HOME": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    tracking = Tracking(both / "two", Spikes(), Checkpoints())
    settings = wandb.Settings(mode="offline", console="off")
    with wandb.init(project="p", id="again", dir=tmp_path, settings=settings) as run:
        tracking.online = [run]
        tracking.finish(L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
    wandb.teardown()
    said = capsys.readouterr().err
    assert f"W&B did not take the bundle '{both / 'two' / 'bundle'}'" in said
    assert f"sync --run_dir {both / 'two'}" in said
    (artifact,) = of_kind(wandb_records(wandb_file(tmp_path)), "artifact")
    own, parent = (open_bundle(both / name).hash for name in ("two", "one"))
    assert (artifact["name"], artifact["type"]) == ("bundle-again", "model")
    assert set(artifact["aliases"]) == {"latest", own}  # in any order
    facts = json.loads(artifact["metadata"])
    assert facts == {"hash": own, "phase": "finetune", "steps": 5, "parents": [parent]}
    files = {entry["path"]: entry["local_path"] for entry in artifact["manifest"]["contents"]}
    assert files == {file.name: str(file) for file in (both / "two" / "bundle").iterdir()}


def test_a_tracker_that_takes_no_table_costs_a_line(store, bpe_path, tmp_path, monkeypatch):
    """As where W&B's directory for them is on a full disk; nor does an alert end a run."""

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(WandbListener, "table", full)
    monkeypatch.setattr(WandbListener, "alert", full)
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__max_steps=2)
    shown = {"trainer.val_check_interval": 2, "samples.count": 2}
    run = call(words("fit", options | shown), WANDB_MODE="offline", HOME=str(tmp_path))
    wandb.teardown()
    assert run.code == 0, run.err
    assert "W&B did not take 'tables/samples': no space left" in run.err
    assert "W&B did not take the alert 'run finished': no space left" in run.err
    assert (tmp_path / "run" / "bundle").is_dir()


# Others in its place.


def test_tensorboard_loses_nothing_but_the_graph(both, store, bpe_path, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    place = {"save_dir": str(tmp_path / "other"), "name": "", "version": ""}
    logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": place}
    options = short(tmp_path / "run", store, bpe_path, trainer__logger=logger)
    done(words("fit", options))
    events = EventAccumulator(str(tmp_path / "other")).Reload()
    rows = read_metrics(tmp_path / "run")
    for name in set(rows[0]) - {"step"}:
        ours = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(ours)
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    given = HParamsPluginData.FromString(plugin).session_start_info.hparams
    assert given["config/data/init_args/global_batch_size"].number_value == 6
    samples = []
    for event in events.Tensors("tables/samples/text_summary"):
        (text,) = event.tensor_proto.string_val
        samples += [json.loads(line) for line in text.decode().split("\n")]
    assert samples == read_json_lines((tmp_path / "run" / "samples.jsonl").read_text())
    assert samples == read_json_lines((both / "one" / "samples.jsonl").read_text())
    (event,) = events.Tensors("alert/run finished/text_summary")
    assert event.tensor_proto.string_val[0].decode().startswith("INFO: ")
    assert not (tmp_path / "run" / "wandb").exists()


def test_swanlab_loses_nothing_but_the_graph(store, bpe_path, tmp_path):
    """Offline, read back by SwanLab's own reader."""
    pytest.importorskip("swanlab", reason="SwanLab in W&B's place: pip install swanlab")
    import swanlab
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    place = {"project": "p", "mode": "offline", "log_dir": str(tmp_path / "other")}
    name = "swanlab.integration.pytorch_lightning.SwanLabLogger"
    logger = {"class_path": name, "init_args": place}
    options = short(tmp_path / "run", store, bpe_path, trainer__logger=logger)
    done(words("fit", options), HOME=str(tmp_path))
    swanlab.finish()
    (file,) = (tmp_path / "other").glob("run-*/*.swanlab")
    reader, records = DataStoreReader(), []
    reader.open(file)
    while (line := reader.scan()) is not None:
        records.append(Record.FromString(line))
    scalars: dict[str, dict[int, float]] = {}
    for record in records:
        if record.WhichOneof("record_type") == "scalar":
            one = record.scalar
            scalars.setdefault(one.key, {})[one.step] = one.value.number
    rows = read_metrics(tmp_path / "run")
    for column in set(rows[0]) - {"step"}:
        ours = {int(row["step"]): float(row[column]) for row in rows if row[column]}
        assert scalars[column] == pytest.approx(ours)
    config = yaml.safe_load((file.parent / "files" / "config.yaml").read_text())
    assert config["config"]["value"]["data"]["init_args"]["global_batch_size"] == 6
    texts: dict[str, str] = {}
    for record in records:
        if record.WhichOneof("record_type") == "media":
            for item in record.media.value.items:
                kept = file.parent / "media" / "text" / item.filename
                texts[record.media.key] = texts.get(record.media.key, "") + kept.read_text() + "\n"
    assert texts.keys() == {"tables/samples", "alert/run finished"}
    samples = [json.loads(line) for line in texts["tables/samples"].splitlines()]
    assert samples == read_json_lines((tmp_path / "run" / "samples.jsonl").read_text())
