"""From a Hugging Face folder through our commands and back to one, as a user goes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from faults.kit import call, done, finetune, pretrain, read_json_lines, words, write_examples
from interop.conftest import SHAPE, TAGS, build_peer, edit_config
from safetensors.torch import load_file, save_file

from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.interop.open import open_model

SHORT = [
    {"text": "old sea", "second": "green hill"},
    {"text": "rain", "second": "letter builds the"},
    {"text": "A new field!", "second": "a lake"},
    {"text": "river 的 stone", "second": "under"},
]
PAIR = {"text": "text", "pair": "second", "label": "label"}
# What a task must be set to, to be written as a model of each family.
TASKS = {
    "bert": {"pooling": "first", "transform": "tanh"},
    "bert bare": {"pooling": "first", "transform": "tanh"},
    "roberta": {"pooling": "first", "transform": "tanh"},
    "modernbert": {"pooling": "mean", "transform": "gelu"},
    "electra": {"pooling": "first", "transform": "plain_gelu"},
    "gpt2": {"pooling": "last", "bias": False},
    "qwen3": {"pooling": "last", "bias": False},
}


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("examples"))


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("bert bare", False),
        ("bert", True),
        ("roberta", True),
        ("modernbert", False),
        ("electra", True),
        ("gpt2", False),
        ("qwen3", True),
    ],
)
def test_tuned_and_handed_back(
    name: str, pairs: bool, folder_of: Any, examples: Path, tmp_path: Path
) -> None:
    """Folder -> fit -> predict -> export -> transformers, from text, gives our predictions."""
    source = folder_of(name, tmp_path / "source", build_peer(name))
    run_dir = tmp_path / "run"
    options = finetune(run_dir, source, examples, trainer__max_epochs=1)
    options |= {f"model.task.{key}": value for key, value in TASKS[name].items()}
    options |= {"data.columns": PAIR} if pairs else {}
    fitted = done(words("fit", options))
    assert "new: head." in fitted.err
    assert f"model_type': '{name.split()[0]}'" in str(open_bundle(run_dir).lineage["parents"])

    out = tmp_path / "out"
    done(["export", "--init_from", run_dir, "--output", out])
    output = tmp_path / "predictions.jsonl"
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in SHORT))
    args = ["--data.predict", texts, "--output", output]
    done(["predict", "--run_dir", run_dir, *args])
    ours = read_json_lines(output.read_text())

    model = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    for row, line in zip(SHORT, ours, strict=True):
        text = [row["text"], row["second"]] if pairs else [row["text"]]
        encoded = tokenizer(*text, return_tensors="pt")
        assert encoded["input_ids"].shape[1] <= 32, "ours would be cut"
        with torch.no_grad():
            scores = model(**encoded).logits[0].softmax(-1)
        found = {model.config.id2label[i]: float(p) for i, p in enumerate(scores)}
        assert found == pytest.approx(line["probabilities"], abs=2e-5)


def test_their_classifier_predicts(folder_of: Any, examples: Path, tmp_path: Path) -> None:
    """A tuned model of theirs goes on with its own labels, head included."""
    peer = build_peer("bert classifier")
    peer.config.id2label = {0: "land", 1: "water", 2: "air"}
    source = folder_of("bert classifier", tmp_path / "source", peer)
    options = finetune(tmp_path / "run", source, examples, trainer__max_steps=1)
    options |= {"model.task.pooling": "first", "model.task.transform": "tanh"}
    run = done(words("fit", options | {"trainer.max_epochs": None}))
    assert "labels land, water, air" in run.err
    assert "new: nothing; unused: nothing" in run.err
    wrong = call(words("fit", options | {"model.task.pooling": "mean", "run_dir": "other"}))
    assert "was tuned with model.task.pooling 'first', yours is 'mean'" in wrong.errors[0]


@pytest.mark.parametrize("name", ["bert tagger", "gpt2 tagger"])
def test_their_tagger_goes_on_and_is_handed_back(name: str, folder_of: Any, tmp_path: Path) -> None:
    """Head and tags stay; what `predict` says of words is what transformers says of the token
    that stands for a word: of a causal model its last."""
    source = folder_of(name, tmp_path / "source", build_peer(name))
    sentences = [["The", "river", "builds"], ["old", "letters"], ["under", "a", "green", "hill"]]
    tagged = "\n\n".join(
        "\n".join(f"{word} {TAGS[len(word) % 3]}" for word in s) for s in sentences
    )
    (tmp_path / "train.conll").write_text(tagged.replace("I-LOC", "B-LOC") + "\n")
    files = dict.fromkeys(("data.train", "data.validation"), str(tmp_path / "train.conll"))
    options = finetune(tmp_path / "run", source, tmp_path, trainer__max_steps=1) | files
    options |= {"model.task": "Tagging", "data.test": None, "trainer.max_epochs": None}
    run = done(words("fit", options | {"trainer.precision": "32-true"}))
    assert f"labels {', '.join(TAGS)}" in run.err
    assert "new: nothing; unused: nothing" in run.err
    output, out = tmp_path / "said.jsonl", tmp_path / "out"
    given = ["--data.predict", tmp_path / "train.conll", "--output", output]
    done(["predict", "--run_dir", tmp_path / "run", "--trainer.precision", "32-true", *given])
    assert (
        "ForTokenClassification"
        in done(["export", "--init_from", tmp_path / "run", "--output", out]).out
    )
    model = transformers.AutoModelForTokenClassification.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    for sentence, line in zip(sentences, read_json_lines(output.read_text()), strict=True):
        encoded = tokenizer(" ".join(sentence), return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            best = model(**encoded).logits[0].argmax(-1).tolist()
        ends = itertools.accumulate(len(word) + 1 for word in sentence)
        spans = [(end - 1 - len(word), end - 1) for word, end in zip(sentence, ends, strict=True)]
        side = 1 if name.startswith("gpt2") else 0
        places = [[o[side] for o in offsets if o[0] < o[1]].index(s[side]) for s in spans]
        real = [tag for tag, o in zip(best, offsets, strict=True) if o[0] < o[1]]
        assert [model.config.id2label[real[at]] for at in places] == line["tags"]


def encoder_run(source: Path, tmp_path: Path) -> list[list[float]]:
    """A bi-encoder tuned for two steps, written to `out`; what `predict` says of SHORT's texts."""
    rows = [{"text": r["text"], "second": r["second"]} for r in SHORT] * 4
    for file, content in (("train", rows), ("texts", [{"text": r["text"]} for r in SHORT])):
        lines = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / f"{file}.jsonl").write_text(lines)
    files = dict.fromkeys(("data.train", "data.validation"), str(tmp_path / "train.jsonl"))
    options = finetune(tmp_path / "run", source, tmp_path, trainer__max_steps=2) | files
    options |= {"model.task": "Matching", "data.columns": {"text": "text", "pair": "second"}}
    options |= {"data.test": None, "trainer.max_epochs": None, "trainer.precision": "32-true"}
    done(words("fit", options))
    said = tmp_path / "said.jsonl"
    given = ["--data.predict", tmp_path / "texts.jsonl", "--output", said]
    done(["predict", "--run_dir", tmp_path / "run", "--trainer.precision", "32-true", *given])
    run = done(["export", "--init_from", tmp_path / "run", "--output", tmp_path / "out"])
    assert "BertModel, for sentence-transformers" in run.out
    return [line["embedding"] for line in read_json_lines(said.read_text())]


