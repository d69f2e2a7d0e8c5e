"""What a user does wrong is one line that names value, place and fix; exit code 2, no traceback."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from faults.kit import call, done, finetune, finish, launch, pretrain, words, write_examples

from ptft_lightning.cli import main

# What the config parser, torch or Python would say.
NOISE = re.compile(
    r"Traceback|Union|NoneType|<class|Parser key|Given value|Subtypes|class_path|NestedArg|"
    r"Namespace|usage:|tip:|typing\."
)
# What a run may say before it is refused.
NEWS = (
    *("inherited: ", "model: ", "loaded from ", "resuming from ", "prepare: ", "tokenizer: "),
    *("train: ", "validation: ", "training: ", "optimizer: ", "bundle: "),
    *("predicted: ", "costs: "),
)

CONFIG = """\
run_dir: {run_dir}
model:
  class_path: PretrainModule
  init_args:
    objective: {{class_path: MaskedLM, init_args: {{rate: 0.2}}}}
    backbone: {{dim: 32, depth: 2, heads: 2, max_length: 32}}
    optimizer: {{lr: 1.0e-3}}
data:
  class_path: CorpusDataModule
  init_args:
    store: {store}
    tokenizer: {tokenizer}
    length: 32
trainer: {{accelerator: cpu, max_steps: 2}}
"""

GPT2_CONFIG = """\
{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 9, "n_embd": 8,
 "n_layer": 1, "n_head": 2}
"""


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, corpus_file: Path, store: Path, bpe_path: Path
) -> Path:
    """A directory with a run of each phase, examples, and files to stumble over."""
    at = tmp_path_factory.mktemp("mistakes")
    write_examples(at)
    done(words("fit", pretrain(at / "one", store, bpe_path, trainer__max_steps=2)))
    done(words("fit", finetune(at / "two", at / "one", at, trainer__max_epochs=1)))
    (at / "empty.jsonl").write_text("")
    (at / "blank.txt").write_text("\n \n\n")
    (at / "garbage.ckpt").write_bytes(b"\0garbage" * 99)
    (at / "garbage").write_bytes(b"\0garbage" * 99)
    (at / "directory").mkdir()
    (at / "body.jsonl").write_text('{"body": "some words", "stars": 3}\n' * 9)
    (at / "klass.csv").write_text("text,klass\nfoo,water\nbar,land\n")
    (at / "ragged.csv").write_text("text,label\nfoo,water\nbar\n")
    (at / "broken.jsonl").write_text('{"text": "a", "label": "water"}\n{"text": \n')
    (at / "zebra.jsonl").write_text('{"text": "a b", "label": "zebra"}\n')
    (at / "one.jsonl").write_text('{"text": "a b", "label": "water"}\n' * 5)
    (at / "latin.csv").write_bytes("text,label\ncafé,water\n".encode("latin-1"))
    (at / "space.yaml").write_text("model.optimizer.lrr: {uniform: [1, 2]}\n")
    (at / "new.jsonl").write_text('{"text": "a b"}\n')
    (at / "chinese.txt").write_bytes(("语言模型与文本数据。\n" * 9).encode("gb18030"))
    (at / "latin.txt").write_bytes("déjà vu\n\nété\n".encode("latin-1"))
    (at / "half.jsonl").write_text('{"text": "good"}\n{"text": \n' * 9)
    (at / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 9)[:-12])
    (at / "torn.txt.zst").write_bytes(b"no frame")
    (at / "nul.txt").write_bytes(b"\0\0\0\n" * 9)
    (at / "headless.csv").write_text("some words,3\nother words,4\n")
    (at / "torn.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table({"n": [1, 2]}), at / "numbers.parquet")
    (at / "half").mkdir()
    (at / "half" / "vocab.json").write_text("{}")
    shutil.copytree(bpe_path, at / "lost")
    (at / "lost" / "special_tokens_map.json").write_text('{"mask_token": "<gone>"}')
    write_damaged(at, store, corpus_file)
    (at / "list.jsonl").write_text('{"text": "a b", "label": ["water", "land"]}\n' * 2)
    (at / "twice.txt").write_text("water\nwater\n")
    for name, settings in (
        ("mixtral", '{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}'),
        ("relu", '{"model_type": "bert", "architectures": ["BertModel"], "hidden_act": "relu"}'),
        ("sizes", '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 9}'),
        ("pickled", GPT2_CONFIG),
        ("torn", GPT2_CONFIG),
    ):
        (at / name).mkdir()
        (at / name / "config.json").write_text(settings)
    (at / "pickled" / "pytorch_model.bin").write_bytes(b"\0garbage")
    (at / "torn" / "model.safetensors").write_bytes(b"\0garbage")
    (at / "bare").mkdir()
    (at / "bare" / "model.safetensors").write_bytes(b"\0garbage")
    return at


def write_damaged(at: Path, store: Path, corpus_file: Path) -> None:
    """Files of other kinds and encodings; stores, bundles and checkpoints that are not whole."""
    (at / "utf16.jsonl").write_bytes('{"text": "a b", "label": "water"}\n'.encode("utf-16"))
    (at / "nul.txt").write_bytes(bytes(range(256)))
    (at / "paper.pdf").write_bytes(b"%PDF-1.4")
    (at / "plain.jsonl.gz").write_bytes(b'{"text": "a b"}\n')
    (at / "surrogate.jsonl").write_text('{"text": "\\ud800", "label": "water"}\n')
    (at / "quote.csv").write_text('text,label\n"foo,water\nbar,land\n')
    shutil.copy(corpus_file, at / "corpus.jsonl")
    for name in ("lost", "torn", "altered", "manifest"):
        shutil.copytree(store, at / f"store-{name}")
    (at / "store-lost" / "train-00000.tokens.npy").unlink()
    shard = at / "store-torn" / "train-00000.tokens.npy"
    shard.write_bytes(shard.read_bytes()[:200])
    shard = at / "store-altered" / "train-00000.tokens.npy"
    np.save(shard, np.load(shard)[::-1])
    (at / "store-manifest" / "manifest.json").write_text('{"format": 1}')
    whole = torch.load(at / "one" / "checkpoints" / "step=00000002.ckpt", weights_only=True)
    torch.save({"weights": whole["state_dict"]}, at / "foreign.ckpt")
    torch.save({**whole, "more": Code()}, at / "code.ckpt")
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "empty": lambda config: config.clear() or config.update(format=1),
        "later": lambda config: config.update(format=9),
        "kind": lambda config: config["backbone"].update(kind="mamba"),
        "setting": lambda config: config["backbone"]["config"].update(loops=2),
        "wide": lambda config: config["backbone"]["config"].update(dim=64),
        "weights": lambda config: None,
    }
    for name, change in changes.items():
        shutil.copytree(at / "one" / "bundle", at / f"bundle-{name}")
        file = at / f"bundle-{name}" / "config.json"
        config = json.loads(file.read_text())
        change(config)
        file.write_text(json.dumps(config))
    (at / "bundle-weights" / "model.safetensors").write_bytes(b"garbage" * 99)


class Code:
    """What a checkpoint must not execute."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def assert_one_line(run: Any, *parts: str) -> None:
    """Exit code 2 and one good line, whatever news came before it."""
    assert run.code == 2, run.err
    assert run.out == ""
    *news, last = run.err.splitlines()
    assert last.startswith("error: ")
    assert [line for line in news if not line.startswith(NEWS)] == []
    assert NOISE.search(last) is None, last
    assert [part for part in parts if part not in last] == [], last


