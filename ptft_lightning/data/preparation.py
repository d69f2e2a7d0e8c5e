"""A `prepare` that a run of phase one starts as a process of its own, to train beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ptft_lightning.data.module import say
from ptft_lightning.data.plan import UNIT_BYTES, read_plan, shown_change
from ptft_lightning.data.store_checks import compare_plan, compare_tokenizer
from ptft_lightning.data.store_lock import is_being_prepared
from ptft_lightning.data.streams import is_url
from ptft_lightning.errors import UserError

if TYPE_CHECKING:
    from ptft_lightning.data.corpus import CorpusDataModule

LOG = "prepare.log"
POLL_S = 0.05
# What a `prepare` of ours leaves as it is, and another one may have chosen.
OURS = {"unit_bytes": UNIT_BYTES, "seed": 0, "drop": None, "splitter": None}


class Preparation:
    """The process that was started, and what it says."""

    def __init__(self, data: CorpusDataModule) -> None:
        store = Path(data.store)
        store.mkdir(parents=True, exist_ok=True)
        data.tokenizer.save(store)
        self.place, self.log = data.store, store / LOG
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ptft_lightning", *_command(data)],
                stdout=log,
                stderr=log,
                start_new_session=True,  # goes on when the training ends
                preexec_fn=lambda: os.nice(10),
            )
        say(f"preparing '{store}' beside the training: process {self.process.pid}, see {self.log}")
        while self.process.poll() is None and is_being_prepared(data.store) is False:
            time.sleep(POLL_S)

    def check(self) -> None:
        """Refuse to wait for one that failed.

        Raises:
            UserError: with its last words.
        """
        if not (code := self.process.poll()):
            return
        said = self.log.read_text(encoding="utf-8").splitlines()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        last = said[-1].removeprefix("error: ") if said else f"it ended with {how}"
        raise UserError(f"'{self.place}' cannot be prepared: {last}")


def _command(data: CorpusDataModule) -> list[str]:
    options = {
        "files": data.files,
        "tokenizer": data.store,
        "output": data.store,
        "column": data.column,
        "validation_share": data.validation_share,
        "encoding": data.encoding,
        "on_bad_document": data.on_bad_document,
        "max_bad_share": data.max_bad_share,
        "word_starts": data.word_starts,
    }
    words = {k: v if isinstance(v, str) else json.dumps(v) for k, v in options.items()}
    return ["prepare", *(word for k, v in words.items() for word in (f"--{k}", v))]


def check_growing(data: CorpusDataModule) -> None:
    """What cannot be followed while it grows.

    Raises:
        UserError: naming the setting.
    """
    if data.mixture is not None:
        raise UserError(
            "data.growing follows one store: leave data.mixture and data.replay out, or wait for "
            "`prepare`"
        )
    if data.layout == "sentence_pairs":
        raise UserError(
            "data.growing: layout sentence_pairs draws from the whole store: wait for `prepare`"
        )
    if is_url(data.store):
        raise UserError(
            f"data.growing follows a directory, data.store '{data.store}' is a URL: copy a "
            "finished store there"
        )


def begin(data: CorpusDataModule) -> None:
    """Start the preparation of `data.files`, if nobody is at it, and wait for the first window.

    Raises:
        UserError: what was begun there is something else, or nothing is, and there are no files.
    """
    plan = read_plan(data.store)
    if plan is not None:
        compare_tokenizer(data.store, plan["tokenizer"], data.tokenizer)
        if data.files:
            compare_plan(data, plan)
    elif not data.files and not Path(data.store).is_dir():
        raise UserError(
            f"no token store at '{data.store}', nor one that grows: start `prepare` first, or give "
            "data.files"
        )
    if data.files and is_being_prepared(data.store) is False:
        other = {k: v for k, v in (plan or {}).items() if k in OURS and OURS[k] != v}
        if other:
            said = ", ".join(shown_change(k, v, OURS[k]) for k, v in other.items())
            raise UserError(
                f"token store '{data.store}' was begun by a `prepare` with settings of its own "
                f"({said}): run that one again, and leave data.files out"
            )
        data.growing_store.preparation = Preparation(data)
    _ = data.growing_store.first
