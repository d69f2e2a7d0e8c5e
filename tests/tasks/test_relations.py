"""Relation extraction: signs between tokens, cuts that keep the entities, the official score."""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.files_relations import LABELS, relation_rows
from hypothesis import given
from hypothesis import strategies as st

from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.example_rows import ExampleDataset
from ptft_lightning.data.examples import Example
from ptft_lightning.data.relation_files import Related
from ptft_lightning.data.steps import Slots
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.unusable import leave_out
from ptft_lightning.errors import UserError
from ptft_lightning.modules.nets import TaskNet, build_backbone
from ptft_lightning.tasks.marking import Marked, signs_of
from ptft_lightning.tasks.relation_scores import relation_scores
from ptft_lightning.tasks.relations import RelationExtraction

# Scores.

NINE = [f"R{i}" for i in range(9)]
DIRECTED = [f"{name}({way})" for name in NINE for way in ("e1,e2", "e2,e1")] + ["Other"]


def official(gold: list[str], said: list[str]) -> tuple[float, float]:
    """Micro and macro F1 as the task's description has them: counts of true and false positives
    and false negatives relation by relation, in floats."""
    sums = np.zeros(3)
    each = []
    names = {label.partition("(")[0] for label in gold} - {"Other"}
    for name in names:
        true = sum(g == s and g.startswith(f"{name}(") for g, s in zip(gold, said, strict=True))
        proposed = sum(s.startswith(f"{name}(") for s in said)
        actual = sum(g.startswith(f"{name}(") for g in gold)
        precision = true / proposed if proposed else 0.0
        recall = true / actual
        both = precision + recall
        each.append(2 * precision * recall / both if both else 0.0)
        sums += [true, proposed, actual]
    precision, recall = sums[0] / sums[1], sums[0] / sums[2]
    return 2 * precision * recall / (precision + recall), float(np.mean(each))


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_the_official_ones(seed: int) -> None:
    rng = random.Random(seed)
    gold = DIRECTED + rng.choices(DIRECTED, k=200)
    said = [g if rng.random() < 0.5 else rng.choice(DIRECTED) for g in gold]
    micro, macro = official(gold, said)
    scores = relation_scores(gold, said, "Other")
    assert scores["micro_f1"] == pytest.approx(micro)
    assert scores["macro_f1"] == pytest.approx(macro)
    right = sum(g == s for g, s in zip(gold, said, strict=True))
    assert scores["accuracy"] == pytest.approx(right / len(gold))


def test_a_wrong_direction_is_wrong_and_none_of_them_scores_nothing() -> None:
    turned = relation_scores(["A(e1,e2)", "Other"], ["A(e2,e1)", "Other"], "Other")
    assert turned == {"accuracy": 0.5, "micro_f1": 0.0, "macro_f1": 0.0}
    nothing = relation_scores(["A"], ["none"], "none")
    assert nothing == {"accuracy": 0.0, "micro_f1": 0.0, "macro_f1": 0.0}
    assert set(relation_scores([], [], None).values()) == {0.0}


@pytest.mark.real
def test_scores_are_those_of_the_official_program(tmp_path: Path) -> None:
    place = os.environ.get("PTFT_DATA")
    assert place, "set PTFT_DATA to the directory that holds semeval2010_task8"
    data = Path(place) / "semeval2010_task8"
    key = (data / "TEST_FILE_KEY.TXT").read_text().split("\n")
    gold = [line.rstrip().split("\t")[1] for line in key if line.strip()]
    labels = sorted(set(gold))
    program = next(data.glob("*scorer*.pl"))
    if not any("(" in label for label in labels):  # a key without directions
        from ptft_lightning.data.examples import Columns, read_examples

        gold = [str(e.label) for e in read_examples(str(data / "test.jsonl"), Columns(), True)]
        labels = sorted(set(gold))
    for seed in range(3):
        rng = random.Random(seed)
        said = [g if rng.random() < 0.6 else rng.choice(labels) for g in gold]
        for name, column in (("said", said), ("gold", gold)):
            lines = [f"{n}\t{label}\n" for n, label in enumerate(column, 1)]
            (tmp_path / name).write_text("".join(lines))
        command = ["perl", str(program), str(tmp_path / "said"), str(tmp_path / "gold")]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        last = re.findall(r"macro-averaged F1 = ([\d.]+)%", out)[-1]
        micro = re.findall(r"P = .* R = .* F1 = +([\d.]+)%\n\nMACRO", out)[-1]
        scores = relation_scores(gold, said, "Other")
        assert 100 * scores["macro_f1"] == pytest.approx(float(last), abs=0.006)
        assert 100 * scores["micro_f1"] == pytest.approx(float(micro), abs=0.006)


