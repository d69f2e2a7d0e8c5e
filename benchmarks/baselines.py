"""Simple baselines for the rows of tasks.yaml, on the same files and numbers of labels."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn_crfsuite import CRF

from ptft_lightning.commands.parser import import_parts
from ptft_lightning.data.examples import Columns
from ptft_lightning.data.findings import BadExamples
from ptft_lightning.tasks.answers import UNITS, measures
from ptft_lightning.tasks.base import Task
from ptft_lightning.tasks.relation_scores import relation_scores
from ptft_lightning.tasks.tags import scheme_of, span_scores, spans_of_tags
from ptft_lightning.tasks.text_scores import text_scores

Config = dict[str, Any]
Read = tuple[list[Any], list[Any]]


def kinds_below(kind: type) -> dict[str, type]:
    found = {kind.__name__: kind}
    for below in kind.__subclasses__():
        found |= kinds_below(below)
    return found


def read_all(config: Config, kind: str) -> list[Any]:
    """The examples of the config's `train`, `validation` or `test` file, as its task reads them."""
    import_parts()
    given, data = config["model"]["init_args"]["task"], config["data"]["init_args"]
    given = {"class_path": given} if isinstance(given, str) else given
    arguments = {k: v for k, v in given.get("init_args", {}).items() if k != "decoding"}
    task = kinds_below(Task)[given["class_path"].rpartition(".")[2]](**arguments)
    columns = Columns(**data.get("columns", {}))
    return task.read(data[kind], columns, True, BadExamples("skip"))


def read(config: Config, labels: str) -> Read:
    """Training examples, as many as the row's most labels, and all test examples."""
    train, test = read_all(config, "train"), read_all(config, "test")
    random.Random(0).shuffle(train)
    counts = [int(word) for word in labels.split(",") if word != "all"]
    return train[: max(counts)] if counts else train, test


def features(words: list[str], at: int) -> dict[str, Any]:
    """Of a word and its neighbours: form, ending, shape."""
    found: dict[str, Any] = {"bias": 1.0, "first": at == 0}
    for offset in (-2, -1, 0, 1, 2):
        word = words[at + offset] if 0 <= at + offset < len(words) else ""
        found[f"word{offset}"] = word.lower()
        if abs(offset) < 2:
            found[f"ending{offset}"] = word[-3:]
            found[f"shape{offset}"] = f"{word[:1].isupper()} {word.isupper()} {word.isdigit()}"
    found["before"] = found["word-1"] + " " + found["word0"]
    found["after"] = found["word0"] + " " + found["word1"]
    return found


def tag_figures(gold: list[list[str]], said: list[list[str]]) -> str:
    scheme = scheme_of(tag for tags in gold for tag in tags)
    if scheme is None:
        flat = [[tag for tags in side for tag in tags] for side in (gold, said)]
        return f"accuracy {accuracy_score(*flat):.4f}"
    spans = [[spans_of_tags(tags, scheme) for tags in side] for side in (gold, said)]
    return f"F1 {span_scores(*spans)['f1']:.4f}"


def frequent(config: Config, labels: str) -> str:
    """Each word's most frequent tag."""
    return most_frequent(*read(config, labels))


def most_frequent(train: list[Any], test: list[Any]) -> str:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        for word, tag in zip(example.tokens, example.labels, strict=True):
            counts[word][tag] += 1
    common = sum(counts.values(), Counter()).most_common(1)[0][0]
    said = [
        [counts[w].most_common(1)[0][0] if w in counts else common for w in example.tokens]
        for example in test
    ]
    return f"most frequent tag {tag_figures([list(e.labels) for e in test], said)}"


def tags(config: Config, labels: str) -> str:
    """The same, and a linear-chain CRF over words."""
    train, test = read(config, labels)
    sides = [
        [[features(e.tokens, i) for i in range(len(e.tokens))] for e in side]
        for side in (train, test)
    ]
    crf = CRF(c1=0.1, c2=0.1, max_iterations=60)
    crf.fit(sides[0], [list(e.labels) for e in train])
    said = [list(found) for found in crf.predict(sides[1])]
    return f"{most_frequent(train, test)}; CRF {tag_figures([list(e.labels) for e in test], said)}"


def roles(config: Config, labels: str) -> str:
    """A CRF that also knows the predicate and how far away it is, on 1,500 frames."""
    train, test = read(config, labels)
    train = train[:1500]

    def sentence(example: Any) -> list[dict[str, Any]]:
        words, at = example.tokens, example.predicate
        return [
            {
                **features(words, i),
                "predicate": words[at].lower(),
                "distance": str(max(-6, min(6, i - at))),
                "with": f"{words[at].lower()} {'before' if i < at else 'after'}",
            }
            for i in range(len(words))
        ]

    crf = CRF(c1=0.1, c2=0.1, max_iterations=30, min_freq=2)
    crf.fit([sentence(e) for e in train], [list(e.labels) for e in train])
    said = [list(found) for found in crf.predict([sentence(e) for e in test])]
    return f"CRF {tag_figures([list(e.labels) for e in test], said)}"