# Phase one. {} stands for the directory of `place`.

PHASE_ONE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown key of the trainer": (
        {"trainer.max_stepz": 3},
        ("'trainer.max_stepz'", "did you mean 'trainer.max_steps'?"),
    ),
    "prompts that are too long for samples": (
        {"samples.prompts": ["the river and the sea " * 20]},
        ("the prompt 'the river", "tokens", "reads at most"),
    ),
    "unknown key of the data": (
        {"data.lenght": 3},
        ("'data.lenght'", "did you mean 'data.length'?"),
    ),
    "unknown key of the data, in full": (
        {"data.init_args.lenght": 3},
        ("'data.lenght'", "did you mean 'data.length'?"),
    ),
    "unknown key of the backbone": (
        {"model.backbone": {"dimm": 32}},
        ("'model.backbone.dimm'", "did you mean 'model.backbone.dim'?"),
    ),
    "unknown key of the backbone, in full": (
        {"model.init_args.backbone.dimm": 32},
        ("'model.backbone.dimm'", "did you mean 'model.backbone.dim'?"),
    ),
    "unknown key of the optimizer": (
        {"model.optimizer.lrr": 1},
        ("'model.optimizer.lrr'", "did you mean 'model.optimizer.lr'?"),
    ),
    "unknown key of the objective": (
        {"model.objective": "MaskedLM", "model.objective.rat": 0.2},
        ("'model.objective.rat'", "did you mean 'model.objective.rate'?"),
    ),
    "unknown key at the top": (
        {"rundir": "x"},
        ("'rundir'", "did you mean 'run_dir'?"),
    ),
    "unknown key like no other": (
        {"data.zzz": 1},
        ("'data.zzz'", "known here: ", "global_batch_size"),
    ),
    "unknown key at the top like no other": ({"zzz": 1}, ("'zzz'", "known here: ", "run_dir")),
    "wrong type": ({"data.length": "abc"}, ("data.length is 'abc'", "expected int")),
    "wrong type in a part": (
        {"model.backbone": {"dim": "big"}},
        ("model.backbone.dim is 'big'", "expected int"),
    ),
    "wrong type of the trainer": (
        {"trainer.max_steps": "many"},
        ("trainer.max_steps is 'many'", "expected int"),
    ),
    "wrong type of the trainer, as a mapping": (
        {"trainer": {"max_steps": "many"}},
        ("trainer.max_steps is 'many'", "expected int"),
    ),
    "a word for a number": (
        {"model.optimizer.lr": "fast"},
        ("model.optimizer.lr is 'fast'", "expected float"),
    ),
    "a word for a list": (
        {"data.files": "a.txt"},
        ("data.files is 'a.txt'", "a list such as [a, b]"),
    ),
    "not one of the choices": (
        {"data.layout": "bloks"},
        ("data.layout is 'bloks'", "'blocks', 'documents'"),
    ),
    "unknown precision": ({"trainer.precision": "7"}, ("trainer.precision is '7'", "'bf16-mixed'")),
    "unknown objective": (
        {"model.objective": "FooLM"},
        ("model.objective is 'FooLM'", "CausalLM", "MaskedLM"),
    ),
    "misspelt objective": (
        {"model.objective": "MaskdLM"},
        ("model.objective is 'MaskdLM'", "did you mean 'MaskedLM'?"),
    ),
    "unknown model": ({"model": "BertModel"}, ("model is 'BertModel'", "PretrainModule")),
    "an objective for a model": ({"model": "CausalLM"}, ("model", "PretrainModule")),
    "unknown package": ({"model": "foo.Bar"}, ("model", "foo")),
    "unknown data": ({"data": "CorpusData"}, ("data is 'CorpusData'", "'CorpusDataModule'")),
    "no model": (
        {"model": None, "model.objective": None, "model.backbone": None},
        ("--model", "--config"),
    ),
    "a part of no model": (
        {"model": None, "model.backbone": None},
        ("'model.objective'", "give --model before it", "PretrainModule"),
    ),
    "no objective": ({"model.objective": None}, ("model.objective is missing", "PretrainModule")),
    "no store": ({"data.store": None}, ("data.store is missing", "CorpusDataModule")),
    "unknown logger": ({"trainer.logger": "CSVLoger"}, ("trainer.logger is 'CSVLoger'",)),
    "missing config file": ({"config": "{}/nope.yaml"}, ("config file not found", "nope.yaml")),
    "missing corpus file": (
        {"data.files": ["{}/nope.jsonl"], "data.store": "{}/s1"},
        ("file not found", "nope.jsonl"),
    ),
    "empty corpus": (
        {"data.files": ["{}/empty.jsonl"], "data.store": "{}/s2"},
        ("empty corpus", "empty.jsonl"),
    ),
    "blank corpus": (
        {"data.files": ["{}/blank.txt"], "data.store": "{}/s3"},
        ("empty corpus", "blank.txt"),
    ),
    "a directory for a corpus": (
        {"data.files": ["{}/directory"], "data.store": "{}/s4"},
        ("directory'", ".jsonl"),
    ),
    "missing column": (
        {"data.files": ["{}/body.jsonl"], "data.store": "{}/s5"},
        ("body.jsonl at byte 0", "'text'", "['body', 'stars']", "--data.column"),
    ),
    "another encoding": (
        {"data.files": ["{}/chinese.txt"], "data.store": "{}/t1"},
        ("chinese.txt' is not UTF-8, looks like GB18030", "--data.encoding", "gb18030"),
    ),
    "unknown encoding": (
        {"data.encoding": "gbk"},
        ("data.encoding is 'gbk'", "'utf-8', 'utf-8-sig', 'gb18030'"),
    ),
    "bytes in no encoding": (
        {"data.files": ["{}/latin.txt"], "data.store": "{}/t2"},
        ("latin.txt' is not UTF-8", "--data.encoding"),
    ),
    "NUL bytes": (
        {"data.files": ["{}/nul.txt"], "data.store": "{}/t3"},
        ("nul.txt' is not UTF-8", "may be no text"),
    ),
    "too many broken lines": (
        {"data.files": ["{}/half.jsonl"], "data.store": "{}/t4"},
        ("9 documents", "9 broken JSON", "half.jsonl at byte 17", "9 good", "--data.max_bad_share"),
    ),
    "one broken line to stop at": (
        {"data.files": ["{}/half.jsonl"], "data.store": "{}/t5", "data.on_bad_document": "stop"},
        ("half.jsonl at byte 17", "not a JSON line", "--data.on_bad_document skip"),
    ),
    "a share beyond all": (
        {"data.files": ["{}/half.jsonl"], "data.store": "{}/t13", "data.max_bad_share": 2},
        ("max_bad_share is 2", "from 0 to 1"),
    ),
    "a cut download to stop at": (
        {"data.files": ["{}/cut.jsonl.gz"], "data.store": "{}/t6", "data.on_bad_document": "stop"},
        ("cut.jsonl.gz at byte", "damaged", "too early"),
    ),
    "nothing but damage": (
        {"data.files": ["{}/torn.txt.zst", "{}/torn.parquet"], "data.store": "{}/t7"},
        ("empty corpus", "torn.txt.zst", "2 damaged file"),
    ),
    "a csv without a header": (
        {"data.files": ["{}/headless.csv"], "data.store": "{}/t8"},
        ("headless.csv", "'text'", "['some words', '3']", "--data.column"),
    ),
    "a column of numbers": (
        {"data.files": ["{}/numbers.parquet"], "data.store": "{}/t9", "data.column": "n"},
        ("numbers.parquet", "'n' holds int64, not text", "--data.column"),
    ),
    "a glob of nothing": (
        {"data.files": ["{}/*.docx"], "data.store": "{}/t10"},
        ("no file to read in", "*.docx'", ".parquet"),
    ),
    "a protocol nobody knows": (
        {"data.files": ["nosuch://bucket/a.txt"], "data.store": "{}/t11"},
        ("'nosuch://bucket/a.txt'", "nosuch"),
    ),
    "a hub data set misspelt": (
        {"data.files": ["hub:owner/name?splt=test"], "data.store": "{}/t12"},
        ("'hub:owner/name?splt=test'", "hub:owner/name?config=NAME&split=NAME"),
    ),
    "no store and no files": ({"data.store": "{}/s6"}, ("no token store at", "data.files")),
    "missing tokenizer": ({"data.tokenizer": "{}/nope"}, ("tokenizer not found", "nope")),
    "garbage for a tokenizer": ({"data.tokenizer": "{}/garbage"}, ("garbage' is not a tokenizer",)),
    "half a vocabulary for a tokenizer": (
        {"data.tokenizer": "{}/half"},
        ("half/vocab.json' has no merges.txt",),
    ),
    "a lost special token": (
        {"data.tokenizer": "{}/lost"},
        ("lost' names '<gone>' as its mask token", "special_tokens_map.json"),
    ),
    "whole words without word starts": (
        {
            "model.objective": "MaskedLM",
            "model.objective.whole_words": True,
            "model.backbone": {"dim": 32, "depth": 2, "heads": 2, "max_length": 32},
        },
        ("model.objective.whole_words needs word starts", "word_starts true"),
    ),
    "no tokenizer": ({"data.tokenizer": None}, ("data.tokenizer is missing",)),
    "foreign tokenizer": (
        {"data.tokenizer": "wordpiece"},
        ("was made with another tokenizer", "prepare the text again"),
    ),
    "vocabulary larger than the embedding": (
        {"model.vocab_size": 100},
        ("ids up to", "embedding 100 rows", "model.vocab_size"),
    ),
    "rows longer than the backbone": (
        {"data.length": 64},
        ("data.length is 64", "at most 32", "model.backbone.max_length"),
    ),
    "masked objective on a causal backbone": (
        {"model.objective": "MaskedLM"},
        ("objective 'masked'", "model.backbone.causal false"),
    ),
    "causal objective on a bidirectional backbone": (
        {"model.backbone.causal": False},
        ("objective 'causal'", "model.backbone.causal true"),
    ),
    "heads that do not divide": (
        {"model.backbone.heads": 3},
        ("backbone.heads 3 does not divide backbone.dim 32",),
    ),
    "negative learning rate": ({"model.optimizer.lr": -1}, ("optimizer.lr is -1", "positive")),
    "empty batches": ({"data.global_batch_size": 0}, ("data.global_batch_size is 0", "1 or more")),
    "no end": (
        {"trainer.max_steps": None},
        ("how long to train?", "trainer.max_steps", "trainer.max_epochs"),
    ),
    "accumulation by hand": (
        {"trainer.accumulate_grad_batches": 3},
        ("trainer.accumulate_grad_batches is 3", "data.global_batch_size"),
    ),
    "FSDP1": ({"trainer.strategy": "fsdp"}, ("trainer.strategy is 'fsdp'", "fsdp.yaml")),
    "machines that nobody started": (
        {"trainer.num_nodes": 2},
        ("trainer.num_nodes is 2", "torchrun or srun", "docs/clusters.md"),
    ),
    "unknown strategy": ({"trainer.strategy": "foo"}, ("strategy 'foo'",)),
    "unknown accelerator": ({"trainer.accelerator": "foo"}, ("accelerator 'foo'",)),
    "a bundle and a backbone": (
        {"model.init_from": "{}/one"},
        ("model.backbone and model.init_from", "give one"),
    ),
    "missing checkpoint": ({"ckpt_path": "{}/nope.ckpt"}, ("--ckpt_path not found", "nope.ckpt")),
    "garbage for a checkpoint": ({"ckpt_path": "{}/garbage.ckpt"}, ("garbage.ckpt' is torn",)),
    "a checkpoint of another program": (
        {"ckpt_path": "{}/foreign.ckpt"},
        ("--ckpt_path", "foreign.ckpt' is no checkpoint of a run of this program"),
    ),
    "a checkpoint that holds code": (
        {"ckpt_path": "{}/code.ckpt"},
        ("--ckpt_path", "code.ckpt' cannot be loaded"),
    ),
    "a corpus in UTF-16": (
        {"data.files": ["{}/utf16.jsonl"], "data.store": "{}/s7"},
        ("utf16.jsonl' is not UTF-8", "looks like UTF-16", "--data.encoding"),
    ),
    "a corpus of bytes": (
        {"data.files": ["{}/nul.txt"], "data.store": "{}/s8"},
        ("nul.txt' is not UTF-8", "it may be no text", "--data.encoding"),
    ),
    "a corpus of another kind": (
        {"data.files": ["{}/paper.pdf"], "data.store": "{}/s9"},
        ("cannot read", "paper.pdf", ".jsonl"),
    ),
    "a name that says gzip": (
        {"data.files": ["{}/plain.jsonl.gz"], "data.store": "{}/s10"},
        ("empty corpus", "plain.jsonl.gz; 1 documents could not be read (1 damaged file)"),
    ),
    "a store without a shard": (
        {"data.store": "{}/store-lost"},
        ("train-00000.tokens.npy' cannot be read",),
    ),
    "a store without a shard, found by a worker": (
        {"data.store": "{}/store-lost", "data.workers": 1},
        ("train-00000.tokens.npy' cannot be read",),
    ),
    "a torn shard": (
        {"data.store": "{}/store-torn"},
        ("train-00000.tokens.npy' cannot be read",),
    ),
    "a store with half a manifest": (
        {"data.store": "{}/store-manifest"},
        ("manifest.json' is not whole ('train')", "prepare the store again"),
    ),
    "a file for a directory": (
        {"data.store": "{}/corpus.jsonl/s", "data.files": ["{}/corpus.jsonl"]},
        ("corpus.jsonl/s': Not a directory", "name another place"),
    ),
    "a store where nobody may write": (
        {"data.store": "/proc/store", "data.files": ["{}/corpus.jsonl"]},
        ("/proc/store': ", "name another place"),
    ),
    "a run directory that is a file": (
        {"run_dir": "{}/corpus.jsonl"},
        ("corpus.jsonl': File exists", "name another place"),
    ),
    "a run directory where nobody may write": (
        {"run_dir": "/proc/run"},
        ("/proc/run': ", "name another place"),
    ),
    "an audit on a full disk": (
        {"data.audit": "/dev/full"},
        ("could not be written: No space left on device", "make room"),
    ),
    "an audit that is a directory": (
        {"data.audit": "{}/directory"},
        ("directory': Is a directory", "name another place"),
    ),
    "fewer than no workers": ({"data.workers": -1}, ("data.workers is -1", "0 or more")),
    "no share": ({"data.validation_share": 2.0}, ("validation_share is 2.0", "from 0 to 1")),
    "a backbone of no width": ({"model.backbone.dim": 0}, ("backbone.dim is 0", "1 or more")),
    "a feed-forward part of no width": (
        {"model.backbone.hidden_dim": -5},
        ("backbone.hidden_dim is -5", "more than 0"),
    ),
    "angles of no base": (
        {"model.backbone.rope_theta": 0},
        ("backbone.rope_theta is 0", "more than 0"),
    ),
    "dropout of everything": (
        {"model.backbone.dropout": 2.0},
        ("backbone.dropout is 2.0", "[0, 1)"),
    ),
    "validation by the clock": (
        {"trainer.val_check_interval": "00:01:00:00"},
        ("trainer.val_check_interval is '00:01:00:00'", "optimizer steps"),
    ),
    "validation never": (
        {"trainer.val_check_interval": 0},
        ("trainer.val_check_interval is 0", "above 0"),
    ),
    "a negative norm": (
        {"trainer.gradient_clip_val": -1.0},
        ("trainer.gradient_clip_val is -1.0", "0 to clip nothing"),
    ),
    "clipping by value": (
        {"trainer.gradient_clip_algorithm": "value"},
        ("trainer.gradient_clip_algorithm", "'norm'"),
    ),
    "overfitting in a fit": (
        {"trainer.overfit_batches": 2},
        ("trainer.overfit_batches is 2", "`ptft_lightning check`"),
    ),
    "a part of the batches": (
        {"trainer.limit_train_batches": 3},
        ("trainer.limit_train_batches is 3", "trainer.max_steps"),
    ),
    "one batch": ({"trainer.limit_train_batches": 1}, ("trainer.limit_train_batches is 1",)),
    "validation after epochs": (
        {"trainer.check_val_every_n_epoch": 2},
        ("trainer.check_val_every_n_epoch is 2", "trainer.val_check_interval"),
    ),
    "a limit of time": (
        {"trainer.max_time": "00:01:00:00"},
        ("trainer.max_time is '00:01:00:00'", "timeout -s USR1"),
    ),
    "means of all time": (
        {"model.optimizer.betas": [0.9, 1.0]},
        ("optimizer.betas is (0.9, 1.0)", "in [0, 1)"),
    ),
    "less than no eps": ({"model.optimizer.eps": -1.0}, ("optimizer.eps is -1.0", "0 or more")),
    "decay that grows": (
        {"model.optimizer.weight_decay": -1.0},
        ("optimizer.weight_decay is -1.0", "0 or more"),
    ),
    "no device": ({"trainer.devices": 0}, ("devices '0'", "not a valid input")),
    "a device with a name": ({"trainer.devices": "abc"}, ("devices 'abc'", "should be an int")),
    "a precision that is not installed": (
        {"trainer.precision": "transformer-engine"},
        ("trainer (", "transformer_engine"),
    ),
    "a strategy that is not installed": (
        {"trainer.strategy": "deepspeed"},
        ("strategy 'deepspeed'", "install"),
    ),
    "no nodes": ({"trainer.num_nodes": 0}, ("num_nodes", "positive integer")),
    "checkpoints every zero steps": (
        {"checkpoint.every_n_steps": 0},
        ("checkpoint.every_n_steps is 0", "1 or more"),
    ),
}


