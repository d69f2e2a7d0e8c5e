"""What a user of the generation task does wrong is one line; exit code 2, no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults.files_generation import write_answers
from faults.kit import call, finetune, words
from test_mistakes import NOISE

SHAPE = {"dim": 16, "depth": 1, "heads": 2, "max_length": 48}

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "bidirectional": ({"model.backbone": SHAPE}, "give model.init_from a causal model"),
    "no such format": ({"model.task.format": "chatml"}, "model.task.format is 'chatml'"),
    "monitor without answers": ({"model.task.monitor": "bleu"}, "model.task.validation_examples"),
    "parallel alone": ({"model.task.parallel": [".a", ".b"]}, "give both or neither"),
    "decoding": ({"model.task.decoding.beams": 0}, "model.task.decoding.beams is 0"),
    "template": ({"model.task.template": "chat.jinja"}, "'chat.jinja' cannot be read"),
    "no end": ({"model.task.template": "{{ messages[0].content }}"}, "does not write a turn"),
    "format of another file": ({"model.task.format": "messages"}, "line 1: no list 'messages'"),
    "empty answers": ({"data.train": "empty.jsonl"}, "line 2: the answer is empty"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name, bpe_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_answers(tmp_path)
    rows = [{"text": "a", "label": "b"}, {"text": "a", "label": ""}]
    (tmp_path / "empty.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if name == "format of another file":
        (tmp_path / "train.jsonl").write_text(json.dumps(rows[0]) + "\n")
    given, reason = MISTAKES[name]
    options = finetune(Path("run"), Path("none"), tmp_path, model__task="Generation")
    options |= {"model.init_from": None, "model.backbone": SHAPE | {"causal": True}}
    run = call(words("fit", {**options, "data.tokenizer": str(bpe_path), **given}))
    assert run.code == 2, run.err
    (error,) = run.errors
    assert reason in error
    assert not NOISE.search(run.err), run.err
    assert not Path("run", "metrics.csv").exists()
