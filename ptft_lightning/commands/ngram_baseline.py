"""What a 3-gram makes of a causal run's held-out text, to be shown beside the model's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ptft_lightning.commands.ngram import fit_ngram
from ptft_lightning.data.streams import is_url
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.files import write_atomically
from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.ngrams.scoring import of_store

ORDER = 3
MOST_TOKENS = 5_000_000  # of the training text: seconds
FILE = "ngram.json"


def write_baseline(run_dir: Path) -> None:
    """Leave `ngram.json` in the run of a causal model whose token store is at hand, once."""
    store = _store_of(run_dir)
    if store is None or is_url(store) or not (Path(store) / "manifest.json").is_file():
        return
    train, validation = TokenStore(store, "train"), TokenStore(store, "validation")
    fingerprint = train.manifest.fingerprint
    known = _read(run_dir / FILE)
    if known.get("fingerprint") == fingerprint or not train.manifest.round_trips:
        return
    if not train.shards or not validation.shards:
        return
    model = fit_ngram(train, open_bundle(run_dir).tokenizer, ORDER, MOST_TOKENS)
    found = {
        "order": ORDER,
        "tokens": model.facts["tokens"],
        "fingerprint": fingerprint,
        **of_store(model, validation).values(),
    }
    write_atomically(run_dir / FILE, json.dumps(found).encode())


def _store_of(run_dir: Path) -> str | None:
    """The token store of a run of causal pretraining; None of any other."""
    head = _read(run_dir / "bundle" / "config.json").get("head", {})
    file = run_dir / "config.yaml"
    if head.get("name") != "causal" or not file.is_file():
        return None
    data: dict[str, Any] = yaml.safe_load(file.read_text())["data"]["init_args"]
    mixture = data.get("mixture") or {}
    return data.get("store") or next(iter(mixture.get("stores", {}).values()), None)


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found
