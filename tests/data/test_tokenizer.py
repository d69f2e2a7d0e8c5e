"""Tokenizers: text comes back, text never controls, foreign files are understood."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from ptft_lightning.commands.tokenizer import tokenizer as tokenizer_command
from ptft_lightning.data.tokenizer import PARTS, Tokenizer
from ptft_lightning.data.tokenizer_training import OWN_SPECIALS, train_tokenizer
from ptft_lightning.errors import UserError

texts = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = sorted({*OWN_SPECIALS, *(name for names in PARTS.values() for name in names)})


def foreign(kind: str, specials: list[str], documents: list[str]) -> str:
    """A tokenizer.json as others make it."""
    if kind == "unigram":  # as XLM-R, T5: the special pieces are in the model's own vocabulary
        raw = RawTokenizer(models.Unigram())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        raw.normalizer = normalizers.NFKC()  # makes <mask> of full-width letters
        unigram = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=specials, unk_token=specials[-1], show_progress=False
        )
        raw.train_from_iterator(documents, unigram)
    else:
        raw = RawTokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        bpe = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        raw.train_from_iterator(documents, bpe)
    return str(raw.to_str())


def word_level(vocabulary: dict[str, int]) -> Tokenizer:
    raw = RawTokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(raw.to_str())


def parts(tokenizer: Tokenizer) -> dict[str, str | None]:
    ids = {part: getattr(tokenizer, part) for part in PARTS}
    return {p: None if i is None else tokenizer.raw.id_to_token(i) for p, i in ids.items()}


@given(text=texts)
@example(text="[MASK] two  spaces\r\n\ttab\x00 模型 🙂👩‍👩‍👧 é é \ufeff\u2028")
def test_bpe_gives_any_text_back(bpe: Tokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode([text])[0]) == text


def test_round_trips_is_said(bpe: Tokenizer, wordpiece: Tokenizer) -> None:
    assert bpe.round_trips
    assert not wordpiece.round_trips


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_lowercase(corpus_documents: list[str], kind: Any) -> None:
    learned = train_tokenizer(iter(corpus_documents), kind, 400, lowercase=True)
    assert learned.encode(["The RIVER"]) == learned.encode(["the river"])
    assert not learned.round_trips


def test_trained_parts(bpe: Tokenizer, wordpiece: Tokenizer) -> None:
    for learned in (bpe, wordpiece):
        assert parts(learned) == {
            "pad": "[PAD]",
            "mask": "[MASK]",
            "begin": "[CLS]",
            "end": "[SEP]",
        }
        assert learned.frame([9, 8]) == [learned.begin, 9, 8, learned.end]


@pytest.mark.parametrize("vocab_size", [300, 500])
def test_bpe_has_the_size_asked_for(corpus_documents: list[str], vocab_size: int) -> None:
    assert train_tokenizer(iter(corpus_documents), "bpe", vocab_size, False).size == vocab_size


def test_bpe_is_learned_the_same_every_time(corpus_documents: list[str]) -> None:
    learned = {train_tokenizer(iter(corpus_documents), "bpe", 500, False).text for _ in range(3)}
    assert len(learned) == 1


def test_wordpiece_splits_chinese_by_character(wordpiece: Tokenizer) -> None:
    ids = wordpiece.encode(["人在大地"])[0]
    assert [wordpiece.raw.id_to_token(i) for i in ids] == list("人在大地")


# Text never becomes a control token.


def control_ids(tokenizer: Tokenizer) -> set[int]:
    """Every special id but the unknown token's."""
    unknown = {tokenizer.raw.token_to_id(name) for name in ("[UNK]", "<unk>")}
    return set(tokenizer.specials.tolist()) - unknown


def assert_never_control(tokenizer: Tokenizer, text: str) -> None:
    assert control_ids(tokenizer)
    assert control_ids(tokenizer).isdisjoint(tokenizer.encode([text])[0]), text


with_names = st.lists(
    st.one_of(st.sampled_from(NAMES), st.sampled_from(["a ", " ", "的", "<", "[", "MASK]"])),
    max_size=6,
).map("".join)


@given(text=with_names)
def test_names_of_special_tokens_are_text(bpe: Tokenizer, wordpiece: Tokenizer, text: str) -> None:
    assert_never_control(bpe, text)
    assert bpe.decode(bpe.encode([text])[0]) == text
    assert_never_control(wordpiece, text)


@pytest.mark.parametrize("again", ["save and load", "pickle", "deepcopy"])
def test_names_stay_text_in_copies(bpe: Tokenizer, tmp_path: Path, again: str) -> None:
    bpe.save(tmp_path)
    other = {
        "save and load": lambda: Tokenizer.load(tmp_path / "tokenizer.json"),
        "pickle": lambda: pickle.loads(pickle.dumps(bpe)),
        "deepcopy": lambda: copy.deepcopy(bpe),
    }[again]()
    for name in NAMES:
        assert_never_control(other, f"a {name} b")
        assert other.decode(other.encode([name])[0]) == name
    assert other.fingerprint == bpe.fingerprint


