"""What many tests share: a small corpus made by code, tokenizers learned from it, a store."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ptft_lightning.data.prepare import prepare_store
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.tokenizer_training import Kind, train_tokenizer

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tests fork loader workers
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the network

# No deadlines: a shared machine is slow at times. Session fixtures are never changed by a test.
settings.register_profile(
    "ours", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("ours")

DOCUMENTS = 300
VOCABULARY = 600
ENGLISH = (
    "the a of and to in language model data river mountain light small large reads writes learns "
    "token text train slowly quickly green blue water stone bread letter house north winter "
    "music paper window garden silver morning evening question answer number"
)
CHINESE = "的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自以会"


def _english(rng: random.Random) -> str:
    words = rng.choices(ENGLISH.split(), k=rng.randint(3, 14))
    return " ".join(words).capitalize() + rng.choice(".!?")


def _chinese(rng: random.Random) -> str:
    return "".join(rng.choices(CHINESE, k=rng.randint(4, 20))) + rng.choice("。！？")


def make_documents(count: int = DOCUMENTS, seed: int = 0) -> list[str]:
    """English, Chinese and mixed documents of one to six lines, none of them blank."""
    rng = random.Random(seed)
    documents = []
    for _ in range(count):
        makers = rng.choice([[_english], [_chinese], [_english, _chinese]])
        lines = [
            " ".join(rng.choice(makers)(rng) for _ in range(rng.randint(1, 3)))
            for _ in range(rng.randint(1, 6))
        ]
        documents.append("\n".join(lines))
    return documents


@pytest.fixture(scope="session")
def corpus_documents() -> list[str]:
    """The documents of the corpus, in the order of its files."""
    return make_documents()


@pytest.fixture(scope="session")
def corpus_file(corpus_documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as .jsonl, its text column `text`."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    records = [{"id": i, "text": text} for i, text in enumerate(corpus_documents)]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus_txt(corpus_documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same corpus as .txt, blank lines between documents."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(corpus_documents) + "\n", encoding="utf-8")
    return path


def _learn(documents: list[str], kind: Kind, directory: Path) -> Path:
    train_tokenizer(iter(documents), kind, VOCABULARY, lowercase=False).save(directory)
    return directory


@pytest.fixture(scope="session")
def bpe_path(corpus_documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a byte-level BPE tokenizer learned from the corpus."""
    return _learn(corpus_documents, "bpe", tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="session")
def wordpiece_path(corpus_documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a WordPiece tokenizer learned from the corpus."""
    return _learn(corpus_documents, "wordpiece", tmp_path_factory.mktemp("wordpiece"))


@pytest.fixture(scope="session")
def bpe(bpe_path: Path) -> Tokenizer:
    return Tokenizer.load(bpe_path)


@pytest.fixture(scope="session")
def wordpiece(wordpiece_path: Path) -> Tokenizer:
    return Tokenizer.load(wordpiece_path)


@pytest.fixture(scope="session")
def store(corpus_file: Path, bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the corpus prepared with `bpe`: several shards, a tenth held out."""
    directory = tmp_path_factory.mktemp("store")
    prepare_store([str(corpus_file)], bpe, directory, validation_share=0.1, unit_bytes=8192)
    assert len(TokenStore(directory, "train").shards) > 3
    return directory
