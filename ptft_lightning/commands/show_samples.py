"""`show-samples`: the text of samples of a run of phase one, by their numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser

from ptft_lightning.commands.parser import import_parts
from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.data.mixture import MixedRows, share_table
from ptft_lightning.data.rows import Rows
from ptft_lightning.data.sample_order import Segments
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import CHECKPOINT_KEY, open_bundle
from ptft_lightning.modules.checkpoints import last_checkpoint
from ptft_lightning.objectives.base import Objective

SHOWN = 64  # of a stretch


def show_samples(
    run_dir: str,
    samples: list[int] | None = None,
    first: int | None = None,
    after: int | None = None,
    skipped: bool = False,
    limit: int = SHOWN,
) -> None:
    """Print one JSON line a sample: its number, token store, shard and the texts in its row.

    Args:
        run_dir: The run.
        samples: Their numbers, as the audit names them.
        first: The first of a stretch of samples.
        after: The one after its last.
        skipped: Those that the run left out after loss spikes.
        limit: Of each stretch no more than so many, evenly spread.
    """
    if (first is None) != (after is None) or (first or 0) >= (1 if after is None else after):
        raise UserError(f"--first {first} --after {after}: give both, the second one larger")
    stretches = [] if first is None or after is None else [(first, after)]
    if skipped:
        stretches += _skips(Path(run_dir))
    if not stretches and not samples:
        raise UserError("which samples? give --samples [N, ...], --first and --after, or --skipped")
    if limit < 1:
        raise UserError(f"--limit is {limit}: give 1 or more")
    numbers = list(samples or [])
    for begin, end in stretches:
        numbers += np.unique(np.linspace(begin, end - 1, limit).astype(np.int64)).tolist()
    if wrong := [n for n in numbers if n < 0]:
        raise UserError(f"sample {wrong[0]}: samples are numbered from 0")
    rows, tokenizer = open_rows(Path(run_dir))
    for number in numbers:
        print(json.dumps(_show(rows, tokenizer, number), ensure_ascii=False))


def _skips(run_dir: Path) -> list[tuple[int, int]]:
    file = run_dir / "skips.json"
    if not file.is_file():
        raise UserError(f"'{run_dir}' left nothing out: it has no skips.json")
    return [tuple(skip["samples"]) for skip in json.loads(file.read_text())]


def open_rows(run_dir: Path) -> tuple[Rows, Tokenizer]:
    """The training rows of a run by sample number, as its last checkpoint or bundle knows them.

    Raises:
        UserError: there is no run of phase one, or it got to no checkpoint.
    """
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise UserError(f"no run in '{run_dir}': it has no config.yaml")
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    if config["data"]["class_path"].rpartition(".")[2] != "CorpusDataModule":
        raise UserError(f"'{run_dir}' is a run of phase two: its samples are its examples in order")
    data = _data_module(config["data"]["init_args"], config["model"]["init_args"]["objective"])
    data.tokenizer, segments = _state(run_dir)
    every = [data.rows_of(place, "train") for place in data.stores.values()]
    if data.mixture is None:
        return every[0], data.tokenizer
    mixed = MixedRows(every, [1.0] * len(every))
    mixed.share_out(share_table(segments))
    return mixed, data.tokenizer


def _data_module(options: dict[str, Any], objective: Any) -> CorpusDataModule:
    import_parts()  # objectives are named without their modules
    parser = ArgumentParser()
    parser.add_class_arguments(CorpusDataModule, "data")
    parser.add_subclass_arguments(Objective, "objective")
    made = parser.instantiate(parser.parse_object({"data": options, "objective": objective}))
    data: CorpusDataModule = made.data
    data.objective = made.objective
    return data


def _state(run_dir: Path) -> tuple[Tokenizer, Segments]:
    """Tokenizer and data state of a run."""
    found = last_checkpoint(run_dir / "checkpoints")
    if found is None:
        bundle = open_bundle(run_dir)
        if "segments" not in bundle.lineage:
            raise UserError(f"'{run_dir}' has no checkpoint, and its bundle tells no data state")
        return bundle.tokenizer, Segments.from_state(bundle.lineage["segments"], None)
    file = found / "meta.pt" if found.is_dir() else found
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=file is found)
    table = Segments.from_state(state["CorpusDataModule"]["segments"], None)
    return Tokenizer(state[CHECKPOINT_KEY]["tokenizer"]), table


def _show(rows: Rows, tokenizer: Tokenizer, number: int) -> dict[str, Any]:
    at = np.array([number])
    source, own = (rows, at)
    if isinstance(rows, MixedRows):
        which, own = rows.place(at)
        source = rows.sources[int(which[0])]
    shard, row = (int(part[0]) for part in source.order.place(own))
    tokens, documents = (part[0, :-1] for part in source.read(own))
    texts = [
        tokenizer.decode(tokens[documents == d].tolist()) for d in np.unique(documents) if d > 0
    ]
    place = {"store": source.store.place, "shard": shard, "row": row}
    return {"sample": number, **place, "texts": texts}


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, show_samples, args, positional=False)