def filled(value: Any, at: Path) -> Any:
    """An option with the test's directory for {}."""
    if isinstance(value, list):
        return [filled(item, at) for item in value]
    return value.replace("{}", str(at)) if isinstance(value, str) else value


@pytest.mark.parametrize("name", PHASE_ONE)
def test_phase_one(name, place, store, bpe_path, wordpiece_path, tmp_path):
    change, parts = PHASE_ONE[name]
    change = {key: filled(value, place) for key, value in change.items()}
    if change.get("data.tokenizer") == "wordpiece":
        change["data.tokenizer"] = str(wordpiece_path)
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__max_steps=2, data__audit=None)
    assert_one_line(call(words("fit", options | change)), *parts)
    assert not (tmp_path / "run" / "checkpoints").exists()


# Phase two and what follows it.

PHASE_TWO: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown column": ({"data.columns": {"texxt": "a"}}, ("'data.columns.texxt'", "columns.text'")),
    "unknown column, dotted": ({"data.columns.texxt": "a"}, ("'data.columns.texxt'", "did you")),
    "missing column of a csv": (
        {"data.train": "{}/klass.csv"},
        ("klass.csv line 2", "no column 'label'", "['text', 'klass']", "data.columns"),
    ),
    "missing column of a jsonl": (
        {"data.train": "{}/body.jsonl"},
        ("body.jsonl line 1", "no column 'text'", "['body', 'stars']"),
    ),
    "a short line": ({"data.train": "{}/ragged.csv"}, ("ragged.csv line 3", "1 columns")),
    "a broken line": ({"data.train": "{}/broken.jsonl"}, ("broken.jsonl line 2", "JSON")),
    "not UTF-8": ({"data.train": "{}/latin.csv"}, ("latin.csv", "not UTF-8")),
    "missing file": ({"data.train": "{}/nope.jsonl"}, ("file not found", "nope.jsonl")),
    "no file": ({"data.train": None}, ("data.train is missing",)),
    "empty file": ({"data.train": "{}/empty.jsonl"}, ("empty.jsonl", "no examples")),
    "one label": ({"data.train": "{}/one.jsonl"}, ("two labels or more", "['water']")),
    "unknown label": (
        {"data.validation": "{}/zebra.jsonl"},
        ("zebra.jsonl line 1", "'zebra'", "['land', 'water']"),
    ),
    "foreign tokenizer": (
        {"data.tokenizer": "wordpiece"},
        ("data.tokenizer", "fingerprint", "leave data.tokenizer out"),
    ),
    "neither bundle nor tokenizer": (
        {"model.init_from": None},
        ("model.init_from", "data.tokenizer"),
    ),
    "examples longer than the backbone": (
        {"data.max_length": 64},
        ("data.max_length is 64", "at most 32"),
    ),
    "a directory that is no bundle": (
        {"model.init_from": "{}/directory"},
        ("directory' is not a bundle", "config.json"),
    ),
    "garbage for a bundle": ({"model.init_from": "{}/garbage"}, ("garbage' is not a bundle",)),
    "a torn checkpoint for a bundle": (
        {"model.init_from": "{}/garbage.ckpt"},
        ("garbage.ckpt' is torn",),
    ),
    "missing bundle": ({"model.init_from": "{}/nope"}, ("bundle not found", "nope")),
    "a Hugging Face folder of a kind we have not": (
        {"model.init_from": "{}/mixtral"},
        ("mixtral/config.json'", "model_type 'mixtral'", "llama"),
    ),
    "a Hugging Face folder with another activation": (
        {"model.init_from": "{}/relu"},
        ("relu/config.json'", "hidden_act 'relu'", "'gelu'"),
    ),
    "a Hugging Face folder without its sizes": (
        {"model.init_from": "{}/sizes"},
        ("sizes/config.json'", "no 'n_embd'"),
    ),
    "a Hugging Face folder with pickled weights": (
        {"model.init_from": "{}/pickled"},
        ("pickle (pytorch_model.bin)", "convert them to safetensors"),
    ),
    "a Hugging Face folder with a torn file": (
        {"model.init_from": "{}/torn"},
        ("torn/model.safetensors' cannot be read",),
    ),
    "a Hugging Face folder without config": (
        {"model.init_from": "{}/bare"},
        ("bare/config.json' is missing",),
    ),
    "a hub id, offline": (
        {"model.init_from": "nobody-here/nothing"},
        ("'nobody-here/nothing' is not a folder here", "cannot be fetched"),
    ),
    "unknown task": (
        {"model.task": "Clasification"},
        ("model.task is 'Clasification'", "did you mean 'Classification'?"),
    ),
    "a metric the task does not have": (
        {"model.task.monitor": "rouge"},
        ("model.task.monitor is 'rouge'", "'accuracy', 'macro_f1', 'mcc', 'loss'"),
    ),
    "weights of labels that are none": (
        {"model.task.class_weights": {"waterr": 2.0}},
        ("task.class_weights names ['waterr']", "['land', 'water']"),
    ),
    "weights of fewer labels": (
        {"model.task.class_weights": [2.0]},
        ("task.class_weights has 1 numbers, there are 2 labels",),
    ),
    "unknown kind of weights": (
        {"model.task.class_weights": "balancd"},
        ("model.task.class_weights is 'balancd'", "'balanced'"),
    ),
    "a list where one label is wanted": (
        {"data.train": "{}/list.jsonl"},
        ("list.jsonl line 1", "['water', 'land']", "choose MultiLabel"),
    ),
    "words where numbers are wanted": (
        {"model.task": "Regression"},
        ("train.jsonl line 1", "is not a number"),
    ),
    "a threshold that is no probability": (
        {"model.task": "MultiLabel", "model.task.threshold": 50},
        ("task.threshold is 50", "between 0 and 1"),
    ),
    "one name for two labels": (
        {"data.label_names": "{}/twice.txt"},
        ("data.label_names: ['water'] stand for several labels",),
    ),
    "missing names of labels": ({"data.label_names": "{}/nope.txt"}, ("not found", "nope.txt")),
    "no patience": ({"early_stopping.patience": 0}, ("early_stopping.patience is 0", "1 or more")),
    "early stopping without validation": (
        {
            "early_stopping.patience": 2,
            "data.validation": None,
            "data.validation_share": 0.0,
        },
        ("early_stopping.patience needs validations", "data.validation"),
    ),
    "neither stop nor skip": (
        {"data.unknown_labels": "ignore"},
        ("data.unknown_labels is 'ignore'", "'stop', 'skip'"),
    ),
    "unknown tuning": ({"model.tuning": "Prompt"}, ("model.tuning is 'Prompt'", "'PromptTuning'?")),
    "a checkpoint of phase one": (
        {"ckpt_path": "{}/one/checkpoints/step=00000002.ckpt"},
        ("pretrain checkpoint", "--model.init_from"),
    ),
    "not UTF-8 but UTF-16": ({"data.train": "{}/utf16.jsonl"}, ("utf16.jsonl", "not UTF-8")),
    "a file of another kind": ({"data.train": "{}/paper.pdf"}, ("cannot read", "paper.pdf")),
    "half a character": (
        {"data.train": "{}/surrogate.jsonl"},
        ("surrogate.jsonl line 1", "not valid Unicode"),
    ),
    "an open quote": ({"data.train": "{}/quote.csv"}, ("quote.csv line 3", "quotes do not match")),
    "rows of no length": ({"data.max_length": -1}, ("data.max_length is -1", "at least 4")),
    "a share below none": (
        {"data.validation_share": -2.0},
        ("validation_share is -2.0", "from 0 to 1"),
    ),
    "dropout of everything": ({"model.task.dropout": 3.0}, ("task.dropout is 3.0", "below 1")),
    "a bundle whose config is empty": (
        {"model.init_from": "{}/bundle-empty"},
        ("bundle-empty' has no phase, backbone, head",),
    ),
    "a bundle of a later version": (
        {"model.init_from": "{}/bundle-later"},
        ("bundle-later' has bundle format 9", "reads 1"),
    ),
    "a bundle of an unknown kind": (
        {"model.init_from": "{}/bundle-kind"},
        ("backbone kind 'mamba' is unknown", "transformer"),
    ),
    "a bundle with an unknown setting": (
        {"model.init_from": "{}/bundle-setting"},
        ("backbone cannot be built", "'loops'"),
    ),
    "a bundle whose tensors have other shapes": (
        {"model.init_from": "{}/bundle-wide"},
        ("'backbone.embedding.weight' has shape (600, 32)", "needs (600, 64)"),
    ),
    "a bundle with garbage for tensors": (
        {"model.init_from": "{}/bundle-weights"},
        ("model.safetensors' cannot be read",),
    ),
    "code for a bundle": (
        {"model.init_from": "{}/code.ckpt"},
        ("code.ckpt' cannot be loaded",),
    ),
}