# Signs.


def related(text: str, head: str, tail: str, label: str | None = None) -> Related:
    h, t = text.index(head), text.index(tail)
    return Related(text, None, label, "here", None, (h, h + len(head)), (t, t + len(tail)))


def encode(
    example: Related, tokenizer: Tokenizer, length: int = 64, task: RelationExtraction | None = None
) -> Marked:
    (item,) = (task or RelationExtraction()).encode([example], [*LABELS], tokenizer, length)
    assert isinstance(item, Marked)
    return item


TEXTS = [
    ("the water river reads a letter house", "water river", "letter"),
    ("letter,water", "water", "letter"),
    ("我们的时间和地方大为这个国家的人们", "时间", "国家的"),
    ("garden的evening", "garden", "evening"),
]


@pytest.mark.parametrize(("text", "head", "tail"), TEXTS)
@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_signs_stand_around_the_entities(
    text: str, head: str, tail: str, kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    item = encode(related(text, head, tail), tokenizer)
    signs = signs_of(tokenizer, 2)
    covered: list[int] = []
    for name, sign, (before, first, end, after) in zip(
        (head, tail), signs, item.places, strict=True
    ):
        assert item.tokens[before:first] == item.tokens[end:after] == sign
        assert item.spans is not None
        span = item.spans[first:end]
        assert text[span[0, 0] : span[-1, 1]].strip() == name
        covered += [*range(before, first), *range(end, after)]
    rest = [t for i, t in enumerate(item.tokens) if i not in covered]
    # Without the signs these are the tokens of the text itself, where they end with the entities.
    framed = tokenizer.frame(tokenizer.encode([text])[0])
    assert tokenizer.decode(rest) == tokenizer.decode(framed)
    if " " in text:
        assert rest == framed


@given(data=st.data())
def test_a_cut_never_loses_an_entity(data: st.DataObject, bpe: Tokenizer) -> None:
    row = relation_rows(1, data.draw(st.integers(0, 99)))[0]
    gaps = [data.draw(st.integers(0, 30)) for _ in range(3)]
    filler = [["stone"] * n for n in gaps]
    head, tail = (row["text"][slice(*row[n])] for n in ("head", "tail"))
    pieces = [filler[0], head, filler[1], tail, filler[2]]
    text = " ".join(w for piece in pieces for w in piece)
    before = [" ".join(w for piece in pieces[:i] for w in piece) for i in (1, 3)]
    starts = [len(some) + 1 if some else 0 for some in before]
    spans = [(s, s + len(" ".join(p))) for s, p in zip(starts, (head, tail), strict=True)]
    example = Related(text, None, None, "here", None, spans[0], spans[1])
    whole = encode(example, bpe, 10**6)
    need = sum(after - before for before, _, _, after in whole.places) + len(bpe.frame([]))
    length = data.draw(st.integers(need, need + 40))
    item = encode(example, bpe, length)
    assert len(item.tokens) == min(length, len(whole.tokens))
    assert item.cut == len(whole.tokens) - len(item.tokens)
    for mine, theirs in zip(item.places, whole.places, strict=True):
        assert item.tokens[mine[0] : mine[3]] == whole.tokens[theirs[0] : theirs[3]]
    assert item.tokens[-1] == whole.tokens[-1]
    between = whole.places[1][0] - whole.places[0][3]
    outside = len(whole.tokens) - need - between
    lost = between - (item.places[1][0] - item.places[0][3])
    assert lost == max(0, item.cut - outside)  # what is outside goes first


def test_entities_longer_than_a_row_cannot_be_used(bpe: Tokenizer) -> None:
    example = related("the water river reads a letter house", "water river", "letter house")
    (item,) = RelationExtraction().encode([example], [*LABELS], bpe, 6)
    assert re.fullmatch(r"what is marked takes \d+ tokens .*: raise data.max_length", item.fault)
    with pytest.raises(UserError, match=r"^here: what is marked .* \(1 of 1 examples .* 't.jsonl'"):
        leave_out("t.jsonl", [example], [item], "skip")
    fine = related("the water river", "water", "river")
    pair = RelationExtraction().encode([example, fine], [*LABELS], bpe, 8)
    assert [bool(one.fault) for one in pair] == [True, False]
    examples, kept = leave_out("t.jsonl", [example, fine], pair, "skip")
    assert (examples, [one.example for one in kept]) == ([fine], [0])


def test_a_tokenizer_without_signs_has_special_tokens(wordpiece: Tokenizer) -> None:
    class Silent(Tokenizer):
        def decode(self, ids: list[int], specials: bool = False) -> str:
            return ""

    silent = Silent(wordpiece.text)
    assert signs_of(silent, 2) == [[silent.mask], [silent.end]]
    silent.mask = None
    silent.end = silent.begin
    with pytest.raises(UserError, match="knows only 1 of"):
        signs_of(silent, 2)


def test_types_stand_in_the_signs(bpe: Tokenizer) -> None:
    example = Related("the river", None, None, "", None, (4, 9), (0, 3), ("water", "word"))
    item = encode(example, bpe, task=RelationExtraction(types=["a", "b"]))
    (before, first, _, _), _ = item.places
    assert bpe.decode(item.tokens[before:first]) == "@water@"


# The head.


def examples() -> list[Example]:
    rows = relation_rows(11, 5)
    return [
        related(
            " ".join(r["text"]),
            *(" ".join(r["text"][slice(*r[n])]) for n in ("head", "tail")),
            r["label"],
        )
        for r in rows
    ]


@pytest.mark.parametrize("reading", ["start", "mean", "end"])
def test_packed_examples_get_what_each_gets_alone(reading: str, bpe: Tokenizer) -> None:
    task = RelationExtraction(reading=reading)  # type: ignore[arg-type]
    encoded = task.encode(examples(), [*LABELS], bpe, 32)
    torch.manual_seed(0)
    shape = vars(TransformerConfig(dim=32, depth=2, heads=2, max_length=64))
    backbone = build_backbone("transformer", shape, bpe.size)
    net = TaskNet(backbone, task.build_head(backbone, [*LABELS])).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)

    def scores(numbers: list[int]) -> torch.Tensor:
        dataset = ExampleDataset(encoded, task, 64, bpe, 0, False, False)
        slots = Slots(np.array(numbers), np.array([n for n in numbers if n >= 0]))
        with torch.no_grad():
            output = net(dataset[slots])
        assert output.scores is not None
        return output.scores

    together = scores([*range(11), -1])
    for number in range(11):
        assert torch.allclose(together[number], scores([number])[0], atol=1e-5)
    assert together.std(0).min() > 1e-3


@pytest.mark.parametrize(("causal", "width"), [(False, 64), (True, 96)])
def test_a_causal_model_is_read_after_the_entities(causal: bool, width: int) -> None:
    shape = vars(TransformerConfig(dim=32, depth=1, heads=2, max_length=64, causal=causal))
    backbone = build_backbone("transformer", shape, 50)
    head = RelationExtraction().build_head(backbone, [*LABELS])
    assert head.classifier.in_features == width  # type: ignore[union-attr]
