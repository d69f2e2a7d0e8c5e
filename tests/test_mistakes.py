"""What a user does wrong is one line that names value, place and fix; exit code 2, no traceback."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
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
    *("train: ", "validation: "),
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
    (at / "new.jsonl").write_text('{"text": "a b"}\n')
    return at


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
    "no store and no files": ({"data.store": "{}/s6"}, ("no token store at", "data.files")),
    "missing tokenizer": ({"data.tokenizer": "{}/nope"}, ("tokenizer not found", "nope")),
    "garbage for a tokenizer": ({"data.tokenizer": "{}/garbage"}, ("garbage' is not a tokenizer",)),
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
    "unknown strategy": ({"trainer.strategy": "foo"}, ("strategy 'foo'",)),
    "unknown accelerator": ({"trainer.accelerator": "foo"}, ("accelerator 'foo'",)),
    "a bundle of phase two": (
        {"model.init_from": "{}/two", "model.backbone": None},
        ("init_from", "finetune bundle", "PretrainModule starts from pretrain"),
    ),
    "a bundle and a backbone": (
        {"model.init_from": "{}/one"},
        ("model.backbone and model.init_from", "give one"),
    ),
    "missing checkpoint": ({"ckpt_path": "{}/nope.ckpt"}, ("--ckpt_path not found", "nope.ckpt")),
    "garbage for a checkpoint": ({"ckpt_path": "{}/garbage.ckpt"}, ("garbage.ckpt' is torn",)),
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
    "unknown task": (
        {"model.task": "Clasification"},
        ("model.task is 'Clasification'", "did you mean 'Classification'?"),
    ),
    "unknown tuning": ({"model.tuning": "Prompt"}, ("model.tuning is 'Prompt'", "Frozen or Full")),
    "a checkpoint of phase one": (
        {"ckpt_path": "{}/one/checkpoints/step=00000002.ckpt"},
        ("pretrain checkpoint", "--model.init_from"),
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


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["fitt"], ("unknown command 'fitt'", "did you mean 'fit'?")),
        (["zzz"], ("unknown command 'zzz'", "fit, validate, test, predict, tokenizer")),
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
            ("--kind is 'bppe'", "'bpe', 'wordpiece'"),
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
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_commands(args, parts, place):
    assert_one_line(call([filled(arg, place) for arg in args]), *parts)


def test_what_is_printed(place, capsys):
    """The line itself, without the tests' own wrapping of the command."""
    with pytest.raises(SystemExit) as end:
        main(["test", "--run_dir", str(place / "two"), "--data.max_lenght", "3"])
    assert end.value.code == 2
    assert capsys.readouterr() == (
        "",
        "error: unknown key 'data.max_lenght': did you mean 'data.max_length'?\n",
    )


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
        (missing, ("not found: 'nope.jsonl'",)),
    ]
    processes = [launch(words("fit", options | two | change)) for change, _ in cases]
    for process, (_, parts) in zip(processes, cases, strict=True):
        run = finish(process, timeout=60)
        assert_one_line(run, *parts)
        assert run.err.count("error") == 1
