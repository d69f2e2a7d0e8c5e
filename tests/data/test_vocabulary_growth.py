"""Extended vocabularies: old ids and old text as before, new tokens made of old ones."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers, trainers

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.tokenizer_training import train_tokenizer
from ptft_lightning.data.vocabulary_growth import LEAST, count_words, extend_tokenizer
from ptft_lightning.errors import UserError

MEDICAL = "nephropathy dermatitis glomerulus myocarditis hepatic 肾病综合征 tomography carcinoma"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Of a domain whose words the corpus does not have."""
    rng = random.Random(0)
    words = MEDICAL.split() + ["the", "a", "of", "and", "water", "river"]
    return [" ".join(rng.choices(words, k=20)) + "." for _ in range(60)]


@pytest.fixture(params=["bpe", "wordpiece"])
def old(request) -> Tokenizer:
    """Both kinds."""
    return request.getfixturevalue(request.param)


def grown(old: Tokenizer, texts: list[str], add: int = 20):
    return extend_tokenizer(old, count_words(old, texts), add)


def test_old_ids_stay_and_new_ones_follow(old, texts):
    growth = grown(old, texts)
    new = growth.tokenizer
    assert new.size == old.size + len(growth.added)
    before = old.raw.get_vocab(with_added_tokens=True)
    after = new.raw.get_vocab(with_added_tokens=True)
    assert {t: after[t] for t in before} == before
    assert [after[t] for t in growth.added] == list(range(old.size, new.size))
    for part in ("pad", "mask", "begin", "end", "round_trips"):
        assert getattr(new, part) == getattr(old, part)
    assert new.specials.tolist() == old.specials.tolist()
    assert new.extends == old.fingerprint != new.fingerprint
    assert Tokenizer(new.text).fingerprint == new.fingerprint


def test_text_takes_fewer_tokens_and_means_the_same(old, texts):
    growth = grown(old, texts)
    new = growth.tokenizer
    before, after = old.encode(texts), new.encode(texts)
    assert sum(map(len, after)) < 0.7 * sum(map(len, before))
    assert (growth.before, growth.after) == (sum(map(len, before)), sum(map(len, after)))
    for text, ids in zip(texts, after, strict=True):
        # WordPiece may know words now that were unknown.
        if old.round_trips:
            assert new.decode(ids) == text
        else:
            assert "carcinoma" not in text or "carcinoma" in new.decode(ids)


def test_text_without_new_tokens_is_encoded_as_before(old, texts, corpus_documents):
    new = grown(old, texts).tokenizer
    first = old.size
    for before, after in zip(
        old.encode(corpus_documents), new.encode(corpus_documents), strict=True
    ):
        if max(after) < first:
            assert after == before


def test_new_bpe_tokens_are_made_of_what_stood_there(bpe, texts):
    """Each new token written out in old ones gives the old encoding again."""
    new = grown(bpe, texts).tokenizer
    model = bpe.raw.model
    for before, after in zip(bpe.encode(texts), new.encode(texts), strict=True):
        written = []
        for i in after:
            token = new.raw.id_to_token(i)
            written += [i] if i < bpe.size else [t.id for t in model.tokenize(token)]
        assert bpe.decode(written) == bpe.decode(before)


def test_merges_are_those_a_plain_count_chooses(bpe, texts):
    """Against counting all pairs anew after each merge."""
    words = count_words(bpe, texts)
    growth = extend_tokenizer(bpe, words, 15)
    split = {w: [t.value for t in bpe.raw.model.tokenize(w)] for w in words}
    known = set(bpe.raw.get_vocab())
    expected = []
    while len(expected) < 15:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, tokens in split.items():
            for pair in zip(tokens, tokens[1:], strict=False):
                pairs[pair] += words[word]
        allowed = [p for p in pairs if "".join(p) not in known and pairs[p] >= LEAST]
        best = min(allowed, key=lambda p: (-pairs[p], p))
        expected.append("".join(best))
        known.add(expected[-1])
        for word, tokens in split.items():
            merged: list[str] = []
            for token in tokens:
                if merged and (merged[-1], token) == best:
                    merged[-1] += token
                else:
                    merged.append(token)
            split[word] = merged
    assert growth.added == expected


def test_words_are_chosen_by_the_tokens_they_save(wordpiece, texts):
    words = count_words(wordpiece, texts)
    growth = extend_tokenizer(wordpiece, words, 3)
    saved = {
        w: n * (1 if (s := _split(wordpiece, w)) == ["[UNK]"] else len(s) - 1)
        for w, n in words.items()
    }
    assert sorted(saved[w] for w in growth.added) == sorted(saved.values())[-3:]
    assert growth.unknown_after <= growth.unknown_before


def _split(tokenizer: Tokenizer, word: str) -> list[str]:
    return [t.value for t in tokenizer.raw.model.tokenize(word)]


def test_added_tokens_outside_the_model_s_vocabulary_keep_their_ids(texts):
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(["a little text"], trainer)
    raw.add_special_tokens(["<|endoftext|>", "<mask>"])
    old = Tokenizer(raw.to_str())
    assert old.mask == old.size - 1
    new = grown(old, texts).tokenizer
    assert (new.mask, new.end) == (old.mask, old.end)
    assert new.encode(["a <mask> b"]) == old.encode(["a <mask> b"])


def test_merges_written_as_text_are_kept_so(bpe, texts):
    content = json.loads(bpe.text)
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    older = Tokenizer(json.dumps(content))
    assert grown(older, texts).tokenizer.encode(texts) == grown(bpe, texts).tokenizer.encode(texts)


def test_twice_extended(old, texts):
    once = grown(old, texts, 10).tokenizer
    twice = grown(once, texts, 5)
    assert twice.tokenizer.extends == once.fingerprint
    assert twice.tokenizer.size == old.size + 10 + len(twice.added)


def test_what_cannot_be_extended_is_refused(texts, bpe):
    unigram = train_tokenizer(iter(texts * 3), "unigram", 420, lowercase=False)
    with pytest.raises(UserError, match="a Unigram vocabulary cannot be extended"):
        grown(unigram, texts)
    with pytest.raises(UserError, match="nothing to add"):
        grown(bpe, ["the a"] * 2)
    content = json.loads(bpe.text)
    content["pre_tokenizer"] = None
    with pytest.raises(UserError, match="no pre_tokenizer"):
        grown(Tokenizer(json.dumps(content)), texts)