def test_a_text_encoder_is_handed_back(folder_of: Any, tmp_path: Path) -> None:
    """As the files beside the model say, which test_real_weights gives to sentence-transformers."""
    source = folder_of("bert bare", tmp_path / "source", build_peer("bert bare"))
    vectors = encoder_run(source, tmp_path)
    out = tmp_path / "out"
    kinds = [m["type"].rpartition(".")[2] for m in json.loads((out / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    pooling = json.loads((out / "1_Pooling" / "config.json").read_text())
    assert [mode for mode, chosen in pooling.items() if chosen is True] == [
        "pooling_mode_mean_tokens"
    ]
    model = transformers.AutoModel.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    for row, vector in zip(SHORT, vectors, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(row["text"], return_tensors="pt")).last_hidden_state[0]
        found = torch.nn.functional.normalize(hidden.mean(0), dim=0)
        assert found.tolist() == pytest.approx(vector, abs=1e-5)
    done(["export", "--init_from", tmp_path / "run", "--output", out, "--overwrite", "true"])


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_berts_pooler_is_the_dense_layer(
    prefix: str, folder_of: Any, examples: Path, tmp_path: Path
) -> None:
    """As in transformers, in a bare model's folder and in one for masked LM that still has it."""
    name = "bert" if prefix else "bert bare"
    source = folder_of(name, tmp_path / "source", build_peer(name))
    file = source / "model.safetensors"
    tensors = load_file(file)
    if prefix:
        tensors["bert.pooler.dense.weight"] = torch.randn(32, 32)
        tensors["bert.pooler.dense.bias"] = torch.randn(32)
        save_file(tensors, file, {"format": "pt"})
    task = {"class_path": "Classification", "init_args": TASKS[name]}
    options = finetune(tmp_path / "run", source, examples)
    still = {"model.optimizer.lr": 1e-30, "trainer.max_epochs": 1}
    run = done(words("fit", options | {"model.task": task} | still))
    mine = load_file(tmp_path / "run" / "bundle" / "model.safetensors")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(source)
    for kind in ("weight", "bias"):
        assert torch.equal(mine[f"head.dense.{kind}"], tensors[f"{prefix}pooler.dense.{kind}"])
        assert torch.equal(mine[f"head.dense.{kind}"], getattr(theirs.bert.pooler.dense, kind))
    assert "new: head.classifier.weight, head.classifier.bias" in run.err
    assert "pooler.dense" not in run.err  # is not called unused
    anew = {"model.from_scratch": True, "run_dir": str(tmp_path / "anew")}
    run = done(words("fit", options | {"model.task": task} | still | anew))
    assert f"{prefix}pooler.dense.weight" in run.err.partition("unused: ")[2]


def test_another_familys_pooler_is_left_where_it_is(
    folder_of: Any, examples: Path, tmp_path: Path
) -> None:
    """RoBERTa's classifiers have a dense layer of their own, in transformers, too."""
    config = transformers.RobertaConfig(**SHAPE, type_vocab_size=1, pad_token_id=1)
    source = folder_of("roberta", tmp_path / "source", transformers.RobertaModel(config))
    edit_config(source, architectures=["RobertaModel"])
    task = {"class_path": "Classification", "init_args": TASKS["roberta"]}
    options = finetune(tmp_path / "run", source, examples) | {"model.task": task}
    run = done(words("fit", options | {"trainer.max_epochs": 1}))
    assert "head.dense.weight" in run.err.partition("; new: ")[2].partition(";")[0]
    assert "unused: pooler.dense.bias, pooler.dense.weight" in run.err


@pytest.mark.parametrize("name", ["bert bare", "gpt2", "modernbert"])
def test_pretraining_goes_on(name: str, folder_of: Any, corpus_file: Path, tmp_path: Path) -> None:
    """Folder -> fit on text -> export; the loss begins where transformers' is."""
    peer = build_peer(name)
    source = folder_of(name, tmp_path / "source", peer)
    causal = name.startswith(("gpt2", "llama"))
    run_dir, store = tmp_path / "run", tmp_path / "store"
    options = pretrain(run_dir, store, source, causal=causal, trainer__max_steps=2)
    del options["model.backbone"]
    options |= {"model.init_from": str(source), "data.files": [str(corpus_file)]}
    options |= {} if causal else {"model.objective.rate": 0.3}
    fitted = done(words("fit", options))
    fresh = "new: head.dense.weight" if name == "bert bare" else "new: nothing"
    assert fresh in fitted.err
    if name == "bert bare":
        assert "unused: pooler.dense.bias, pooler.dense.weight" in fitted.err
    assert "inherited: tokenizer" in fitted.err
    run = done(["export", "--init_from", run_dir, "--output", tmp_path / "out"])
    assert "as transformers computes it" in run.out
    again = open_model(tmp_path / "out")
    before = open_model(source)
    assert again.config["backbone"]["vocab_size"] == before.config["backbone"]["vocab_size"]
    moved = [n for n in again.names() if n in before.names()]
    assert [n for n in moved if not torch.equal(again.tensor(n), before.tensor(n))]


def test_inspect_says_what_it_is(folder_of: Any, tmp_path: Path) -> None:
    source = folder_of("bert bare", tmp_path / "source", build_peer("bert bare"))
    facts = json.loads(done(["inspect", str(source)]).out)
    assert facts["lineage"]["huggingface"] == {"model_type": "bert", "architecture": "BertModel"}
    assert facts["config"]["backbone"]["config"]["positions"] == "learned"
    assert facts["tensors"]["pooler.dense.weight"] == [32, 32]
    assert facts["tensors"]["backbone.layers.0.attention.qkv.weight"] == [96, 32]


def test_a_vocabulary_smaller_than_the_tokenizer(
    folder_of: Any, examples: Path, tmp_path: Path
) -> None:
    model = transformers.BertModel(transformers.BertConfig(**{**SHAPE, "vocab_size": 90}))
    source = folder_of("bert bare", tmp_path / "source", model)
    run = call(words("fit", finetune(tmp_path / "run", source, examples)))
    assert run.code == 2
    assert "embedding 90 rows" in run.errors[0]
    run = call(["export", "--init_from", source, "--output", tmp_path / "out"])
    assert "its embedding 90 rows: one of them is of another model" in run.errors[0]


def test_padding_that_ends(folder_of: Any, examples: Path, tmp_path: Path) -> None:
    """Theirs classifies by the last token that is no padding: it must not be the end token."""
    from tokenizers import Tokenizer as RawTokenizer

    source = folder_of("gpt2", tmp_path / "source", build_peer("gpt2"))
    raw = json.loads(RawTokenizer.from_file(str(source / "tokenizer.json")).to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["id"] == 0]
    text = json.dumps(raw).replace("[PAD]", "<|endoftext|>")
    for gone in ("[CLS]", "[SEP]", "[MASK]"):
        text = text.replace(gone, f"({gone[1:-1]})")
    (source / "tokenizer.json").write_text(text)
    edit_config(source, pad_token_id=None, bos_token_id=0, eos_token_id=0)
    options = finetune(tmp_path / "run", source, examples, trainer__max_epochs=1)
    options |= {"model.task.pooling": "last", "model.task.bias": False}
    done(words("fit", options))
    run = call(["export", "--init_from", tmp_path / "run", "--output", tmp_path / "out"])
    assert run.code == 2
    assert "padding token" in run.errors[0]
    assert "is also its end token" in run.errors[0]
