"""`overlap`: which examples of a test set occur in a pretraining corpus; `test` asks it, too."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptft_lightning.commands.tool import run_tool
from ptft_lightning.data.examples import Columns, Example, read_examples
from ptft_lightning.data.manifest import has_manifest, read_manifest
from ptft_lightning.data.overlap import FLAGGED, SHORTEST, TOGETHER, Hit, N, Needles, record, scan
from ptft_lightning.data.token_store import TokenStore
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.files import write_atomically

if TYPE_CHECKING:
    from ptft_lightning.modules.finetune import FinetuneModule

SHOWN = 3  # hits that are told in words
LIMIT = 4 * 10**9  # bytes of text that `test` looks through by itself: some minutes
VERSION = 1  # of the rule; another one makes kept results void


def overlap(
    store: str,
    file: str,
    tokenizer: str,
    output: str = "overlap.jsonl",
    text: str = "text",
    pair: str | None = None,
    names: list[str] | None = None,
) -> None:
    """Find the examples of a file that occur in a token store, and write one line about each.

    Compared are runs of 8 words (in Chinese and other scripts without spaces: of 8 characters),
    without case, accents and punctuation. An example is flagged where such runs cover a quarter of
    it, and at least 10 words or all of it.

    Args:
        store: Directory or URL of the token store; its training documents are searched.
        file: The examples (.jsonl, .csv or .tsv, also .gz or .zst).
        tokenizer: What the store was made with: a tokenizer.json, or a bundle or run that has it.
        output: File with one JSON line per flagged example.
        text: The column of the text.
        pair: The column of a second text.
        names: Names of the columns of a .csv or .tsv file without a header.
    """
    from ptft_lightning.commands.extend import tokenizer_of

    examples = read_examples(file, Columns(text=text, pair=pair, names=names), labelled=False)
    loaded = tokenizer_of(tokenizer)
    if not reads(loaded, store):
        raise UserError(
            f"token store '{store}' was made with another tokenizer (fingerprint "
            f"{read_manifest(store).tokenizer}) than '{tokenizer}' ({loaded.fingerprint}): "
            "give the one it was made with"
        )
    needles = Needles([parts(e) for e in examples])
    opened = TokenStore(store, "train")
    scan(opened, loaded, needles)
    hits = needles.hits([s.name for s in opened.shards])
    lines = [record(h, examples[h.example].place, store, examples[h.example].said) for h in hits]
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    _write(Path(output), lines)
    for line in told(lines, len(examples), needles.unjudged, store):
        print(line, file=sys.stderr)
    summary = {"examples": len(examples), "contaminated": len(hits), "unjudged": needles.unjudged}
    print(json.dumps(summary | {"share": len(hits) / len(examples), "output": output}))


def parts(example: Example) -> list[str]:
    """The texts of an example."""
    return [example.text] if example.pair is None else [example.text, example.pair]


def reads(tokenizer: Tokenizer, store: str) -> bool:
    """Whether a tokenizer gives a store's text back: it made it, or extends the one that did."""
    return read_manifest(store).tokenizer in (tokenizer.fingerprint, tokenizer.extends)


def told(lines: list[dict[str, Any]], examples: int, unjudged: int, store: str) -> Iterator[str]:
    """What a person reads."""
    short = f"; {unjudged} too short to tell" if unjudged else ""
    yield (
        f"overlap: {len(lines)} of {examples} examples ({len(lines) / max(1, examples):.1%}) occur "
        f"in the training text '{store}'{short}"
    )
    for line in lines[:SHOWN]:
        yield (
            f"  {line['place']}: {line['covered']:.0%} in {line['shard']} document "
            f"{line['document']}: '{line['shared'][:80]}'"
        )


