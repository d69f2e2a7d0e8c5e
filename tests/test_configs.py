"""Every shipped config runs: found by a glob, so that a new one is covered from its first day."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from faults.kit import call, done, finish, launch, pretrain, words, write_examples
from faults.own_files import OWN_FILES

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
WHOLE = [file for file in CONFIGS if file.parent.name != "trainer"]
OVERLAYS = [file for file in CONFIGS if file.parent.name == "trainer"]
MOST_LINES = 40


def name(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def settings(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    return content


def test_there_are_configs():
    assert len(WHOLE) >= 6
    assert OVERLAYS


@pytest.mark.parametrize("file", CONFIGS, ids=name)
def test_a_config_is_short_and_says_what_it_is(file):
    lines = file.read_text().splitlines()
    assert len(lines) <= MOST_LINES
    assert lines[0].startswith("# ")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every ending, also with a list of labels and a number; .tsv without a header too."""
    at = write_examples(tmp_path_factory.mktemp("examples"))
    for split in ("train", "validation", "test"):
        file = at / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [row | {"score": len(row["text"]), "labels": [row["label"]]} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines = ["text,second,label,score", *(",".join(map(str, [*r.values()][:4])) for r in rows)]
        (at / f"{split}.csv").write_text("\n".join(lines) + "\n")
        table = (at / f"{split}.tsv").read_text()
        (at / f"{split}_bare.tsv").write_text(table.partition("\n")[2])
    return at


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, store: Path, bpe_path: Path) -> Path:
    """Phase-one runs, masked and causal, that read as many tokens as any shipped config wants."""
    at = tmp_path_factory.mktemp("bundles")
    for causal in (False, True):
        run_dir = at / ("causal" if causal else "masked")
        options = pretrain(run_dir, store, bpe_path, causal=causal, trainer__max_steps=1)
        done(words("fit", options | {"model.backbone.max_length": 512}))
    return at


SMALL = {
    "data.global_batch_size": 4,
    "data.micro_batch_size": 2,
    "data.workers": 0,
    "trainer.accelerator": "cpu",
    "trainer.precision": "32-true",  # many processors only imitate bfloat16
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 2,
    "trainer.limit_val_batches": 1,
}


# Needs a tokenizer of its own.
SPANS = {"class_path": "SpanCorruption", "init_args": {"rate": 0.15, "mean_length": 3.0}}
# The tests' column for a config's, where it is not a plain label.
LABELS = {"labels": "labels", "score": "score"}


