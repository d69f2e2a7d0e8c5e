"""N-gram models against the definition written out, against KenLM, and as files."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from faults.kit import call, done, words
from hypothesis import given, settings
from hypothesis import strategies as st

from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.ngrams import counts
from ptft_lightning.ngrams.arpa import names_of
from ptft_lightning.ngrams.counts import Stream, Tally, frame, streams
from ptft_lightning.ngrams.estimation import FALLBACK, discounts_of, estimate
from ptft_lightning.ngrams.model import NGramModel, load_ngram

BEGIN = -1  # of the definition below


class Definition:
    """Modified Kneser-Ney as the docstring of `estimation` has it, with dictionaries of tuples."""

    def __init__(self, documents: list[list[int]], vocab_size: int, order: int) -> None:
        self.size, self.order = vocab_size, order
        raw: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
        for document in documents:
            line = (BEGIN, *document)
            for k in range(1, order + 1):
                raw[k].update(line[i : i + k] for i in range(len(line) - k + 1))
        self.a: list[dict[tuple[int, ...], int]] = [{}]
        for k in range(1, order + 1):
            before = defaultdict(set)
            for gram in raw[k + 1] if k < order else ():
                before[gram[1:]].add(gram[0])
            self.a.append(
                {g: n if k == order or g[0] == BEGIN else len(before[g]) for g, n in raw[k].items()}
            )
        self.a[1].pop((BEGIN,))
        self.d = [(0.0, 0.0, 0.0)]
        for k in range(1, order + 1):
            n = Counter(self.a[k].values())
            if all(n[j] for j in (1, 2, 3, 4)):
                y = n[1] / (n[1] + 2 * n[2])
                found = tuple(j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3))
                fine = all(0 <= d <= j for j, d in enumerate(found, start=1))
                self.d.append(found if fine else FALLBACK)
            else:
                self.d.append(FALLBACK)
        self.total: Counter[tuple[int, ...]] = Counter()
        self.taken: Counter[tuple[int, ...]] = Counter()
        for k in range(1, order + 1):
            for gram, count in self.a[k].items():
                self.total[gram[:-1]] += count
                self.taken[gram[:-1]] += self.discount(k, count)

    def discount(self, k: int, count: int) -> float:
        return self.d[k][min(count, 3) - 1] if count else 0.0

    def p(self, context: tuple[int, ...], word: int) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        below = 1 / self.size if not context else self.p(context[1:], word)
        if not self.total[context]:
            return below
        k = len(context) + 1
        count = self.a[k].get((*context, word), 0)
        own = count - self.discount(k, count)
        return (own + self.taken[context] * below) / self.total[context]


def to_stream(documents: list[list[int]], begin: int) -> Stream:
    ends = np.cumsum([len(d) for d in documents])
    return frame(np.concatenate([np.array(d, np.int64) for d in documents]), ends, begin)


def made(documents: list[list[int]], vocab_size: int, order: int) -> NGramModel:
    """From two streams, so that counts are merged."""
    half = max(1, len(documents) // 2)
    parts = [part for part in (documents[:half], documents[half:]) if part]
    found = estimate(lambda: (to_stream(part, vocab_size) for part in parts), vocab_size, order)

    class Ids:
        size = vocab_size

    return NGramModel(found.levels, Ids(), {"discounts": found.discounts})  # type: ignore[arg-type]


def zipf(seed: int, documents: int, vocab_size: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, documents)
    return [np.minimum(rng.zipf(1.4, n) - 1, vocab_size - 1).tolist() for n in lengths]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_the_definition_s(order):
    size = 40
    train, other = zipf(0, 120, size), zipf(1, 40, size)
    model, reference = made(train, size, order), Definition(train, size, order)
    for k, given_ in enumerate(model.facts["discounts"], start=1):
        assert given_ == pytest.approx(reference.d[k])
    assert model.facts["discounts"][-1] != FALLBACK
    for document, logs in zip(train + other, model.score(train + other), strict=True):
        line = (BEGIN, *document)
        for at, log in enumerate(logs.tolist()):
            assert log == pytest.approx(math.log(reference.p(line[: at + 1], document[at])))


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=8),
    st.integers(1, 4),
    st.lists(st.integers(0, 5), max_size=6),
)
@settings(max_examples=60)
def test_probabilities_sum_to_one_after_any_context(documents, order, context):
    model = made(documents, 6, order)
    rows = model.score([[*context, word] for word in range(6)])
    assert sum(math.exp(row[-1]) for row in rows) == pytest.approx(1)


@given(st.lists(st.lists(st.integers(0, 50), max_size=40), max_size=12))
def test_keys_added_by_and_by_are_counted(parts):
    tally = Tally()
    for part in parts:
        tally.add(np.array(part, np.int64))
    keys, found = tally.finish()
    assert dict(zip(keys.tolist(), found.tolist(), strict=True)) == Counter(chain(*parts))
    assert (np.diff(keys) > 0).all()


def test_a_store_is_read_in_blocks_of_whole_documents(store, bpe, monkeypatch):
    opened = TokenStore(store, "train")
    every = np.concatenate([s.words for s in streams(opened, bpe.size)])
    monkeypatch.setattr(counts, "BLOCK", 50)
    blocks = list(streams(opened, bpe.size))
    assert len(blocks) > len(opened.shards)
    assert (np.concatenate([b.words for b in blocks]) == every).all()
    assert all(b.depth[0] == 0 and b.words[0] == bpe.size for b in blocks)


def test_few_counts_tell_no_discounts():
    assert discounts_of(np.array([1, 1, 2, 2, 3])) is None
    assert discounts_of(np.array([1, 2, 3, *[4] * 5])) is None  # D_3 would be below 0
    n = [1] * 8 + [2] * 4 + [3] * 2 + [4] * 1
    y = 8 / 16
    expected = (1 - 2 * y * 4 / 8, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2)
    assert discounts_of(np.array(n)) == pytest.approx(expected)


# As files and through the command line.


@pytest.fixture(scope="module")
def trained(store: Path, bpe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("ngram")
    given_ = {"store": str(store), "tokenizer": str(bpe_path), "order": 3}
    args = words("train", given_ | {"output": str(at / "model"), "arpa": str(at / "model.arpa")})
    run = done(["ngram", *args])
    assert "3-grams: " in run.out
    return at


def test_kenlm_reads_the_arpa_file_and_agrees(trained, bpe: Tokenizer, corpus_txt: Path):
    kenlm = pytest.importorskip("kenlm", reason="KenLM needs a C++ compiler to install")
    theirs, ours = kenlm.Model(str(trained / "model.arpa")), load_ngram(str(trained / "model"))
    names = names_of(bpe)
    texts = [*corpus_txt.read_text().split("\n\n")[:40], "never seen 龙 words"]
    documents = [bpe.frame(ids) for ids in bpe.encode(texts)]
    for document, logs in zip(documents, ours.score(documents), strict=True):
        assert document[-1] == bpe.end
        sentence = " ".join(names[i] for i in document[:-1])
        found = [log for log, _, _ in theirs.full_scores(sentence)]
        assert logs / math.log(10) == pytest.approx(found, abs=2e-5)


def test_an_arpa_file_read_back_is_the_model(trained, bpe: Tokenizer, bpe_path: Path):
    model = load_ngram(str(trained / "model"))
    again = load_ngram(str(trained / "model.arpa"), str(bpe_path))
    for one, other in zip(model.levels, again.levels, strict=True):
        assert (one.keys == other.keys).all()
        finite = np.isfinite(one.logs)
        assert (finite == np.isfinite(other.logs)).all()
        assert other.logs[finite] == pytest.approx(one.logs[finite], abs=2e-5)
        assert other.backoff == pytest.approx(one.backoff, abs=2e-5)


def test_scores_of_a_store_and_of_its_texts_agree(trained, store, bpe_path, corpus_file, tmp_path):
    model = str(trained / "model")
    by_split = [
        json.loads(done(["ngram", *words("score", {"model": model, "store": str(store), **s})]).out)
        for s in ({}, {"split": "train"})
    ]
    output = tmp_path / "scores.jsonl"
    given_ = {"model": model, "files": [str(corpus_file)], "output": str(output)}
    found = json.loads(done(["ngram", *words("score", given_)]).out)
    assert found["tokens"] == sum(s["tokens"] for s in by_split)
    total = sum(s["log_probability"] for s in by_split)
    assert found["log_probability"] == pytest.approx(total, rel=1e-6)
    nats = -found["log_probability"]
    texts = [json.loads(line)["text"] for line in corpus_file.read_text().splitlines()]
    text_bytes = sum(len(text.encode()) for text in texts)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / text_bytes)
    assert found["perplexity"] == pytest.approx(math.exp(nats / found["tokens"]))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert sum(line["log_probability"] for line in lines) == pytest.approx(-nats)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"order": 6}, "--order is 6"),
        ({"max_tokens": -5}, "--max_tokens is -5"),
        ({"store": "nowhere"}, "no token store at 'nowhere'"),
        ({"tokenizer": "WORDPIECE"}, "is not the one that made"),
        ({"output": "TRAINED"}, "already holds an n-gram model"),
    ],
)
def test_mistakes_are_one_line(change, said, trained, store, bpe_path, wordpiece_path, tmp_path):
    named = {"WORDPIECE": str(wordpiece_path), "TRAINED": str(trained / "model")}
    given_ = {"store": str(store), "tokenizer": str(bpe_path), "output": str(tmp_path / "m")}
    given_ |= {k: named.get(v, v) if isinstance(v, str) else v for k, v in change.items()}
    run = call(["ngram", *words("train", given_)])
    assert run.code == 2
    assert said in run.err
    assert len(run.errors) == 1


def test_what_a_store_cannot_give_is_refused(trained, store, bpe_path, corpus_file, tmp_path):
    given_ = {"files": [str(corpus_file)], "tokenizer": str(bpe_path), "validation_share": 0.0}
    done(words("prepare", given_ | {"output": str(tmp_path / "whole")}))
    for more, said in (
        ({"store": str(tmp_path / "whole")}, "no documents in its validation split: give --split"),
        ({"store": str(store), "output": str(tmp_path / "out")}, "--output has a line a text"),
    ):
        run = call(["ngram", *words("score", {"model": str(trained / "model"), **more})])
        assert (run.code, run.out) == (2, "")
        assert said in run.err


def test_an_arpa_file_of_other_words_is_refused_at_its_line(trained, wordpiece_path, tmp_path):
    file = str(trained / "model.arpa")
    run = call(["ngram", "score", "--model", file, "--tokenizer", wordpiece_path, "--text", "a"])
    assert run.code == 2
    assert f"'{file}' line " in run.err
    (tmp_path / "torn.arpa").write_text("\\data\\\nngram 1=2\n\n\\1-grams:\n")
    torn = str(tmp_path / "torn.arpa")
    run = call(["ngram", "score", "--model", torn, "--tokenizer", wordpiece_path, "--text", "a"])
    assert "is not a whole ARPA file" in run.err