def _write(file: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomically(file, text.encode())


# Before a test score is shown.


def guard(model: FinetuneModule, run_dir: Path) -> dict[str, float]:
    """Look for a run's test examples in the text its model was pretrained on.

    What was found is told, written to `overlap.jsonl` beside the run and kept, so that testing
    again does not search again.

    Returns:
        `test_contaminated` and `test_contaminated_share` for the metrics; nothing where no
        pretraining text is here any more.
    """
    assert model.bundle is not None, "a test has a bundle"
    tokenizer = model.data.tokenizer
    stores = [store for store in _stores(model.bundle.lineage) if _usable(*store, tokenizer)]
    if not stores:
        return {}
    examples: list[Example] = model.data.examples["test"]  # type: ignore[attr-defined]
    texts = [parts(e) for e in examples]
    flagged: set[int] = set()
    written: list[dict[str, Any]] = []
    for path, _ in stores:
        hits, unjudged = _kept(run_dir / "overlap.json", path, texts, tokenizer)
        lines = [record(h, examples[h.example].place, path, examples[h.example].said) for h in hits]
        for line in told(lines, len(examples), unjudged, path):
            print(line, file=sys.stderr)
        flagged.update(h.example for h in hits)
        written += lines
    _write(run_dir / "overlap.jsonl", written)
    share = len(flagged) / max(1, len(examples))
    return {"test_contaminated": float(len(flagged)), "test_contaminated_share": share}


def _stores(lineage: dict[str, Any]) -> list[tuple[str, tuple[str | None, int]]]:
    """Path of every store in a bundle's ancestry; of a run's own its fingerprint, and the window
    that this is of where the store still grew."""
    found: dict[str, tuple[str | None, int]] = {}
    for parent in lineage.get("parents", []):
        places = parent.get("stores", [])
        window = parent.get("data", {}).get("window", 1)
        prints = [parent["data"]["store"]] if places else []
        prints += [p for p, _ in parent.get("data", {}).get("replay", [])]
        found |= {at: (p, window) for at, p in zip(places, prints, strict=True)}
        if not places and parent.get("phase") == "pretrain":
            said = "is not known" if "huggingface" in parent else "was not noted"
            print(
                f"overlap: where the text of a pretrained parent stands {said}: test examples are "
                "not compared with it",
                file=sys.stderr,
            )
        found |= dict(_stores(parent))
    return list(found.items())


def _usable(path: str, known: tuple[str | None, int], tokenizer: Tokenizer) -> bool:
    """Whether a store is still here and ours to read; otherwise one line says why not."""
    why, manifest = None, None
    try:
        manifest = read_manifest(path) if has_manifest(path) else None
    except UserError as error:  # a bucket that is out of reach
        why = f"cannot be read ({error})"
    if manifest is None:
        why = why or "is not here any more"
    elif known[0] not in (manifest.fingerprint, manifest.first_window(known[1]).fingerprint):
        why = "holds other text now"
    elif not reads(tokenizer, path):
        why = "was made with another tokenizer"
    elif (size := sum(s.text_bytes for s in manifest.train)) > LIMIT:
        why = f"holds {size / 1e9:.0f} GB (see `ptft_lightning overlap`)"
    if why is not None:
        print(
            f"overlap: the pretraining store '{path}' {why}: test examples are not compared with "
            "it",
            file=sys.stderr,
        )
    return why is None


def _kept(
    file: Path, path: str, texts: list[list[str]], tokenizer: Tokenizer
) -> tuple[list[Hit], int]:
    """The hits in a store, and how many texts are too short; from an earlier test if there was."""
    rule = [VERSION, N, SHORTEST, FLAGGED, TOGETHER, read_manifest(path).fingerprint, texts]
    key = hashlib.sha256(json.dumps(rule).encode()).hexdigest()[:16]
    kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if key in kept:
        return [Hit(**hit) for hit in kept[key]["hits"]], kept[key]["unjudged"]
    needles, store = Needles(texts), TokenStore(path, "train")
    scan(store, tokenizer, needles)
    hits = needles.hits([s.name for s in store.shards])
    entry = {"hits": [asdict(hit) for hit in hits], "unjudged": needles.unjudged}
    write_atomically(file, json.dumps(kept | {key: entry}, ensure_ascii=False).encode())
    return hits, needles.unjudged


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, overlap, args, positional=False)
