"""Scores of generated texts beside references, in any script; knows no tokens and no model.

BLEU and chrF are sacrebleu's, ROUGE is rouge-score's over words of any script (its own tokenizer
drops all but a-z and digits; on plain English both are the same).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Literal

from ptft_lightning.data.words import IDEOGRAPHS
from ptft_lightning.errors import UserError

Metric = Literal["bleu", "chrf", "rouge", "exact_match", "distinct"]
BleuTokenizer = Literal["auto", "13a", "zh", "char", "intl", "none"]
METRICS: tuple[Metric, ...] = ("bleu", "chrf", "rouge", "exact_match", "distinct")
NAMES: dict[str, tuple[str, ...]] = {
    "bleu": ("bleu",),
    "chrf": ("chrf",),
    "rouge": ("rouge1", "rouge2", "rougeL"),
    "exact_match": ("exact_match",),
    "distinct": ("distinct1", "distinct2"),
}
# Letters and digits; each ideograph and kana is a word of its own. In English texts these are
# the words of rouge-score's own tokenizer, which knows no letters but a to z.
WORD = re.compile(rf"[{IDEOGRAPHS}\u3040-\u30ff]|(?:(?![{IDEOGRAPHS}\u3040-\u30ff])[^\W_])+")
MOSTLY = 0.2  # of the letters, above which texts count as Chinese

Texts = Sequence[str]
References = Sequence[Sequence[str]]
"""One or several right texts for each text."""


def words(text: str) -> list[str]:
    """The lower-case words of a text in any script."""
    return WORD.findall(text.lower())


class Words:
    """`words` in the form rouge-score takes."""

    def tokenize(self, text: str) -> list[str]:
        """See `words`."""
        return words(text)


def text_scores(
    metrics: Sequence[Metric],
    texts: Texts,
    references: References,
    bleu_tokenizer: BleuTokenizer = "auto",
) -> dict[str, float]:
    """The scores that are asked for.

    BLEU, chrF and ROUGE (F-measures) go from 0 to 100, shares of texts or words from 0 to 1.
    """
    measures: dict[Metric, Callable[[], list[float]]] = {
        "bleu": lambda: [bleu(texts, references, bleu_tokenizer)],
        "chrf": lambda: [chrf(texts, references)],
        "rouge": lambda: rouge(texts, references),
        "exact_match": lambda: [exact_match(texts, references)],
        "distinct": lambda: [distinct(texts, 1), distinct(texts, 2)],
    }
    values = ((metric, measures[metric]()) for metric in metrics)
    return {
        name: value
        for metric, found in values
        for name, value in zip(NAMES[metric], found, strict=True)
    }


def check_libraries(metrics: Sequence[Metric]) -> None:
    """Refuse scores whose library is not installed, before anything is trained."""
    for metric, needed in (("bleu", _sacrebleu), ("chrf", _sacrebleu), ("rouge", _rouge)):
        if metric in metrics:
            needed()


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError:
        raise _missing("bleu and chrf", "sacrebleu") from None
    return sacrebleu


def _rouge() -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise _missing("rouge", "rouge-score") from None
    return rouge_scorer


def _missing(metrics: str, library: str) -> UserError:
    return UserError(
        f"model.task.metrics names {metrics}, which {library} computes: pip install "
        "'ptft-lightning[generation]', or leave it out of model.task.metrics"
    )


def bleu(texts: Texts, references: References, tokenizer: BleuTokenizer = "auto") -> float:
    """Corpus BLEU (Papineni et al. 2002; Post 2018), 0 to 100.

    `auto` is sacrebleu's `zh` where a fifth of the references' letters are ideographs and none is
    kana, which `zh` would not split, else `13a`.
    """
    library = _sacrebleu()
    chosen = tokenizer
    if chosen == "auto":
        chosen = "zh" if is_chinese(chain.from_iterable(references)) else "13a"
    score = library.BLEU(tokenize=chosen).corpus_score(list(texts), _streams(references)).score
    return float(score)


def chrf(texts: Texts, references: References) -> float:
    """Corpus chrF2 (Popovic 2015), 0 to 100."""
    return float(_sacrebleu().CHRF().corpus_score(list(texts), _streams(references)).score)


def _streams(references: References) -> list[list[str | None]]:
    """sacrebleu's form: the first references of all texts, the second ones, .."""
    most = max(map(len, references))
    return [[own[i] if i < len(own) else None for own in references] for i in range(most)]


def rouge(texts: Texts, references: References) -> list[float]:
    """ROUGE-1, -2 and -L (Lin 2004): means of F-measures, of the best reference, 0 to 100."""
    kinds = NAMES["rouge"]
    scorer = _rouge().RougeScorer(list(kinds), tokenizer=Words())
    found = [scorer.score_multi(own, text) for text, own in zip(texts, references, strict=True)]
    return [100 * sum(one[kind].fmeasure for one in found) / len(found) for kind in kinds]


def exact_match(texts: Texts, references: References) -> float:
    """Share of texts that are one of their references, white space at the ends aside."""
    pairs = zip(texts, references, strict=True)
    right = [text.strip() in [one.strip() for one in own] for text, own in pairs]
    return sum(right) / len(right)


def distinct(texts: Texts, n: int) -> float:
    """Different n-grams of words / all of them, over all texts (Li et al. 2016); 0 without any."""
    said = [words(text) for text in texts]
    grams = [tuple(own[i : i + n]) for own in said for i in range(len(own) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def is_chinese(texts: Iterable[str]) -> bool:
    """Whether a fifth of the letters are ideographs, and none is kana."""
    text = "".join(texts)
    if re.search(r"[\u3040-\u30ff]", text):
        return False
    letters = sum(map(str.isalpha, text))
    return len(re.findall(f"[{IDEOGRAPHS}]", text)) > MOSTLY * letters
