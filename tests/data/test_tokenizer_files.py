"""Vocabularies as others keep them: the ids are those of the library that made them."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from tokenizers import Tokenizer as RawTokenizer

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError

HARD = [
    "",
    " ",
    "  two  spaces ",
    "Été é e\u0301 Straße",
    "模型，訓練。",
    "a\n\tb\u00a0c",
    "🙂👩‍👩‍👧",
    "ﬁ Ａ２",
]


def folder(at: Path, **files: str) -> Path:
    """A directory of files; __ in a name stands for the dot."""
    for name, content in files.items():
        (at / name.replace("__", ".")).write_text(content, encoding="utf-8")
    return at


def wordpiece_lines(tokenizer: Tokenizer) -> str:
    vocabulary = tokenizer.raw.get_vocab()
    return "\n".join(sorted(vocabulary, key=lambda piece: vocabulary[piece])) + "\n"


@pytest.mark.parametrize("lower", [True, False])
def test_bert_vocabulary_is_as_transformers_reads_it(
    wordpiece: Tokenizer, corpus_documents: list[str], tmp_path: Path, lower: bool
) -> None:
    at = folder(
        tmp_path,
        vocab__txt=wordpiece_lines(wordpiece),
        tokenizer_config__json=json.dumps({"do_lower_case": lower}),
    )
    reference = transformers.BertTokenizer(vocab=str(at / "vocab.txt"), do_lower_case=lower)
    texts = [*corpus_documents, *HARD]
    expected = [reference(text, add_special_tokens=False)["input_ids"] for text in texts]
    for path in (at, at / "vocab.txt"):
        assert Tokenizer.load(path).encode(texts) == expected


@pytest.mark.parametrize(("capitals", "said"), [(True, "read as cased"), (False, "lower-cased")])
def test_a_guess_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], capitals: bool, said: str
) -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if capitals else "abcdefghijklmnopqrstuvwxyz"
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    tokenizer = Tokenizer.load(folder(tmp_path, vocab__txt="\n".join(lines)))
    assert said in capsys.readouterr().err
    assert tokenizer.encode(["A"]) == [[5]]


def bpe_folder(tokenizer: Tokenizer, at: Path, **files: str) -> Path:
    model = json.loads(tokenizer.text)["model"]
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    return folder(at, vocab__json=vocabulary, merges__txt="\n".join(merges) + "\n", **files)


@pytest.mark.parametrize("prefix", [True, False])
def test_byte_level_vocabulary_is_as_transformers_reads_it(
    bpe: Tokenizer, corpus_documents: list[str], tmp_path: Path, prefix: bool
) -> None:
    settings = json.dumps({"add_prefix_space": prefix})
    at = bpe_folder(bpe, tmp_path, tokenizer_config__json=settings)
    reference = transformers.GPT2Tokenizer(
        str(at / "vocab.json"), str(at / "merges.txt"), unk_token=None, add_prefix_space=prefix
    )
    texts = [*corpus_documents, *HARD]
    expected = [reference(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert Tokenizer.load(at).encode(texts) == expected


def sentencepiece_model(at: Path, documents: list[str], **settings: Any) -> Path:
    target = io.BytesIO()
    lines = [line for document in documents for line in document.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=target, minloglevel=2, **settings
    )
    (at / "spiece.model").write_bytes(target.getvalue())
    return at


KINDS: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram", "vocab_size": 300},
    "unigram, bytes": {"model_type": "unigram", "vocab_size": 500, "byte_fallback": True},
    "bpe": {"model_type": "bpe", "vocab_size": 400},
    "bpe as Llama's": {
        "model_type": "bpe",
        "vocab_size": 600,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
    },
    "no space before": {"model_type": "unigram", "vocab_size": 300, "add_dummy_prefix": False},
}


@pytest.mark.parametrize("kind", KINDS)
def test_sentencepiece_is_as_sentencepiece_reads_it(
    corpus_documents: list[str], tmp_path: Path, kind: str
) -> None:
    at = sentencepiece_model(tmp_path, corpus_documents, **KINDS[kind])
    reference = sentencepiece.SentencePieceProcessor(model_file=str(at / "spiece.model"))
    tokenizer = Tokenizer.load(at)
    assert tokenizer.size == reference.get_piece_size()
    assert (tokenizer.begin, tokenizer.end) == (reference.bos_id(), reference.eos_id())
    texts = [*corpus_documents, *HARD, " lead", "trail ", "a   b", "▁ ☃☃ ☃"]
    for text, mine in zip(texts, tokenizer.encode(texts), strict=True):
        theirs = reference.encode(text)
        assert mine == theirs, text
        if reference.unk_id() not in theirs:
            assert tokenizer.decode(mine) == reference.decode(theirs), text


# Parts of the special tokens.


def test_named_parts_go_before_the_usual_names(bpe: Tokenizer, tmp_path: Path) -> None:
    """Also written as Hugging Face writes added tokens; kept by a save, and in the fingerprint."""
    text = bpe.text.replace("[CLS]", "<start>").replace("[MASK]", "<hole>")
    special = {"bos_token": "<start>", "mask_token": {"content": "<hole>", "lstrip": False}}
    at = folder(tmp_path, tokenizer__json=text, special_tokens_map__json=json.dumps(special))
    tokenizer = Tokenizer.load(at)
    assert tokenizer.begin == bpe.begin
    assert tokenizer.mask == bpe.mask
    assert Tokenizer(text).begin is None
    tokenizer.save(tmp_path / "saved")
    saved = Tokenizer.load(tmp_path / "saved")
    assert (saved.begin, saved.mask) == (bpe.begin, bpe.mask)
    assert saved.fingerprint == tokenizer.fingerprint != Tokenizer(text).fingerprint
    assert tokenizer.encode(["a <hole>"])[0][-1] != tokenizer.mask


def test_usual_names_change_nothing(bpe: Tokenizer, tmp_path: Path) -> None:
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    at = folder(tmp_path, tokenizer__json=bpe.text, tokenizer_config__json=json.dumps(special))
    assert Tokenizer.load(at).text == bpe.text


def test_one_token_for_begin_and_end_stands_between_documents(
    bpe: Tokenizer, tmp_path: Path
) -> None:
    special = {"bos_token": "[SEP]", "eos_token": "[SEP]"}
    at = folder(tmp_path, tokenizer__json=bpe.text, special_tokens_map__json=json.dumps(special))
    tokenizer = Tokenizer.load(at)
    assert tokenizer.frame([9]) == [9, tokenizer.end]


def test_tokens_added_after_training(bpe: Tokenizer, tmp_path: Path) -> None:
    at = bpe_folder(
        bpe,
        tmp_path,
        added_tokens__json=json.dumps({"<hole>": bpe.size}),
        special_tokens_map__json='{"mask_token": "<hole>"}',
    )
    tokenizer = Tokenizer.load(at)
    assert tokenizer.mask == bpe.size == tokenizer.size - 1


# Mistakes.


def broken_model(bpe: Tokenizer, wordpiece: Tokenizer, at: Path) -> dict[str, Callable[[], Path]]:
    plain = {"tokenizer__json": bpe.text}
    return {
        "no merges": lambda: folder(at, vocab__json="{}"),
        "not byte-level": lambda: folder(at, vocab__json='{"a": 0}', merges__txt="a b"),
        "no unknown": lambda: folder(at, vocab__txt="a\nb\n"),
        "a lost name": lambda: folder(at, special_tokens_map__json='{"eos_token": "<e>"}', **plain),
        "settings": lambda: folder(at, tokenizer_config__json="{", **plain),
        "settings, a list": lambda: folder(at, tokenizer_config__json="[]", **plain),
        "sentencepiece": lambda: folder(at, spiece__model="no protobuf"),
        "nothing": lambda: at,
    }


SAID = {
    "no merges": r"vocab\.json' has no merges\.txt",
    "not byte-level": r"not a vocabulary \(vocab\.json\): it is not byte-level BPE",
    "no unknown": r"not a vocabulary \(vocab\.txt\): it has no line '\[UNK\]'",
    "a lost name": r"names '<e>' as its end token",
    "settings": r"tokenizer_config\.json' is not JSON",
    "settings, a list": r"tokenizer_config\.json' is not a JSON object",
    "sentencepiece": r"not a vocabulary \(spiece\.model\)",
    "nothing": r"tokenizer not found",
}


@pytest.mark.parametrize("name", SAID)
def test_broken_folders(bpe: Tokenizer, wordpiece: Tokenizer, tmp_path: Path, name: str) -> None:
    at = broken_model(bpe, wordpiece, tmp_path)[name]()
    with pytest.raises(UserError, match=SAID[name]):
        Tokenizer.load(at)


# Published vocabularies on real text.


@pytest.fixture(scope="module")
def data() -> Path:
    assert "PTFT_DATA" in os.environ, "set PTFT_DATA to the directory of the data sets"
    return Path(os.environ["PTFT_DATA"])


@pytest.fixture(scope="module")
def real_texts(data: Path) -> list[str]:
    found = []
    for name in ("zh_wiki_15mb", "en_wiki"):
        with gzip.open(data / name / "valid.jsonl.gz", "rt", encoding="utf-8") as lines:
            found += [json.loads(line)["text"] for line in lines]
    return [*found, *HARD]


@pytest.mark.real
@pytest.mark.parametrize("name", ["bert-base-uncased-tokenizer", "bert-base-chinese", "gpt2"])
def test_published_vocabularies(
    data: Path, real_texts: list[str], tmp_path: Path, name: str
) -> None:
    at = data / "models" / name.replace("gpt2", "gpt2-tokenizer")
    if name == "gpt2":
        reference = transformers.GPT2Tokenizer.from_pretrained(str(at))
    elif "chinese" in name:
        reference = transformers.BertTokenizer(vocab=str(at / "vocab.txt"), do_lower_case=True)
    else:  # its tokenizer.json is the reference, its vocab.txt what is read
        reference = RawTokenizer.from_file(str(at / "tokenizer.json"))
        reference.no_truncation()
        reference.no_padding()
        for file in ("vocab.txt", "tokenizer_config.json"):
            shutil.copyfile(at / file, tmp_path / file)
        at = tmp_path
    tokenizer = Tokenizer.load(at)
    for text, mine in zip(real_texts, tokenizer.encode(real_texts), strict=True):
        theirs = (
            reference.encode(text, add_special_tokens=False).ids
            if isinstance(reference, RawTokenizer)
            else reference(text, add_special_tokens=False)["input_ids"]
        )
        assert mine == theirs


@pytest.mark.real
def test_published_sentencepiece(data: Path, real_texts: list[str]) -> None:
    """Equal but for few readings that score the same to the rounding of SentencePiece's float32
    sums; ours is then the better one."""
    at = data / "models" / "t5-tokenizer"
    reference = sentencepiece.SentencePieceProcessor(model_file=str(at / "spiece.model"))
    mine = Tokenizer.load(at).encode(real_texts)
    theirs = reference.encode(real_texts)
    other = [pair for pair in zip(mine, theirs, strict=True) if pair[0] != pair[1]]
    assert len(other) <= len(mine) / 500

    def score(ids: list[int]) -> float:
        return sum(reference.get_score(i) for i in ids)

    assert all(-1e-3 < score(a) - score(b) < 1e-2 for a, b in other)