@pytest.fixture
def paths(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """`paths(file)`: the options that put the tests' data in place of a config's."""

    def of(file: Path) -> dict[str, Any]:
        mine: dict[str, Any] = {"run_dir": str(tmp_path / "run")}
        data = settings(file)["data"]
        if data["class_path"] == "CorpusDataModule":
            corpus = str(request.getfixturevalue("corpus_file"))
            tokenizer = str(request.getfixturevalue("bpe_path"))
            if settings(file)["model"]["init_args"]["objective"] == SPANS:
                tokenizer = with_sentinels(corpus, tmp_path / "sentinels")
            made = {"data.store": str(tmp_path / "store"), "data.tokenizer": tokenizer}
            made["data.length"] = 64
            if settings(file)["model"]["init_args"].get("init_from"):
                bundles = request.getfixturevalue("bundles")
                made |= {"model.init_from": str(bundles / "masked"), "data.tokenizer": None}
            if "mixture" in data["init_args"]:
                return mine | two_stores(request.getfixturevalue("store"), tmp_path, tokenizer)
            return mine | made | {"data.files": [corpus], "data.validation_share": 0.1}
        task = settings(file)["model"]["init_args"]["task"]
        task = task if isinstance(task, str) else task["class_path"]
        bundles = request.getfixturevalue("bundles")
        if (own := file.stem if file.stem in OWN_FILES else task) in OWN_FILES:
            write, causal = OWN_FILES[own]
            mine["model.init_from"] = str(bundles / ("causal" if causal else "masked"))
            return mine | write(tmp_path)
        examples = request.getfixturevalue("examples")
        given = data["init_args"].get("columns") or {}
        ending = Path(data["init_args"]["train"]).suffix
        ending = f"_bare{ending}" if "names" in given else ending
        for split in ("train", "validation", "test"):
            mine[f"data.{split}"] = str(examples / f"{split}{ending}")
        columns = {"text": "text", "pair": "second" if "pair" in given else None}
        columns["label"] = LABELS.get(given.get("label"), "label")
        columns["names"] = ["text", "second", "label"] if "names" in given else None
        return mine | {"data.columns": columns, "model.init_from": str(bundles / "masked")}

    return of


def with_sentinels(corpus: str, at: Path) -> str:
    given = {"files": [corpus], "output": str(at), "vocab_size": 500, "sentinels": 20}
    done(words("tokenizer", given))
    return str(at)


def two_stores(store: Path, tmp_path: Path, tokenizer: str) -> dict[str, Any]:
    shutil.copytree(store, tmp_path / "other")
    stores = {"en": str(store), "zh": str(tmp_path / "other")}
    return {"data.mixture.stores": stores, "data.tokenizer": tokenizer, "data.length": 64}


@pytest.mark.parametrize("file", WHOLE, ids=name)
def test_a_config_trains_two_steps_and_its_run_can_be_used(file, paths, tmp_path):
    done(["fit", "--config", str(file), *words("", paths(file) | SMALL)[1:]])
    run_dir = tmp_path / "run"
    config = json.loads((run_dir / "bundle" / "config.json").read_text())
    wanted = settings(file)["model"]["init_args"].get("backbone") or {}
    wanted = wanted.get("init_args", wanted)  # of another kind than a Transformer
    assert {k: config["backbone"]["config"][k] for k in wanted} == wanted
    if config["phase"] == "finetune":
        measured = json.loads(done(["test", "--run_dir", str(run_dir)]).out)
        assert f"test_{config['head']['config']['monitor']}" in measured


# Overlays whose devices are not here; the GPU's tests run them.
ON_GPUS = [file for file in OVERLAYS if settings(file)["trainer"].get("accelerator") == "gpu"]


@pytest.mark.parametrize("file", OVERLAYS, ids=name)
def test_an_overlay_is_shorter_yet(file):
    assert len(file.read_text().splitlines()) <= 20


def test_all_overlays_are_there():
    assert {file.stem for file in OVERLAYS} == {"cpu", "gpu", "ddp", "fsdp", "multinode"}


@pytest.mark.parametrize("file", ON_GPUS, ids=name)
def test_an_overlay_for_gpus_is_understood_and_refused_without_them(file, paths, tmp_path):
    base = ROOT / "configs" / "pretrain" / "gpt.yaml"
    configs = ["--config", str(base), "--config", str(file)]
    plan = done(["plan", *configs, "--peak_tflops", "100", "--memory_gb", "80"]).out
    ranks = settings(file)["trainer"].get("num_nodes", 1) * settings(file)["trainer"]["devices"]
    assert f"on {ranks} rank(s)" in plan
    if torch.cuda.is_available():
        return  # test_gpu.py
    run = call(["fit", *configs, *words("", paths(base))[1:]])
    assert run.code == 2
    (error,) = run.errors
    assert "accelerator 'gpu'" in error
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_overlays_go_with_another_config(paths, tmp_path):
    """As their own first lines say; with one device here, with two in test_resume.py."""
    base = ROOT / "configs" / "pretrain" / "gpt.yaml"
    one = {"trainer.devices": 1, "model.backbone.dim": 32, "model.backbone.depth": 2}
    processes = []
    here = [file for file in OVERLAYS if file not in ON_GPUS]
    for file in here:
        mine = {key: str(tmp_path / file.stem / key) for key in ("run_dir", "data.store")}
        options = words("", paths(base) | SMALL | one | mine)[1:]
        configs = ["--config", str(base), "--config", str(file)]
        processes.append(launch(["fit", *configs, *options]))
    for file, process in zip(here, processes, strict=True):
        run = finish(process)
        assert run.code == 0, run.err
        used = settings(tmp_path / file.stem / "run_dir" / "config.yaml")["trainer"]
        assert {k: used[k] for k in settings(file)["trainer"]} == settings(file)["trainer"]
