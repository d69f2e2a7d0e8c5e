"""Heads of tasks on their way to other programs and back: what they read alike, what is refused,
what is said to be left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from faults.kit import call, done, finetune, read_json_lines, words
from interop.conftest import TAGS, build_peer, edit_config
from safetensors.torch import load_file
from tokenizers import Tokenizer as RawTokenizer

from ptft_lightning.errors import UserError
from ptft_lightning.interop.open import open_model

FACTS = [("river", "music"), ("garden", "silver"), ("letter", "winter")]
SENTENCES = [["The", "river", "builds"], ["old", "letters"], ["under", "a", "green", "hill"]]


def write_questions(at: Path) -> Path:
    rows = []
    for number, (name, thing) in enumerate(FACTS):
        context = f"The {name} sees the {thing} slowly."
        answers = {"text": [thing], "answer_start": [context.index(thing)]}
        row = {"id": str(number), "question": f"What does the {name} see?", "context": context}
        rows.append(json.dumps(row | {"answers": answers}) + "\n")
    (at / "train.jsonl").write_text("".join(rows))
    return at / "train.jsonl"


def write_tags(at: Path) -> Path:
    tagged = (f"{word} {('O', 'B-LOC', 'B-PER')[len(word) % 3]}" for s in SENTENCES for word in s)
    (at / "train.conll").write_text("\n".join(tagged) + "\n")
    return at / "train.conll"


def fit(at: Path, source: Path, task: Any, file: Path, **more: Any) -> dict[str, Any]:
    """The options of a step on a file, which also validates."""
    files = dict.fromkeys(("data.train", "data.validation"), str(file))
    options = finetune(at / "run", source, at, trainer__max_steps=1) | files
    options |= {"model.task": task, "data.test": None, "trainer.max_epochs": None}
    return options | {"trainer.precision": "32-true"} | more


def export(source: Path, out: Path, *more: str) -> Any:
    return done(["export", "--init_from", source, "--output", out, *more])


# Questions.


@pytest.mark.parametrize("name", ["bert answers", "roberta answers"])
def test_their_program_answers_as_predict_does(name: str, folder_of: Any, tmp_path: Path) -> None:
    """From text: their tokenizer frames question and context as our windows were."""
    source = folder_of(name, tmp_path / "source", build_peer(name))
    file = write_questions(tmp_path)
    options = fit(tmp_path, source, "ExtractiveQA", file, **{"data.max_length": 38})
    run = done(words("fit", options))
    assert "new: nothing; unused: nothing" in run.err
    said = tmp_path / "said.jsonl"
    given = ["--data.predict", file, "--output", said, "--trainer.precision", "32-true"]
    done(["predict", "--run_dir", tmp_path / "run", *given])
    export(tmp_path / "run", tmp_path / "out")
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row, line in zip(rows, read_json_lines(said.read_text()), strict=True):
        pair = (row["question"], row["context"])
        encoded = tokenizer(*pair, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        held = [i == 1 for i in encoded.sequence_ids(0)]
        with torch.no_grad():
            out = model(**encoded)
        sums = (out.start_logits[0][:, None] + out.end_logits[0][None]).triu()
        sums[~torch.tensor(held)] = -torch.inf
        sums[:, ~torch.tensor(held)] = -torch.inf
        first, last = divmod(int(sums.argmax()), len(held))
        answer = row["context"][offsets[first][0] : offsets[last][1]].strip()
        assert answer == line["answer"]


def test_roberta_keeps_the_frame_that_others_tuned_it_on(folder_of: Any, tmp_path: Path) -> None:
    """Two end tokens between the texts of a pair, where we put one."""
    name = "roberta answers"
    source = folder_of(name, tmp_path / "source", build_peer(name))
    run = export(source, tmp_path / "out")
    assert "was tuned on pairs of texts framed otherwise than ours" in run.err
    before, after = (
        RawTokenizer.from_file(str(at / "tokenizer.json")) for at in (source, tmp_path / "out")
    )
    for texts in (("a river",), ("a river", "the sea")):
        assert after.encode(*texts).ids == before.encode(*texts).ids
    assert before.encode("a river", "the sea").ids.count(2) == 3


def test_padding_is_no_other_frame(folder_of: Any, tmp_path: Path) -> None:
    source = folder_of("bert tagger", tmp_path / "source", build_peer("bert tagger"))
    assert "framed otherwise" in export(source, tmp_path / "out").err, "it has no frame at all"
    raw = RawTokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))  # ours
    raw.enable_padding(length=16)
    raw.save(str(source / "tokenizer.json"))
    assert "framed otherwise" not in export(source, tmp_path / "again").err
    assert json.loads((tmp_path / "again" / "tokenizer.json").read_text())["padding"] is None


def test_whether_a_context_may_lack_the_answer_is_for_the_user_to_say(
    folder_of: Any, tmp_path: Path
) -> None:
    """Their folders do not: one of SQuAD 2.0 comes in as such, and goes out with a word."""
    source = folder_of("bert answers", tmp_path / "source", build_peer("bert answers"))
    task = {"class_path": "ExtractiveQA", "init_args": {"unanswerable": True, "threshold": 2.0}}
    options = fit(tmp_path, source, task, write_questions(tmp_path))
    done(words("fit", options | {"data.max_length": 38}))
    run = export(tmp_path / "run", tmp_path / "out")
    assert "not in the folder: " in run.err
    assert "task.unanswerable true; task.threshold 2" in run.err


def test_questions_need_a_token_between(folder_of: Any, tmp_path: Path) -> None:
    name = "bert answers"
    source = folder_of(name, tmp_path / "source", build_peer(name))
    text = (source / "tokenizer.json").read_text()
    (source / "tokenizer.json").write_text(text.replace("[SEP]", "[LINE]"))
    assert open_model(source).tokenizer.end is None
    run = call(["export", "--init_from", source, "--output", tmp_path / "out"])
    assert run.code == 2
    assert "has no end token to stand between question and context" in run.errors[0]


# Tags.


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["O", "B-LOC", "I-LOC", "MISC", "B-PER"], "id2label: tag 'MISC' is neither O nor"),
        (["O", "O", "B-LOC", "I-LOC", "B-PER"], "names a label twice in id2label: O"),
        (["O", "X-LOC", "B-LOC", "I-LOC", "Q-LOC"], "id2label: "),
    ],
    ids=["mixed", "twice", "no scheme"],
)
def test_tags_of_no_scheme(labels: list[str], said: str, folder_of: Any, tmp_path: Path) -> None:
    source = folder_of("bert tagger", tmp_path / "source", build_peer("bert tagger"))
    edit_config(source, id2label={str(i): label for i, label in enumerate(labels)}, label2id=None)
    with pytest.raises(UserError) as caught:
        open_model(source)
    assert said in str(caught.value)
    assert "config.json" in str(caught.value)


def test_which_token_stands_for_a_word(folder_of: Any, tmp_path: Path) -> None:
    """Their folders do not say: another than theirs is refused; what else is left out is told."""
    source = folder_of("bert tagger", tmp_path / "source", build_peer("bert tagger"))
    for pooling in ("mean", "first"):
        task = {"class_path": "Tagging", "init_args": {"pooling": pooling, "presplit": True}}
        at = tmp_path / pooling
        at.mkdir()
        done(words("fit", fit(at, source, task, write_tags(at))))
        run = call(["export", "--init_from", at / "run", "--output", at / "out"])
        if pooling == "mean":
            assert run.code == 2
            assert "not in the folder" not in run.err, "there is none"
            assert "task.pooling is 'mean' and would have to be 'first'" in run.errors[0]
        else:
            assert "not in the folder: task.presplit true" in run.err
            assert open_model(at / "out").config["head"]["labels"] == TAGS


# Adapters.


def test_adapters_have_the_names_of_the_model_below(folder_of: Any, tmp_path: Path) -> None:
    """A tagger of ELECTRA computes what one of BERT does, and is written as what it was."""
    source = folder_of("electra bare", tmp_path / "source", build_peer("electra bare"))
    options = fit(tmp_path, source, "Tagging", write_tags(tmp_path))
    options |= {"model.tuning": {"class_path": "LoRA", "init_args": {"rank": 2}}}
    done(words("fit", options | {"model.optimizer.lr": 0.03}))
    run = export(tmp_path / "run", tmp_path / "adapters", "--format", "peft")
    assert "ElectraForTokenClassification" in run.out
    labels = open_model(tmp_path / "run").config["head"]["labels"]
    auto = transformers.AutoModelForTokenClassification
    base = auto.from_pretrained(source, num_labels=len(labels))
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapters").eval()
    export(tmp_path / "run", tmp_path / "hf")
    whole = auto.from_pretrained(tmp_path / "hf").eval()
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        one, other = model(input_ids=ids).logits, whole(input_ids=ids).logits
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    back = open_model(tmp_path / "adapters")
    assert back.config["head"]["name"] == "tagging"
    for family in ("bert", "electra"):
        again = ["export", "--init_from", tmp_path / "run", "--output", tmp_path / family]
        asked = call([*again, "--format", "peft", "--family", family])
        assert asked.code == (2 if family == "bert" else 0)
    assert not (tmp_path / "bert").exists()


@pytest.mark.parametrize(
    ("base", "kind", "auto"),
    [
        ("modernbert", "TOKEN_CLS", "AutoModelForTokenClassification"),
        ("gpt2", "QUESTION_ANS", "AutoModelForQuestionAnswering"),
        ("bert bare", "QUESTION_ANS", "AutoModelForQuestionAnswering"),
    ],
)
def test_adapters_with_a_head(
    base: str, kind: str, auto: str, folder_of: Any, tmp_path: Path
) -> None:
    source = folder_of(base, tmp_path / "source", build_peer(base))
    targets = {"modernbert": ["Wqkv"], "gpt2": ["c_attn"], "bert bare": ["query"]}[base]
    peer = getattr(transformers, auto).from_pretrained(source)
    config = peft.LoraConfig(r=2, target_modules=targets, task_type=kind)
    peft.get_peft_model(peer, config).save_pretrained(tmp_path / "adapters")
    if base == "bert bare":
        bundle = open_model(tmp_path / "adapters", str(source))
        assert bundle.config["head"]["name"] == "question_answering"
        saved = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
        (weight,) = [t for n, t in saved.items() if n.endswith("qa_outputs.weight")]
        torch.testing.assert_close(bundle.tensor("head.outputs.weight"), weight)
        return
    with pytest.raises(UserError, match=f"has a head for task_type {kind}, and {base} has none"):
        open_model(tmp_path / "adapters", str(source))


# Vectors.


def test_the_layer_that_only_training_used_is_told(folder_of: Any, tmp_path: Path) -> None:
    source = folder_of("bert bare", tmp_path / "source", build_peer("bert bare"))
    rows = [
        {"text": "a river", "second": "the sea", "label": ("near", "far")[i % 2]} for i in range(8)
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"class_path": "Matching", "init_args": {"loss": "softmax", "pooling": "first"}}
    columns = {"text": "text", "pair": "second", "label": "label"}
    done(words("fit", fit(tmp_path, source, task, file, **{"data.columns": columns})))
    for layout in ("huggingface", "onnx"):
        run = export(tmp_path / "run", tmp_path / layout, "--format", layout)
        assert "not in the folder: the layer that chooses between far, near" in run.err
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["labels"] == []
    pooling = json.loads((tmp_path / "huggingface" / "1_Pooling" / "config.json").read_text())
    assert [way for way, chosen in pooling.items() if chosen is True] == ["pooling_mode_cls_token"]
