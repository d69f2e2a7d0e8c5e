"""Scores of texts: those of the libraries called directly, in any script."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
import sacrebleu
from rouge_score import rouge_scorer

from ptft_lightning.errors import UserError
from ptft_lightning.tasks.text_scores import METRICS, NAMES, check_libraries, text_scores, words

ENGLISH = ("the", "a", "river", "sea", "sees", "builds", "old", "isn't", "3", "winter.", "e-mail")
CHINESE = ["今天天气很好，我们去公园散步。", "语言模型从文本中学习。", "他在2024年买了三本书。"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(ENGLISH, k=rng.randint(3, 15))) for _ in range(40)]


@pytest.fixture(scope="module")
def references(texts) -> list[list[str]]:
    """One to three a text, near it and far from it."""
    rng = random.Random(1)
    near = [" ".join(rng.sample(text.split(), k=len(text.split()))) for text in texts]
    return [[near[i], *rng.choices(texts, k=i % 3)] for i in range(len(texts))]


def test_bleu_and_chrf_are_those_of_sacrebleu_s_own_command(texts, references, tmp_path):
    first = [own[0] for own in references]
    for name, lines in (("refs", first), ("texts", texts)):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "sacrebleu", "refs", "-i", "texts", "-w", "9", "-f", "json"]
    run = subprocess.run(
        [*command, "-m", "bleu", "chrf"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    wanted = [one["score"] for one in json.loads(run.stdout)]
    mine = text_scores(["bleu", "chrf"], texts, [[one] for one in first])
    assert [mine["bleu"], mine["chrf"]] == pytest.approx(wanted, abs=1e-8)
    assert 1 < mine["bleu"] < 99


def test_several_references_as_sacrebleu_takes_them(texts, references):
    streams = [[own[i] if i < len(own) else "" for own in references] for i in range(3)]
    mine = text_scores(["bleu", "chrf"], texts, references)
    assert mine["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, streams).score)
    assert mine["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, streams).score)


def test_rouge_is_the_library_s_with_its_own_words(texts, references):
    """In English; of several references the best one."""
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    mine = text_scores(["rouge"], texts, references)
    for kind, value in mine.items():
        best = [
            max(scorer.score(one, text)[kind].fmeasure for one in own)
            for text, own in zip(texts, references, strict=True)
        ]
        assert value == pytest.approx(100 * sum(best) / len(best)), kind


def test_identical_chinese_texts_score_100():
    scores = text_scores(METRICS, CHINESE, [[text] for text in CHINESE])
    assert {k: scores[k] for k in ("bleu", "chrf", "rouge1", "rouge2", "rougeL")} == pytest.approx(
        {"bleu": 100, "chrf": 100, "rouge1": 100, "rouge2": 100, "rougeL": 100}
    )
    assert scores["exact_match"] == 1


def test_chinese_is_judged_by_character():
    other = ["今天天气不好，我们去公园看书。", *CHINESE[1:]]
    scores = text_scores(["bleu", "rouge"], other, [[text] for text in CHINESE])
    # 10 of 12 characters of the first; the others are the same.
    assert scores["rouge1"] == pytest.approx(100 * (10 / 13 + 2) / 3, abs=3)
    wanted = sacrebleu.corpus_bleu(other, [CHINESE], tokenize="zh").score
    assert scores["bleu"] == pytest.approx(wanted)
    assert text_scores(["bleu"], other, [[t] for t in CHINESE], "13a")["bleu"] != wanted


def test_japanese_is_not_cut_as_chinese():
    text, other = "東京都は日本国の首都である。", "東京都は日本国の首都でした。"
    assert text_scores(["bleu"], [text], [[other]]) == text_scores(
        ["bleu"], [text], [[other]], "13a"
    )


def test_words_of_any_script():
    assert words("Für e-mail_2, 今天2024年") == ["für", "e", "mail", "2", "今", "天", "2024", "年"]
    assert words("ひらカナ") == [*"ひらカナ"]


def test_other_scores_by_hand():
    scores = text_scores(["exact_match", "distinct"], ["a b a", " c "], [["a b"], ["x", "c"]])
    assert scores == {"exact_match": 0.5, "distinct1": 3 / 4, "distinct2": 1.0}


@pytest.mark.parametrize(
    ("metric", "module"), [("bleu", "sacrebleu"), ("chrf", "sacrebleu"), ("rouge", "rouge_score")]
)
def test_a_missing_library_is_told_in_one_sentence(metric, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'ptft-lightning\[generation\]'"):
        check_libraries([metric])
    check_libraries(["exact_match", "distinct"])


def test_every_metric_has_names():
    assert set(METRICS) == set(NAMES)