def texts(config: Config, labels: str, analyzer: str = "word") -> str:
    """Most common label; logistic regression on a bag of words, or of characters."""
    train, test = read(config, labels)
    bag = TfidfVectorizer(
        analyzer=analyzer,
        ngram_range=(1, 2),
        sublinear_tf=True,
        **({"token_pattern": r"\S+"} if analyzer == "word" else {}),
    )
    model = make_pipeline(bag, LogisticRegression(C=10, max_iter=1000))
    model.fit([marked(e) for e in train], [str(e.label) for e in train])
    gold = [str(e.label) for e in test]
    said = model.predict([marked(e) for e in test]).tolist()
    common = [Counter(str(e.label) for e in train).most_common(1)[0][0]] * len(gold)
    negative = config["model"]["init_args"]["task"]
    negative = negative.get("init_args", {}).get("negative") if isinstance(negative, dict) else None
    return f"most common {label_figures(gold, common, negative)}; bag of words " + label_figures(
        gold, said, negative
    )


def marked(example: Any) -> str:
    """The text, with the words of two entities told apart from the others."""
    if not hasattr(example, "head"):
        return str(example.text)
    head, tail = (example.text[slice(*span)] for span in (example.head, example.tail))
    first, last = sorted((example.head, example.tail))
    between = " ".join(f"between_{w}" for w in example.text[first[1] : last[0]].split())
    order = "head_first" if example.head < example.tail else "tail_first"
    return f"{example.text} head_{head} tail_{tail} {between} {order}"


def label_figures(gold: list[str], said: list[str], negative: str | None) -> str:
    shown = f"accuracy {accuracy_score(gold, said):.4f}"
    scores = relation_scores(gold, said, negative)
    macro = f1_score(gold, said, average="macro", zero_division=0)
    if negative is not None:
        shown += f" micro-F1 {scores['micro_f1']:.4f} macro-F1 (directed) {scores['macro_f1']:.4f}"
    return f"{shown} macro-F1 {macro:.4f}"


def pairs(config: Config, labels: str) -> str:
    """Most common label; logistic regression on words of either side, shared and different."""
    train, test = read(config, labels)

    def words(example: Any) -> str:
        one, two = (set(t.lower().split()) for t in (example.text, example.pair))
        parts = {"both": one & two, "one": one - two, "two": two - one}
        sizes = [f"size_{name}_{min(len(found), 8)}" for name, found in parts.items()]
        return " ".join([*(f"{name}_{w}" for name in parts for w in parts[name]), *sizes])

    bag = TfidfVectorizer(token_pattern=r"\S+", binary=True)
    model = make_pipeline(bag, LogisticRegression(C=10, max_iter=1000))
    model.fit([words(e) for e in train], [str(e.label) for e in train])
    gold, said = [str(e.label) for e in test], model.predict([words(e) for e in test])
    most = Counter(str(e.label) for e in train).most_common(1)[0][0]
    return (
        f"most common {accuracy_score(gold, [most] * len(gold)):.4f}; "
        f"bag of words accuracy {accuracy_score(gold, said):.4f}"
    )


def similarity(config: Config, labels: str) -> str:
    """The cosine of both texts' TF-IDF vectors."""
    train, test = read(config, labels)
    bag = TfidfVectorizer().fit([t for e in train for t in (e.text, e.pair)])
    one, two = (bag.transform([getattr(e, side) for e in test]) for side in ("text", "pair"))
    cosine = np.asarray(one.multiply(two).sum(1)).ravel()
    gold = [float(e.gold) for e in test]
    rank, line = spearmanr(cosine, gold)[0], pearsonr(cosine, gold)[0]
    return f"TF-IDF cosine Spearman {rank:.4f} Pearson {line:.4f}"


def answers(config: Config, labels: str, language: Any = "en") -> str:
    """The sentence of the context that shares most with the question."""
    _, test = read(config, labels)
    said = []
    for question in test:
        wanted = Counter(UNITS[language](question.pair))
        sentences = [s for s in re.split(r"(?<=[.!?])\s+|(?<=[。！？])", question.text) if s]
        said.append(max(sentences, key=lambda s: (Counter(UNITS[language](s)) & wanted).total()))
    scores = measures(said, [[a.text for a in q.answers] for q in test], language, False)
    return f"most overlapping sentence EM {scores['exact_match']:.4f} F1 {scores['f1']:.4f}"


def copied(config: Config, labels: str, words: int | None = None) -> str:
    """The source, or its first words."""
    _, test = read(config, labels)
    said = [" ".join(e.turns[-1].content.split()[:words]) for e in test]
    metrics = config["model"]["init_args"]["task"]["init_args"]["metrics"]
    scores = text_scores(metrics, said, [list(e.references) for e in test])
    figures = " ".join(f"{name} {value:.1f}" for name, value in scores.items())
    return f"{'copying' if words is None else f'first {words} words'} {figures}"


BASELINES: dict[str, Callable[[Config, str], str]] = {
    "frequent": frequent,
    "tags": tags,
    "roles": roles,
    "texts": texts,
    "texts_zh": lambda config, labels: texts(config, labels, "char"),
    "pairs": pairs,
    "similarity": similarity,
    "answers": answers,
    "answers_zh": lambda config, labels: answers(config, labels, "zh"),
    "copy": copied,
    "first_words": lambda config, labels: copied(config, labels, 10),
    "none": lambda config, labels: "none",
}
