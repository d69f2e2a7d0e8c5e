"""Tokenizers: text comes back, text never controls, foreign files are understood."""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from ptft_lightning.commands.tokenizer import BASE_BYTES, MEMORY
from ptft_lightning.commands.tokenizer import tokenizer as tokenizer_command
from ptft_lightning.data.bad_documents import BadDocuments
from ptft_lightning.data.documents import Reading, text_size
from ptft_lightning.data.sampling import sample_documents
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


def test_round_trips_is_said(bpe: Tokenizer, wordpiece: Tokenizer, unigram: Tokenizer) -> None:
    assert bpe.round_trips
    assert unigram.round_trips
    assert not wordpiece.round_trips


@pytest.fixture(scope="module")
def unigram(corpus_documents: list[str]) -> Tokenizer:
    return train_tokenizer(iter(corpus_documents), "unigram", 600, lowercase=False)


@given(text=texts.filter(lambda text: "\u2581" not in text))
@example(text=" [MASK] two  spaces\r\n\ttab\x00 模型 🙂👩‍👩‍👧 é e\u0301 \ufeff\u2028 ")
@example(text="<0x41><0xE6>[UNK] <0x4")
def test_unigram_gives_text_back(unigram: Tokenizer, text: str) -> None:
    ids = unigram.encode([text])[0]
    assert unigram.decode(ids) == text
    assert unigram.raw.token_to_id("[UNK]") not in ids


def test_unigram_shows_the_sign_for_a_space_as_a_space(unigram: Tokenizer) -> None:
    assert unigram.decode(unigram.encode(["a\u2581b"])[0]) == "a b"


@pytest.mark.parametrize("size", [400, 600])
def test_unigram_has_the_size_asked_for(corpus_documents: list[str], size: int) -> None:
    assert train_tokenizer(iter(corpus_documents), "unigram", size, False).size == size


def test_unigram_takes_the_best_reading(unigram: Tokenizer, corpus_documents: list[str]) -> None:
    """By the sum of scores, over all readings."""
    model = json.loads(unigram.text)["model"]
    score = {piece: value for piece, value in model["vocab"] if value > -1e5}

    def best(text: str) -> float:
        sums = [0.0] + [float("-inf")] * len(text)
        for end in range(1, len(text) + 1):
            for start in range(end):
                if text[start:end] in score:
                    sums[end] = max(sums[end], sums[start] + score[text[start:end]])
        return sums[-1]

    words = sorted({w for d in corpus_documents for w in re.findall("[a-z]{3,}", d)})
    assert len(words) > 30
    for word in words:
        pieces = [unigram.raw.id_to_token(i) for i in unigram.encode([word])[0]]
        assert "".join(pieces) == word
        assert sum(score[piece] for piece in pieces) == pytest.approx(best(word))


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_lowercase(corpus_documents: list[str], kind: Any) -> None:
    learned = train_tokenizer(iter(corpus_documents), kind, 400, lowercase=True)
    assert learned.encode(["The RIVER"]) == learned.encode(["the river"])
    assert not learned.round_trips


def test_trained_parts(bpe: Tokenizer, wordpiece: Tokenizer, unigram: Tokenizer) -> None:
    for learned in (bpe, wordpiece, unigram):
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
def test_names_of_special_tokens_are_text(
    bpe: Tokenizer, wordpiece: Tokenizer, unigram: Tokenizer, text: str
) -> None:
    for exact in (bpe, unigram):
        assert_never_control(exact, text)
        assert exact.decode(exact.encode([text])[0]) == text
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
    tokenizer = foreign_cache[kind]
    assert_never_control(tokenizer, text)
    assert [traced.ids for traced in tokenizer.trace([text])] == tokenizer.encode([text])


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


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_command_learns(corpus_file: Path, tmp_path: Path, kind: Any) -> None:
    tokenizer_command([str(corpus_file)], str(tmp_path), 400, kind)
    assert Tokenizer.load(tmp_path).size <= 400
    with pytest.raises(UserError, match="already there"):
        tokenizer_command([str(corpus_file)], str(tmp_path), 400, kind)


@pytest.mark.parametrize("asked", ["t2s", ["nfkc", "t2s"]])
def test_command_normalizes(corpus_file: Path, tmp_path: Path, asked: Any) -> None:
    tokenizer_command([str(corpus_file)], str(tmp_path), 300, normalize=asked)
    learned = Tokenizer.load(tmp_path)
    assert learned.first == ([asked] if isinstance(asked, str) else asked)
    assert learned.encode(["漢字"]) == learned.encode(["汉字"])


# Not ru_maxrss: it starts from the process that started this one.
PEAK = """
import re, sys
from ptft_lightning.cli import main
main(sys.argv[1:])
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


def test_memory_is_bounded_by_the_sample(tmp_path: Path) -> None:
    """Two processes: eight times the text takes the memory of the sample, below the estimate."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    peaks = []
    for lines in (1_000, 8_000):
        file = tmp_path / f"{lines}.txt"
        words = ("".join(rng.choices(letters, k=8)) for _ in range(lines * 40))
        file.write_text("\n\n".join(" ".join(line) for line in zip(*[words] * 40, strict=True)))
        args = ["tokenizer", "--files", f"[{file}]", "--output", str(tmp_path / f"{lines}")]
        command = [sys.executable, "-c", PEAK, *args, "--vocab_size", "400", "--max_mb", "0.35"]
        run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=250)
        peaks.append(int(run.stdout.split()[-1]))
    assert file.stat().st_size > 2.5e6
    assert peaks[1] < 1.15 * peaks[0]
    assert max(peaks) < BASE_BYTES + MEMORY["bpe"][1] * 0.36e6


def test_command_stops_at_max_mb(
    corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer_command([str(corpus_file)], str(tmp_path), 300, max_mb=0.001)
    said = capsys.readouterr().out
    assert 1 < int(said.split(" ids from ")[1].split()[0]) < 30


def test_sample_is_taken_from_all_files(tmp_path: Path) -> None:
    """Each file gives its share, in bytes; all of them everything where the limit allows."""
    sizes = {"a": 40_000, "b": 80_000, "c": 8_000}
    for name, size in sizes.items():
        (tmp_path / f"{name}.txt").write_text("\n\n".join([name * 98] * (size // 100)))
    files = [
        (str(tmp_path / f"{name}.txt"), text_size(str(tmp_path / f"{name}.txt"))) for name in sizes
    ]
    taken = [*sample_documents(files, Reading(), 12_800, BadDocuments())]
    for name, size in sizes.items():
        got = sum(len(document) for document in taken if document[0] == name)
        assert got == pytest.approx(size / 10, abs=200)
    assert len([*sample_documents(files, Reading(), 10**9, BadDocuments())]) == 1280


def test_command_refuses(corpus_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--vocab_size is 100: give 300 or more"):
        tokenizer_command([str(corpus_file)], str(tmp_path / "a"), 100)
    (tmp_path / "empty.txt").write_text("\n \n")
    for kind in ("bpe", "unigram"):
        with pytest.raises(UserError, match="empty corpus"):
            tokenizer_command([str(tmp_path / "empty.txt")], str(tmp_path / "b"), 500, kind)
    with pytest.raises(UserError, match=r"--max_mb is 0: give more than 0"):
        tokenizer_command([str(corpus_file)], str(tmp_path / "b"), 300, max_mb=0)
    assert not (tmp_path / "b" / "tokenizer.json").exists()


def test_chinese_is_decoded_without_spaces(wordpiece: Tokenizer) -> None:
    text = "我是在这个。 the river 的一了"
    assert wordpiece.decode(wordpiece.encode([text])[0]) == text