@pytest.mark.parametrize("name", PHASE_TWO)
def test_phase_two(name, place, wordpiece_path, tmp_path):
    change, parts = PHASE_TWO[name]
    change = {key: filled(value, place) for key, value in change.items()}
    if change.get("data.tokenizer") == "wordpiece":
        change["data.tokenizer"] = str(wordpiece_path)
    options = finetune(tmp_path / "run", place / "one", place, data__audit=None)
    assert_one_line(call(words("fit", options | change)), *parts)
    assert not (tmp_path / "run" / "checkpoints").exists()


AFTER: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "unknown label": (
        "test",
        {"run_dir": "{}/two", "data.test": "{}/zebra.jsonl"},
        ("zebra.jsonl line 1", "'zebra'", "['land', 'water']"),
    ),
    "a setting the bundle was not tuned with": (
        "test",
        {"run_dir": "{}/two", "model.task.pooling": "first"},
        ("tuned with model.task.pooling 'auto'", "yours is 'first'", "give the same"),
    ),
    "unknown key": (
        "test",
        {"run_dir": "{}/two", "data.tesst": "x"},
        ("'data.tesst'", "did you mean 'data.test'?"),
    ),
    "no such run": ("test", {"run_dir": "{}/nope"}, ("no run in", "nope", "--run_dir")),
    "no run": ("test", {}, ("test needs a finished run", "--run_dir", "--config")),
    "missing checkpoint": (
        "test",
        {"run_dir": "{}/two", "ckpt_path": "{}/nope.ckpt"},
        ("--ckpt_path not found", "nope.ckpt", "two/checkpoints/step="),
    ),
    "nothing to predict": (
        "predict",
        {"run_dir": "{}/two"},
        ("nothing to predict", "--text", "--data.predict"),
    ),
    "missing file to predict": (
        "predict",
        {"run_dir": "{}/two", "data.predict": "{}/nope.jsonl"},
        ("file not found", "nope.jsonl"),
    ),
    "predicting with phase one": (
        "predict",
        {"run_dir": "{}/one", "text": "a"},
        ("phase-two", "FinetuneModule"),
    ),
    "predictions over what is predicted": (
        "predict",
        {"run_dir": "{}/two", "data.predict": "{}/one.jsonl", "output": "{}/one.jsonl"},
        ("--output ", "one.jsonl' is the file that is read"),
    ),
    "predictions to a full disk": (
        "predict",
        {"run_dir": "{}/two", "text": "a", "output": "/dev/full"},
        ("could not be written: No space left on device", "make room"),
    ),
    "predictions into a file": (
        "predict",
        {"run_dir": "{}/two", "text": "a", "output": "{}/corpus.jsonl/x"},
        ("corpus.jsonl': File exists",),
    ),
}


