"""`inspect`: say what a bundle, a checkpoint, a run, a token store or a tokenizer holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.manifest import SPLITS, read_manifest
from ptft_lightning.data.plan import PLAN
from ptft_lightning.data.streams import is_url
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.data.tokenizer_files import READERS
from ptft_lightning.errors import UserError


def inspect(path: str, verify: bool = False) -> None:
    """Print what is at a path, as JSON.

    Args:
        path: A bundle, run directory, checkpoint, Hugging Face folder, token store (or the
            URL of one) or tokenizer.
        verify: Read all of a token store and compare its checksums.
    """
    place = Path(path)
    if is_url(path) or (place / "manifest.json").is_file():
        facts = _store(path)
        for split in SPLITS if verify else ():
            TokenStore(path, split).verify()
    elif not place.exists():
        raise UserError(f"not found: '{path}'")
    elif (place / PLAN).is_file():
        raise UserError(f"'{path}' is a token store that is not finished: go on with prepare")
    elif place.name == "tokenizer.json" or _holds_tokenizer(place):
        facts = _tokenizer(Tokenizer.load(place))
    else:
        facts = _bundle(place)
    print(json.dumps(facts, indent=1, ensure_ascii=False))


def _holds_tokenizer(place: Path) -> bool:
    """And no model."""
    if (place / "config.json").is_file() or (place / "bundle").is_dir():
        return False
    return any(file.is_file() for name in READERS for file in place.glob(name))


def _store(place: str) -> dict[str, Any]:
    manifest = read_manifest(place)
    splits = {
        split: {
            "shards": len(shards),
            "documents": sum(s.documents for s in shards),
            "tokens": sum(s.tokens for s in shards),
            "text_bytes": sum(s.text_bytes for s in shards),
        }
        for split, shards in (("train", manifest.train), ("validation", manifest.validation))
    }
    return {
        "kind": "token store",
        "fingerprint": manifest.fingerprint,
        "tokenizer": manifest.tokenizer,
        "dtype": manifest.dtype,
        **splits,
        "dropped": manifest.dropped,
        "bad_documents": manifest.bad_documents,
        "bad_kinds": manifest.bad_kinds,
        "bad_places": manifest.bad_places,
        "plan": manifest.plan,
    }


def _tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    parts = {part: getattr(tokenizer, part) for part in ("pad", "mask", "begin", "end")}
    return {
        "kind": "tokenizer",
        "fingerprint": tokenizer.fingerprint,
        "ids": tokenizer.size,
        "round_trips": tokenizer.round_trips,
        **parts,
    }


def _bundle(place: Path) -> dict[str, Any]:
    from ptft_lightning.interop.adapters import AdapterBundle  # torch only where it is needed
    from ptft_lightning.interop.open import open_model

    bundle = open_model(place)
    own = bundle.own if isinstance(bundle, AdapterBundle) else bundle
    shapes = {name: list(own.tensor(name).shape) for name in sorted(own.names())}
    return {
        "kind": f"{bundle.config['phase']} bundle",
        "path": bundle.path,
        "hash": bundle.hash,
        "config": bundle.config,
        "tokenizer": _tokenizer(bundle.tokenizer),
        "lineage": bundle.lineage,
        "tensors": shapes,
    }


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, inspect, args, positional=True)
