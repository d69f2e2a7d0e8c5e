"""`export --format onnx`: onnxruntime computes what transformers and `predict` compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from faults.kit import BACKBONE, call, done, finetune, read_json_lines, words, write_examples
from interop.conftest import build_peer
from tokenizers import Tokenizer as RawTokenizer

from ptft_lightning.data.tokenizer import Tokenizer

KINDS = (
    *("bert", "bert bare", "roberta", "modernbert", "modernbert classifier"),
    *("gpt2 classifier", "llama 3", "qwen3 with windows"),
    *("bert tagger", "llama tagger", "roberta answers"),
)


def export(source: Path, output: Path) -> Path:
    run = done(["export", "--init_from", source, "--output", output, "--format", "onnx"])
    assert "as onnxruntime computes it" in run.out
    return output


def compute(folder: Path, rows: list[list[int]]) -> np.ndarray:
    """Logits of rows, padded on the right."""
    pad = json.loads((folder / "config.json").read_text())["pad_token_id"]
    longest = max(map(len, rows))
    given = {
        "input_ids": np.array([row + [pad] * (longest - len(row)) for row in rows]),
        "attention_mask": np.array([[1] * len(r) + [0] * (longest - len(r)) for r in rows]),
    }
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = [put.name for put in session.get_inputs()]
    given |= {n: np.zeros_like(given["input_ids"]) for n in names if n not in given}
    assert set(names) == set(given)
    outputs = session.run(None, given)
    return outputs[0] if len(outputs) == 1 else np.stack(outputs, -1)


@pytest.mark.parametrize("name", KINDS)
def test_it_computes_what_transformers_computes(name: str, folder_of: Any, tmp_path: Path) -> None:
    """Of models in transformers' own layout, rows of other numbers and lengths than were traced."""
    peer = build_peer(name).eval()
    folder = export(folder_of(name, tmp_path / "source", peer), tmp_path / "out")
    rng = np.random.default_rng(3)
    for lengths in ((7,), (30, 4, 17, 1), (2, 2)):
        rows = [rng.integers(10, 500, n).tolist() for n in lengths]
        ours = compute(folder, rows)
        for row, found in zip(rows, ours, strict=True):
            with torch.no_grad():
                out = peer(input_ids=torch.tensor([row]))
            both = torch.stack([out[0], out[1]], -1) if "start_logits" in out else out[0]
            wanted = both[0].numpy()
            some = found[: len(row)] if found.ndim == 2 else found
            np.testing.assert_allclose(some, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize(
    "task",
    [
        {"class_path": "Classification", "init_args": {"pooling": "attention"}},
        {"class_path": "Classification", "init_args": {"pooling": "first", "transform": "tanh"}},
        {"class_path": "MultiLabel"},
    ],
    ids=["attention", "transform", "multilabel"],
)
def test_it_computes_what_predict_says(task, wordpiece_path, tmp_path):
    examples = write_examples(tmp_path)
    options = finetune(tmp_path / "run", Path("none"), examples) | {
        "model.init_from": None,
        "model.task": task,
        "model.backbone": BACKBONE,
        "data.tokenizer": str(wordpiece_path),
        "trainer.max_epochs": None,
        "trainer.max_steps": 4,
        "trainer.precision": "32-true",
    }
    done(words("fit", options))
    given = {
        "run_dir": str(tmp_path / "run"),
        "trainer.precision": "32-true",
        "output": str(tmp_path / "said.jsonl"),
    }
    done(words("predict", given | {"data.predict": str(examples / "test.jsonl")}))
    lines = read_json_lines((tmp_path / "said.jsonl").read_text())
    folder = export(tmp_path / "run", tmp_path / "out")
    known = json.loads((folder / "config.json").read_text())
    assert known["labels"] == ["land", "water"]
    tokenizer = Tokenizer.load(folder)
    texts = [line["text"] for line in lines]
    room = known["max_length"] - len(tokenizer.frame([]))
    rows = [tokenizer.frame(ids[:room]) for ids in tokenizer.encode(texts)]
    logits = torch.from_numpy(compute(folder, rows))
    multi = task["class_path"] == "MultiLabel"
    probabilities = logits.sigmoid() if multi else logits.softmax(-1)
    for line, found in zip(lines, probabilities.tolist(), strict=True):
        assert list(line["probabilities"].values()) == pytest.approx(found, abs=1e-4)


def test_its_tokenizer_neither_pads_nor_cuts(folder_of: Any, tmp_path: Path) -> None:
    """As that of all-MiniLM-L6-v2 does, whose rows are 128 tokens long."""
    source = folder_of("bert bare", tmp_path / "source", build_peer("bert bare"))
    raw = RawTokenizer.from_file(str(source / "tokenizer.json"))
    wanted = raw.encode("The river under a green hill").ids
    raw.enable_padding(length=16)
    raw.enable_truncation(4)
    raw.save(str(source / "tokenizer.json"))
    folder = export(source, tmp_path / "out")
    alone = RawTokenizer.from_file(str(folder / "tokenizer.json"))
    assert alone.encode("The river under a green hill").ids == wanted


@pytest.mark.parametrize(
    ("task", "key"), [("Regression", "value"), ("Matching", "embedding")], ids=["number", "vector"]
)
def test_numbers_and_vectors(task, key, wordpiece_path, tmp_path):
    """What `predict` writes of a text is what the graph gives."""
    pairs = [("old sea", "green hill", 5), ("rain", "a letter", 2), ("a lake", "under the sea", 3)]
    rows = [{"text": a, "second": b, "label": n} for a, b, n in pairs]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    texts = [row["text"] for row in rows] + ["The river under a green hill"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    files = dict.fromkeys(("data.train", "data.validation"), str(tmp_path / "train.jsonl"))
    pair = {"text": "text", "pair": "second", "label": "label"}
    options = (
        finetune(tmp_path / "run", Path("none"), tmp_path)
        | files
        | {
            "model.init_from": None,
            "model.task": task,
            "model.backbone": BACKBONE,
            "data.tokenizer": str(wordpiece_path),
            "data.columns": pair if task == "Matching" else None,
            "data.test": None,
            "trainer.max_epochs": None,
            "trainer.max_steps": 2,
            "trainer.precision": "32-true",
        }
    )
    done(words("fit", options))
    given = {"run_dir": str(tmp_path / "run"), "trainer.precision": "32-true"}
    given |= {"data.predict": str(tmp_path / "texts.jsonl"), "output": str(tmp_path / "said.jsonl")}
    done(words("predict", given))
    lines = read_json_lines((tmp_path / "said.jsonl").read_text())
    folder = export(tmp_path / "run", tmp_path / "out")
    tokenizer = Tokenizer.load(folder)
    found = compute(folder, [tokenizer.frame(ids) for ids in tokenizer.encode(texts)])
    said = np.array([line[key] for line in lines]).reshape(len(texts), -1)
    np.testing.assert_allclose(found, said, atol=1e-5 * max(1, np.abs(said).max()))


def test_what_is_no_graph_is_refused(wordpiece_path, tmp_path, monkeypatch):
    (tmp_path / "train.conll").write_text("river B-X\nsea O\n\nhill O\n" * 5)
    options = finetune(tmp_path / "run", Path("none"), tmp_path) | {
        "model.init_from": None,
        "model.task": {"class_path": "Tagging", "init_args": {"crf": True}},
        "model.backbone": BACKBONE,
        "data.tokenizer": str(wordpiece_path),
        "data.train": str(tmp_path / "train.conll"),
        "data.validation": str(tmp_path / "train.conll"),
        "data.test": None,
        "trainer.max_epochs": None,
        "trainer.max_steps": 1,
    }
    done(words("fit", options))
    args = ["export", "--init_from", tmp_path / "run", "--output", tmp_path / "out"]
    run = call([*args, "--format", "onnx"])
    assert run.code == 2
    assert "has a CRF, which chooses the tags of a sentence together" in run.errors[0]
    assert not (tmp_path / "out").exists()
    run = call(args)
    assert run.code == 2
    assert "task.crf is True and would have to be False" in run.errors[0]
    monkeypatch.setattr("ptft_lightning.interop.onnx.find_spec", lambda name: None)
    run = call([*args, "--format", "onnx"])
    assert run.code == 2
    assert "pip install 'ptft-lightning[onnx]'" in run.errors[0]