ROBERTA = ["<s>", "<pad>", "</s>", "<mask>", "<unk>"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@given(text=with_names)
@example(text="<mask>")
@example(text="a <s> b</s><s><mas<mask>k>")
@example(text="a ＜mask＞ b")
def test_names_are_text_to_foreign_tokenizers(
    foreign_cache: dict[str, Tokenizer], kind: str, text: str
) -> None:
    assert_never_control(foreign_cache[kind], text)


@pytest.fixture(scope="module")
def foreign_cache(corpus_documents: list[str]) -> dict[str, Tokenizer]:
    kinds = ("bpe", "unigram")
    return {kind: Tokenizer(foreign(kind, ROBERTA, corpus_documents)) for kind in kinds}


def test_names_in_the_vocabulary_alone_are_text() -> None:
    """Some files list their special tokens in the vocabulary and nowhere else."""
    tokenizer = word_level({"[UNK]": 0, "<s>": 1, "<mask>": 2, "hello": 3, "<": 4})
    assert tokenizer.encode(["hello <mask> <s>"]) == [[3, 4, 0, 4, 0]]
    assert tokenizer.specials.tolist() == [1, 2]


def test_special_part_marked_as_ordinary_is_text(corpus_documents: list[str]) -> None:
    content = json.loads(foreign("bpe", ROBERTA, corpus_documents))
    for token in content["added_tokens"]:
        token["special"] = False
    tokenizer = Tokenizer(json.dumps(content))
    assert_never_control(tokenizer, "a <mask> </s>")
    assert tokenizer.decode([tokenizer.mask or 0]) == ""


# Foreign files.


def test_foreign_end_of_text_alone(corpus_documents: list[str]) -> None:
    """Its name is encoded as if there were no such token, also in a copy."""
    end = "<|endoftext|>"
    text = foreign("bpe", [end], [*corpus_documents, *["a<|x|> <|x|>"] * 3000])
    tokenizer = Tokenizer(text)
    bare = json.loads(text)
    bare["added_tokens"] = []
    del bare["model"]["vocab"][end]
    for copied in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        for written in (end, f"a {end} b", f"<{end}<|x|>"):
            (ids,) = copied.encode([written])
            assert ids == RawTokenizer.from_str(json.dumps(bare)).encode(written).ids
            assert copied.decode(ids) == written
    assert parts(tokenizer) == {"pad": end, "mask": None, "begin": None, "end": end}
    assert tokenizer.frame([5]) == [5, tokenizer.end]
    assert_never_control(tokenizer, "a<|endoftext|>b")


def test_foreign_roberta_names(foreign_cache: dict[str, Tokenizer]) -> None:
    for tokenizer in foreign_cache.values():
        assert parts(tokenizer) == {
            "pad": "<pad>",
            "mask": "<mask>",
            "begin": "<s>",
            "end": "</s>",
        }
        assert tokenizer.specials.tolist() == sorted(tokenizer.specials.tolist())
        assert {tokenizer.raw.id_to_token(i) for i in tokenizer.specials} == set(ROBERTA)


def test_no_special_tokens_at_all() -> None:
    tokenizer = word_level({"[UNK]": 0, "hello": 1})
    assert parts(tokenizer) == {"pad": "[UNK]", "mask": None, "begin": None, "end": None}
    assert tokenizer.frame([1]) == [1]
    assert tokenizer.specials.dtype == np.int64
    assert tokenizer.specials.size == 0


def test_holes_in_the_vocabulary() -> None:
    assert word_level({"[UNK]": 0, "hello": 12}).size == 13


def test_padding_and_truncation_settings_change_nothing(bpe: Tokenizer) -> None:
    raw = RawTokenizer.from_str(bpe.text)
    raw.enable_truncation(max_length=4)
    raw.enable_padding(length=64, pad_id=9, pad_token=raw.id_to_token(9))
    other = Tokenizer(raw.to_str())
    assert other.text != bpe.text
    assert other.fingerprint == bpe.fingerprint
    texts = ["a short one", "a longer text than four tokens, far longer"]
    assert other.encode(texts) == bpe.encode(texts)


def test_layout_of_the_file_does_not_change_the_fingerprint(bpe: Tokenizer) -> None:
    assert Tokenizer(json.dumps(json.loads(bpe.text), indent=7)).fingerprint == bpe.fingerprint


def test_what_changes_ids_changes_the_fingerprint(bpe: Tokenizer, wordpiece: Tokenizer) -> None:
    raw = RawTokenizer.from_str(bpe.text)
    raw.normalizer = normalizers.NFKC()
    content = json.loads(bpe.text)
    content["model"]["merges"].pop()
    others = [Tokenizer(raw.to_str()), Tokenizer(json.dumps(content)), wordpiece]
    assert len({bpe.fingerprint, *(other.fingerprint for other in others)}) == 4


# Mistakes.


def test_missing_tokenizer_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer not found: .*ptft_lightning tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"not json", b"{}", b'{"version": "1.0"}', b"\xff\xfe"])
def test_broken_tokenizer_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json' is not a tokenizer\.json"):
        Tokenizer.load(tmp_path)


# The command.


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_command_learns(corpus_file: Path, tmp_path: Path, kind: Any) -> None:
    tokenizer_command([str(corpus_file)], str(tmp_path), 300, kind)
    assert Tokenizer.load(tmp_path).size <= 300
    with pytest.raises(UserError, match="already there"):
        tokenizer_command([str(corpus_file)], str(tmp_path), 300, kind)


def test_command_stops_at_max_mb(
    corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer_command([str(corpus_file)], str(tmp_path), 300, max_mb=0.001)
    said = capsys.readouterr().out
    assert 1 < int(said.split(" ids from ")[1].split()[0]) < 30


def test_command_refuses(corpus_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--vocab_size is 100: give 300 or more"):
        tokenizer_command([str(corpus_file)], str(tmp_path / "a"), 100)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="empty corpus"):
        tokenizer_command([str(tmp_path / "empty.txt")], str(tmp_path / "b"), 300)
    assert not (tmp_path / "b" / "tokenizer.json").exists()
