"""Whether a finished token store is the one a run means; knows no model."""

from __future__ import annotations

from typing import Any

from ptft_lightning.data.plan import shown_change
from ptft_lightning.data.sources import HUB
from ptft_lightning.data.streams import stored_size
from ptft_lightning.data.token_store import read_manifest
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError


def check_plan(store: str, files: list[str], settings: dict[str, Any]) -> None:
    """A finished store must be of these files, as they are now.

    Raises:
        UserError: naming what changed.
    """
    plan = read_manifest(store).plan
    sizes = [0 if f.startswith(HUB) else stored_size(f) for f in files]
    asked = {"files": files, **settings, "stored": sizes}
    made = {"encoding": "utf-8"} | plan
    changed = [shown_change(k, made.get(k), v) for k, v in asked.items() if made.get(k) != v]
    if changed:
        raise UserError(
            f"the token store '{store}' was made from something else "
            f"({', '.join(changed)}): give another data.store, or leave data.files out"
        )


def check_encoding(store: str, tokenizer: Tokenizer, word_starts: bool) -> None:
    """A store must hold this tokenizer's ids and, where asked for, word starts.

    Raises:
        UserError: it does not.
    """
    manifest = read_manifest(store)
    if word_starts and manifest.segmenter is None:
        raise UserError(
            f"token store '{store}' was made without word starts: prepare it again into "
            "another directory, or leave data.word_starts out"
        )
    if manifest.tokenizer != tokenizer.fingerprint:
        raise UserError(
            f"token store '{store}' was made with another tokenizer (fingerprint "
            f"{manifest.tokenizer}, yours is {tokenizer.fingerprint}): prepare the text again into "
            "another directory"
        )
