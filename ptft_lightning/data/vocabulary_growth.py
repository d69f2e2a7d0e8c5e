"""More tokens for a vocabulary that exists, learned from new text; knows no files and no model.

WordPiece gets whole words: its greedy reading then takes each of them as one token. BPE goes on
learning merges where it had stopped, and they come after all others, so that text without a new
token is encoded as before and each new token is made of old ones. Both stay what they were, native
tokens of the model: exact and as fast, unlike `added_tokens`, which are searched in the raw text
and cut words in two.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ptft_lightning.data.tokenizer import OWN, Tokenizer
from ptft_lightning.errors import UserError

LEAST = 5  # a token that occurs less often in the text could not be learned
Pair = tuple[str, str]


@dataclass(frozen=True)
class Growth:
    """An extended tokenizer and what it is worth on the text it was learned from."""

    tokenizer: Tokenizer
    added: list[str]
    words: int
    before: int
    after: int
    unknown_before: int
    unknown_after: int
    """Words, their tokens under both tokenizers, and how many of those are unknown."""


def count_words(tokenizer: Tokenizer, documents: Iterable[str]) -> Counter[str]:
    """The words of the pre-tokenizer as the model gets them.

    Raises:
        UserError: a tokenizer that does not cut text into words.
    """
    raw = tokenizer.raw
    if raw.pre_tokenizer is None:
        raise UserError(
            "this tokenizer reads a whole text as one word (no pre_tokenizer): its vocabulary "
            "cannot be extended"
        )
    words: Counter[str] = Counter()
    for text in documents:
        (text,) = tokenizer.normalized([text])
        text = text if raw.normalizer is None else raw.normalizer.normalize_str(text)
        words.update(word for word, _ in raw.pre_tokenizer.pre_tokenize_str(text))
    return words


def extend_tokenizer(tokenizer: Tokenizer, words: Counter[str], add: int) -> Growth:
    """A tokenizer with up to `add` more ids after the old ones.

    Raises:
        UserError: of a kind that cannot be extended, or the text needs no new token.
    """
    content: dict[str, Any] = json.loads(tokenizer.text)
    kind = content["model"].get("type") or ("BPE" if "merges" in content["model"] else "WordPiece")
    if kind not in ("BPE", "WordPiece"):
        raise UserError(
            f"a {kind} vocabulary cannot be extended, its tokens compete by their scores: only BPE "
            "and WordPiece are"
        )
    split = {word: [t.value for t in tokenizer.raw.model.tokenize(word)] for word in words}
    learn = _merges if kind == "BPE" else _whole_words
    unknown = content["model"].get("unk_token")
    added = learn(content["model"], words, split, add, tokenizer)
    if not added:
        raise UserError(
            f"nothing to add: no word of the text occurs {LEAST} times and takes several tokens"
        )
    first = tokenizer.size
    # Tokens that only `added_tokens` knows would move behind the new ones.
    listed = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    fresh = {token: first + n for n, token in enumerate(added)}
    content["model"]["vocab"] = {**listed, **content["model"]["vocab"], **fresh}
    content[OWN] = {**content.get(OWN, {}), "extends": tokenizer.fingerprint}
    grown = Tokenizer(json.dumps(content, ensure_ascii=False))
    _check(tokenizer, grown)
    now = {word: [t.value for t in grown.raw.model.tokenize(word)] for word in words}
    return Growth(
        *(grown, added, words.total(), _tokens(words, split), _tokens(words, now)),
        unknown_before=sum(words[w] * s.count(unknown) for w, s in split.items()),
        unknown_after=sum(words[w] * s.count(unknown) for w, s in now.items()),
    )


def _tokens(words: Counter[str], split: dict[str, list[str]]) -> int:
    return sum(count * len(split[word]) for word, count in words.items())


def _check(old: Tokenizer, new: Tokenizer) -> None:
    vocabulary = new.raw.get_vocab(with_added_tokens=True)
    moved = [t for t, i in old.raw.get_vocab(with_added_tokens=True).items() if vocabulary[t] != i]
    assert not moved, f"tokens moved: {moved[:3]}"


def _whole_words(
    model: dict[str, Any],
    words: Counter[str],
    split: dict[str, list[str]],
    add: int,
    tokenizer: Tokenizer,
) -> list[str]:
    """The words whose single token saves most tokens, or makes most unknown words known."""
    unknown, longest = model["unk_token"], model.get("max_input_chars_per_word", 100)
    gains = {
        word: count * (1 if split[word] == [unknown] else len(split[word]) - 1)
        for word, count in words.items()
        if count >= LEAST and len(word) <= longest
    }
    best = sorted((w for w in gains if gains[w]), key=lambda w: (-gains[w], w))
    return best[:add]


def _merges(
    model: dict[str, Any],
    words: Counter[str],
    split: dict[str, list[str]],
    add: int,
    tokenizer: Tokenizer,
) -> list[str]:
    """Merges learned on top of the old ones (Sennrich et al. 2016); noted in `model`."""
    known = set(model["vocab"])
    learner = _Learner(
        # What is written in bytes or unknown is no string of its tokens.
        [(tokens, words[word]) for word, tokens in split.items() if "".join(tokens) == word]
    )
    added: list[str] = []
    merges: list[Pair] = []
    while len(added) < add and (pair := learner.best(known)) is not None:
        learner.merge(pair)
        merges.append(pair)
        added.append(pair[0] + pair[1])
        known.add(added[-1])
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    model["merges"] += [" ".join(pair) if as_text else list(pair) for pair in merges]
    return added


class _Learner:
    """Counts of neighbouring tokens, kept up to date while pairs are merged."""

    def __init__(self, words: list[tuple[list[str], int]]) -> None:
        self.words = words
        self.counts: Counter[Pair] = Counter()
        self.where: defaultdict[Pair, set[int]] = defaultdict(set)
        for number in range(len(words)):
            self._count(number, 1)
        # Entries whose count is no longer true are corrected when they are met.
        self.heap = [(-count, pair) for pair, count in self.counts.items()]
        heapq.heapify(self.heap)

    def _count(self, number: int, sign: int) -> None:
        tokens, count = self.words[number]
        for pair in pairwise(tokens):
            self.counts[pair] += sign * count
            if sign > 0:
                self.where[pair].add(number)

    def best(self, known: set[str]) -> Pair | None:
        """The most frequent pair that makes a new token; of several the first by its text."""
        while self.heap:
            count, pair = heapq.heappop(self.heap)
            now = self.counts[pair]
            if now != -count:
                if now >= LEAST:
                    heapq.heappush(self.heap, (-now, pair))
            # Another way to a known token: old merges could follow it, and old text change.
            elif pair[0] + pair[1] not in known:
                return pair if now >= LEAST else None
        return None

    def merge(self, pair: Pair) -> None:
        """Join the pair wherever it stands."""
        changed: set[Pair] = set()
        for number in sorted(self.where.pop(pair)):
            self._count(number, -1)
            tokens, count = self.words[number]
            tokens = _joined(tokens, pair)
            self.words[number] = (tokens, count)
            self._count(number, 1)
            changed.update(pairwise(tokens))
        for near in changed:
            heapq.heappush(self.heap, (-self.counts[near], near))


def _joined(tokens: list[str], pair: Pair) -> list[str]:
    out: list[str] = []
    for token in tokens:
        # A token that was just made does not take part again: merges go from left to right.
        if out and (out[-1], token) == pair:
            out[-1] = pair[0] + pair[1]
        else:
            out.append(token)
    return out
