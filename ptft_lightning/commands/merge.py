"""`merge`: a bundle that needs no base, its low-rank adapters folded into the weights."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ptft_lightning.commands.tool import run_tool
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import write_bundle
from ptft_lightning.handoff.lineage import model_card
from ptft_lightning.interop.adapters import plain
from ptft_lightning.interop.open import open_model
from ptft_lightning.progress import ByteProgress


def merge(init_from: str, output: str, base: str | None = None, overwrite: bool = False) -> None:
    """Write a bundle whole: the tensors of its base in it, low-rank adapters folded in.

    It computes what the bundle with its base computes, but for adapters that were trained beside
    4-bit weights: they are folded into the weights as they were before. What a tuning trained
    outside the backbone's weights, such as a prefix, stays as it is.

    Args:
        init_from: A bundle, run directory or checkpoint, or a folder of peft's.
        output: Directory of the new bundle.
        base: Where the base of init_from is, if it was moved.
        overwrite: Replace an earlier bundle in `output`.
    """
    target = Path(output)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        if not overwrite:
            raise UserError(
                f"--output '{output}' is there already: name another or give --overwrite"
            )
        if not (target / "lineage.json").is_file():
            raise UserError(f"--output '{output}' is no earlier bundle: name another directory")
    bundle = plain(open_model(init_from, base))
    if target.resolve() in (Path(init_from).resolve(), Path(bundle.path).resolve()):
        raise UserError(f"--output '{output}' is --init_from: name another directory")
    config = {key: value for key, value in bundle.config.items() if key not in ("base", "format")}
    tensors: dict[str, Tensor] = {}
    with ByteProgress("merge", 4 * int(bundle.lineage.get("parameters", 0))) as progress:
        for name in bundle.names():
            tensors[name] = bundle.tensor(name)
            progress.advance(tensors[name].nbytes)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    lineage = {**bundle.lineage, "parameters": parameters, "merged_from": bundle.hash}
    card = model_card(config, lineage) if "steps" in lineage else f"# Merged {bundle.hash}\n"
    write_bundle(target, config, bundle.tokenizer, tensors, lineage, card)
    print(f"{target}: {len(tensors)} tensors, needs no base")


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, merge, args, positional=False)