@pytest.mark.parametrize("name", AFTER)
def test_after_a_run(name, place):
    command, options, parts = AFTER[name]
    options = {key: filled(value, place) for key, value in options.items()}
    assert_one_line(call(words(command, options)), *parts)


# Config files: the line is named.


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("max_steps: 2", "max_stepz: 2", ("'trainer.max_stepz'", "max_steps'?")),
        ("length: 32\n", "lenght: 32\n", ("'data.lenght'", "'data.length'?")),
        ("dim: 32", "dimm: 32", ("'model.backbone.dimm'", "'model.backbone.dim'?")),
        ("rate: 0.2", "rat: 0.2", ("'model.objective.rat'", "objective.rate'?")),
        ("lr: 1.0e-3", "lrr: 1.0e-3", ("'model.optimizer.lrr'", "optimizer.lr'?")),
        ("run_dir:", "rundir:", ("'rundir'", "did you mean 'run_dir'?")),
        ("trainer: {", "modle: {}\ntrainer: {", ("'modle'", "'model'?")),
        ("  init_args:\n    obj", "  init_argz:\n    obj", ("'model.init_args'?",)),
        ("length: 32\n", "length: abc\n", ("data.length is 'abc'", "expected int")),
        (
            "MaskedLM, init",
            "MaskdLM, init",
            ("model.objective is 'MaskdLM'", "'MaskedLM'?"),
        ),
        ("trainer: {", "trainer: {[", ("not YAML",)),
        ("accelerator: cpu", "checkpoint: 3", ("'trainer.checkpoint'",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_config_file(old, new, parts, store, bpe_path, tmp_path):
    text = CONFIG.format(run_dir=tmp_path / "run", store=store, tokenizer=bpe_path)
    assert text.count(old) == 1
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace(old, new))
    line = text[: text.index(old)].count("\n") + 1
    assert_one_line(call(["fit", "--config", str(file)]), "mine.yaml", f"line {line}: ", *parts)


def test_a_config_file_is_not_blamed_for_the_command_line(store, bpe_path, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(CONFIG.format(run_dir=tmp_path / "run", store=store, tokenizer=bpe_path))
    run = call(["fit", "--config", str(file), "--data.length", "abc"])
    assert_one_line(run, "error: data.length is 'abc': expected int")


def test_a_config_file_that_is_a_list(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("- a\n- b\n")
    assert_one_line(call(["fit", "--config", str(file)]), "mine.yaml", "model, data and trainer")


# The other commands.

SWEEP = ("sweep", "--config", "{}/two/config.yaml", "--output", "{}/sweep")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["fitt"], ("unknown command 'fitt'", "did you mean 'fit'?")),
        (["zzz"], ("unknown command 'zzz'", "fit, validate, test, predict, ")),
        (["--config", "x.yaml"], ("unknown command '--config'", "fit, validate")),
        (["fit"], ("--config FILE", "--model and --data")),
        (["fit", "--config"], ("--config", "expected one argument")),
        (["fit", "word"], ("'word' is one word too many",)),
        (["tokenizer", "--filez", "[a]"], ("'--filez'", "did you mean '--files'?")),
        (["tokenizer", "--zzz", "1"], ("'--zzz'", "known here", "--vocab_size")),
        (["tokenizer", "--files", "[{}/body.jsonl]"], ("--output is missing",)),
        (["tokenizer", "--files", "a.txt", "--output", "{}/t"], ("--files is 'a.txt'", "[a, b]")),
        (
            ["tokenizer", "--files", "[a.txt]", "--output", "{}/t", "--vocab_size", "abc"],
            ("--vocab_size is 'abc'", "expected int"),
        ),
        (
            ["tokenizer", "--files", "[a.txt]", "--output", "{}/t", "--kind", "bppe"],
            ("--kind is 'bppe'", "'bpe', 'wordpiece', 'unigram'"),
        ),
        (
            ["tokenizer", "--files", "[{}/one.jsonl]", "--output", "{}/t", "--normalize", "nfcx"],
            ("unknown normalisation 'nfcx'", "nfkc, t2s"),
        ),
        (
            ["tokenizer", "--files", "[a.txt]", "--output", "{}/t", "--vocab_size", "10"],
            ("--vocab_size is 10", "300"),
        ),
        (["tokenizer", "--files", "[nope.txt]", "--output", "{}/t"], ("not found: 'nope.txt'",)),
        (["tokenizer", "--files", "[{}/empty.jsonl]", "--output", "{}/t"], ("empty corpus",)),
        (["tokenizer", "a.txt"], ("'a.txt' is one word too many",)),
        (["prepare", "--outptu", "{}/s"], ("'--outptu'", "did you mean '--output'?")),
        (["prepare", "--files", "[a.txt]"], ("--tokenizer and --output are missing",)),
        (
            ["prepare", "--files", "[a]", "--tokenizer", "t", "--output", "{}/s", "--seed", "abc"],
            ("--seed is 'abc'", "expected int"),
        ),
        (
            ["prepare", "--files", "[a.txt]", "--tokenizer", "{}/nope", "--output", "{}/s"],
            ("tokenizer not found", "nope"),
        ),
        (["report"], ("runs is missing",)),
        (["report", "{}/nope"], ("run not found: ", "nope' is not a directory")),
        (["report", "{}/directory"], ("no run in ", "config.yaml", "--run_dir of a fit")),
        (["report", "{}/one", "{}/two"], ("2 runs", "--output FILE.html")),
        (["report", "{}/one", "--output", "{}"], ("--output ", "is a directory", "report.html")),
        (["report", "{}/one", "--outptu", "x"], ("'--outptu'", "did you mean '--output'?")),
        (
            ["tokenizer", "--files", "[{}/chinese.txt]", "--output", "{}/t"],
            ("chinese.txt' is not UTF-8, looks like GB18030", "--encoding"),
        ),
        (
            ["tokenizer", "--files", "[{}/half.jsonl]", "--output", "{}/t", "--max_bad_share", "3"],
            ("max_bad_share is 3", "from 0 to 1"),
        ),
        (
            ["tokenizer", "--files", "[{}/half.jsonl]", "--output", "{}/t", "--vocab_size", "300"],
            ("9 documents", "half.jsonl at byte 17", "--max_bad_share"),
        ),
        (["tune"], ("what to train?", "--config FILE")),
        (["tune", "--config", "{}/two/config.yaml"], ("--what lr or --what micro_batch_size",)),
        (
            ["tune", "--config", "{}/two/config.yaml", "--what", "rate"],
            ("what is 'rate'", "'lr', 'micro_batch_size'"),
        ),
        (
            ["tune", "--config", "{}/two/config.yaml", "--what", "lr", "--min_lr", "2"],
            ("--min_lr 2.0 and --max_lr 1.0",),
        ),
        (
            ["tune", "--config", "{}/two/config.yaml", "--what", "lr", "--steps", "3"],
            ("--steps is 3", "18 or more"),
        ),
        (
            [
                *("tune", "--config", "{}/two/config.yaml", "--what", "micro_batch_size"),
                *("--trainer.devices", "2", "--trainer.strategy", "ddp"),
            ],
            ("one device, this config takes 2", "--trainer.devices 1"),
        ),
        (["sweep"], ("--config and --space and --output are missing",)),
        ([*SWEEP, "--spacee", "x"], ("'--spacee'", "did you mean '--space'?")),
        ([*SWEEP, "--space", "{}/nope.yaml"], ("--space not found", "nope.yaml")),
        ([*SWEEP, "--space", "{}/blank.txt"], ("holds no settings", "log_uniform")),
        ([*SWEEP, "--space", "{}/blank.txt", "--metric", "val_f"], ("'val_f'", "--direction")),
        ([*SWEEP, "--space", "{}/blank.txt", "--trials", "0"], ("--trials is 0",)),
        ([*SWEEP, "--space", "{}/space.yaml"], ("'model.optimizer.lrr'", "did you mean 'lr'?")),
        (["generate", "--prompt", "a"], ("--init_from is missing",)),
        (["generate", "--init_from", "{}/nope", "--prompt", "a"], ("bundle not found", "nope")),
        (
            ["generate", "--init_from", "{}/two", "--prompt", "a"],
            ("finetune bundle ('classification')", "phase one", "causal or masked"),
        ),
        (["generate", "--init_from", "{}/one"], ("--prompt TEXT or --prompts FILE",)),
        (
            ["score", "--init_from", "{}/two", "--text", "a"],
            ("finetune bundle ('classification')", "phase one"),
        ),
        (["score", "--init_from", "{}/one", "--filez", "[a]"], ("did you mean '--files'?",)),
        (["score", "--init_from", "{}/one", "--files", "[{}/empty.jsonl]"], ("no documents",)),
        (["inspect"], ("path is missing",)),
        (["inspect", "{}/nope"], ("not found", "nope")),
        (["inspect", "{}/directory"], ("directory' is not a bundle",)),
        (["inspect", "{}/garbage"], ("garbage' is not a bundle",)),
        (["inspect", "{}/garbage.ckpt"], ("garbage.ckpt' is torn",)),
        (["inspect", "--zzz", "1"], ("'--zzz'",)),
        (["inspect", "{}/one", "{}/two"], ("one word too many",)),
        (
            ["inspect", "{}/store-altered", "--verify", "true"],
            ("'train-00000'", "store-altered' does not match its checksum", "prepare the store"),
        ),
        (
            ["inspect", "{}/store-lost", "--verify", "true"],
            ("train-00000.tokens.npy' cannot be read",),
        ),
        (["inspect", "{}/mixtral"], ("model_type 'mixtral'", "llama")),
        (["export", "--init_from", "{}/two"], ("--output is missing",)),
        (["export", "--init_from", "{}/nope", "--output", "{}/x"], ("bundle not found", "nope")),
        (
            ["export", "--init_from", "{}/two", "--output", "{}/x"],
            ("nearest is gpt2", "backbone.positions is 'rotary'", "'learned'"),
        ),
        (
            ["export", "--init_from", "{}/one", "--output", "{}/x", "--family", "gtp2"],
            ("--family is 'gtp2'", "gpt2, llama"),
        ),
        (
            ["export", "--init_from", "{}/one", "--output", "{}/two"],
            ("two' is there already", "--overwrite"),
        ),
        (
            ["export", "--init_from", "{}/one", "--output", "{}/two", "--overwrite", "true"],
            ("two' is no earlier export",),
        ),
        (
            ["export", "--init_from", "{}/one", "--output", "{}/x", "--shard_gb", "0"],
            ("--shard_gb is 0.0", "positive"),
        ),
        (
            ["export", "--init_from", "{}/one", "--output", "{}/x", "--format", "onxn"],
            ("--format is 'onxn'", "'huggingface'"),
        ),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_commands(args, parts, place):
    assert_one_line(call([filled(arg, place) for arg in args]), *parts)


def test_a_disk_that_fills_up(store, bpe_path, tmp_path):
    """While a checkpoint is written: one line, and no half of a file under its name."""
    options = pretrain(tmp_path / "run", store, bpe_path, trainer__max_steps=3, data__audit=None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        run = call(words("fit", options))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run.code == 2, run.err
    assert run.errors == run.err.splitlines()[-1:]
    assert "File too large: make room" in run.errors[0]
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_what_is_printed(place, capsys):
    """The line itself, without the tests' own wrapping of the command."""
    with pytest.raises(SystemExit) as end:
        main(["test", "--run_dir", str(place / "two"), "--data.max_lenght", "3"])
    assert end.value.code == 2
    assert capsys.readouterr() == (
        "",
        "error: unknown key 'data.max_lenght': did you mean 'data.max_length'?\n",
    )


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ptft_lightning.cli.run", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == 130
    assert capsys.readouterr().err == ""


def test_only_a_machine_s_first_process_says_it():
    run = call(["fitt"], LOCAL_RANK="1")
    assert (run.code, run.out, run.err) == (2, "", "")


def test_two_ranks_say_it_once(store, bpe_path, tmp_path):
    """Whether both ranks find it or rank 0 alone, nothing hangs and nobody else complains."""
    options = pretrain(tmp_path / "run", store, bpe_path, data__audit=None)
    two = {"trainer.devices": 2, "trainer.strategy": "ddp"}
    missing = {"data.files": ["nope.jsonl"], "data.store": str(tmp_path / "store")}
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"data.global_batch_size": 1}, ("data.global_batch_size 1", "ranks 2")),
        (missing | {"run_dir": str(tmp_path / "other")}, ("not found: 'nope.jsonl'",)),
    ]
    processes = [launch(words("fit", options | two | change)) for change, _ in cases]
    for process, (_, parts) in zip(processes, cases, strict=True):
        run = finish(process)
        assert_one_line(run, *parts)
        assert run.err.count("error") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"zz": 1}, "unknown key 'model.backbone.zz': known here: causal, cell, "),
        ({"dimm": 1}, "unknown key 'model.backbone.dimm': did you mean 'model.backbone.dim'?"),
        ({"dim": "x"}, "model.backbone.dim is 'x': expected int"),
    ],
)
def test_a_setting_of_another_backbone(given, said, store, bpe_path, tmp_path):
    options = pretrain(tmp_path / "run", store, bpe_path)
    options["model.backbone"] = {"class_path": "LSTMConfig", "init_args": given}
    run = call(words("fit", options))
    assert run.code == 2
    assert said in run.errors[0]
    options["model.backbone"] = {"class_path": "LSTMConfig"}
    (name, value), *_ = given.items()
    run = call(words("fit", options | {f"model.backbone.{name}": str(value)}))
    assert said in run.errors[0]


@pytest.mark.parametrize(
    "command",
    [
        "answer --run_dir none --files [{file}] --question who --output {link}",
        "answer --run_dir none --files [docs.txt] --questions {file} --output {link}",
        "extract --triggers none --arguments none --texts {file} --output {link}",
        "score --init_from none --files [{file}] --output {link}",
        "rank --queries {file} --passages p.jsonl --output {link}",
        "rank --queries q.jsonl --passages {file} --output {link}",
        "prompt --init_from none --test {file} --output {link}",
        "prompt --init_from none --test t.jsonl --train {file} --shots 1 --output {link}",
    ],
)
def test_no_command_writes_over_what_it_reads(command, tmp_path):
    """Before anything is loaded; by whatever name."""
    (tmp_path / "one.jsonl").write_text("{}\n")
    (tmp_path / "other").symlink_to(tmp_path, target_is_directory=True)
    names = {"file": tmp_path / "one.jsonl", "link": tmp_path / "other" / "one.jsonl"}
    run = call([word.format(**names) for word in command.split()])
    assert run.code == 2
    (error,) = run.errors
    assert error.endswith("one.jsonl' is the file that is read: name another one")
    assert (tmp_path / "one.jsonl").read_text() == "{}\n"
