"""A text encoder as sentence-transformers reads it: a bare model, how it pools, vectors of length
1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MODULES, POOLING, READING = "modules.json", "1_Pooling", "sentence_bert_config.json"
WAYS = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken"}
KINDS = {"": "Transformer", POOLING: "Pooling", "2_Normalize": "Normalize"}  # by folder


def write_modules(folder: Path, config: dict[str, Any]) -> None:
    """Say beside a bare model what follows it, given the config of a `Matching` bundle."""
    shape, pooling = config["backbone"]["config"], config["head"]["config"]["pooling"]
    ours = "mean" if pooling == "auto" else pooling
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(KINDS.items())
    ]
    modes = {f"pooling_mode_{theirs}": way == ours for way, theirs in WAYS.items()}
    files: dict[str, Any] = {
        MODULES: modules,
        READING: {"max_seq_length": shape["max_length"], "do_lower_case": False},
        f"{POOLING}/config.json": {"word_embedding_dimension": shape["dim"], **modes},
    }
    (folder / POOLING).mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
