"""`export`: a bundle as a folder that other programs read."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.commands.tool import run_tool
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import Bundle, replace_directory
from ptft_lightning.interop.adapters import plain
from ptft_lightning.interop.compare import compare_with_transformers
from ptft_lightning.interop.families import UNTOLD, find_family, origin_of
from ptft_lightning.interop.open import open_model
from ptft_lightning.interop.part_bundle import PartBundle
from ptft_lightning.interop.peft import CONFIG, base_of, write_peft
from ptft_lightning.interop.sentence_folder import MODULES, POOLING, READING, write_modules
from ptft_lightning.interop.tensor_files import INDEX
from ptft_lightning.interop.write import write_folder
from ptft_lightning.objectives.replaced import ALONE, GENERATOR_PARTS, ReplacedTokens
from ptft_lightning.tasks.matching import Matching

GB = 10**9
WRITTEN = {
    *("config.json", "generation_config.json", INDEX, CONFIG),
    *("model.onnx", "model.onnx.data"),
    *(MODULES, POOLING, READING),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
}


def export(
    init_from: str,
    output: str,
    format: Literal["huggingface", "peft", "onnx"] = "huggingface",
    family: str | None = None,
    shard_gb: float = 5.0,
    base: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a bundle in Hugging Face's layout, which transformers and many others read, or as an
    ONNX graph.

    Only what such a model computes exactly is written. Where transformers is installed it reads
    the folder back (onnxruntime a graph), and one whose logits or token ids differ is not kept.

    Args:
        init_from: A bundle, run directory, checkpoint or Hugging Face folder.
        output: Directory to write.
        format: The layout: a model, low-rank adapters folded in; peft's of those adapters alone;
            or a graph (extra `onnx`) with its tokenizer and labels, batch and length open.
        family: Model type such as bert, gpt2 or llama; default: that of init_from where it is a
            Hugging Face folder, else the first that fits.
        shard_gb: Gigabytes of a file of tensors; larger models are written as several.
        base: Where the base of init_from is, if that holds only what was trained and its base was
            moved.
        overwrite: Replace an earlier export in `output`.
    """
    if shard_gb <= 0:
        raise UserError(f"--shard_gb is {shard_gb}: give a positive number")
    if format == "onnx" and family is not None:
        raise UserError(f"--family is '{family}': a graph is of no family, leave it out")
    target = Path(output).resolve()
    _check_place(target, overwrite)
    if target == Path(init_from).resolve():
        raise UserError(f"--output '{output}' is --init_from: name another directory")
    opened = open_model(init_from, base)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if format == "onnx":
            from ptft_lightning.interop.onnx import write_onnx

            said = write_onnx(plain(opened), temporary)
        else:
            said = _write_theirs(opened, temporary, format == "peft", family, shard_gb)
        replace_directory(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _tell_left_out(opened.config, graph=format == "onnx")
    print(f"{target}: {said}")


def _write_theirs(
    opened: Bundle, folder: Path, peft: bool, asked: str | None, shard_gb: float
) -> str:
    """Hugging Face's layout, or peft's; what was written and how it was checked, in words."""
    bundle = plain(opened)
    encodes = bundle.config["head"]["name"] == Matching.name and not peft
    if encodes:
        bundle = PartBundle(bundle, None, ("head.",))
    if peft:
        asked = _family_below(opened, asked)
    family = find_family(bundle.config, bundle.tokenizer.pad, asked, origin_of(opened.lineage))
    shape = TransformerConfig(**bundle.config["backbone"]["config"])
    if lost := family.lost_dropout(shape):
        named = " and ".join(f"backbone.{name}" for name in lost)
        print(f"{family.name} has no {named}: left out", file=sys.stderr)
    if bundle.config["head"]["name"] == ReplacedTokens.name:
        print(f"{family.name} has no generator beside the detector: left out", file=sys.stderr)
        bundle = PartBundle(bundle, ALONE, tuple(f"head.{part}." for part in GENERATOR_PARTS))
    if peft:
        write_peft(opened, family, folder)
        checked = "its adapters and head; load them onto their base with peft's PeftModel"
    else:
        write_folder(bundle, family, folder, int(shard_gb * GB))
        checked = _check(bundle, folder)
        if encodes:
            write_modules(folder, opened.config)
            checked = f"for sentence-transformers, {checked}"
    return f"{family.architecture(bundle.config['head']['name'])}, {checked}"


def _family_below(opened: Bundle, asked: str | None) -> str | None:
    """Adapters have the names of the model they are for."""
    below = getattr(base_of(opened), "family", None)
    if below is not None and asked not in (None, below.name):
        raise UserError(f"--family is '{asked}', and the adapters are for a {below.name}: leave it")
    return asked if below is None else str(below.name)


def _tell_left_out(config: dict[str, Any], graph: bool) -> None:
    """What a bundle's head has and its folder neither computes nor says; a graph's says more."""
    head, lines = config["head"], list[str]()
    if not graph:
        lines += [f"{name} {value:.4g}" for name, value in config.get("found", {}).items()]
        untold = UNTOLD.get(head["name"], ())
        known = {key: head["config"].get(key) for key in untold}
        lines += [f"task.{key} true" for key, value in known.items() if value is True]
        lines += [f"task.{key} {v:.4g}" for key, v in known.items() if isinstance(v, float)]
    if head["name"] == Matching.name and head["labels"]:
        lines.append(f"the layer that chooses between {', '.join(head['labels'])}")
    if lines:
        print(f"not in the folder: {'; '.join(lines)}", file=sys.stderr)


def _check_place(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise UserError(f"--output '{target}' is there already: name another or give --overwrite")
    if not target.is_dir() or not _is_export(target):
        raise UserError(f"--output '{target}' is no earlier export: name another directory")


def _is_export(folder: Path) -> bool:
    """Whether a folder holds what an export writes and nothing else."""
    names = {path.name for path in folder.iterdir()}
    others = {name for name in names - WRITTEN if not name.endswith(".safetensors")}
    return bool(names & {"config.json", CONFIG}) and not others


def _check(bundle: Bundle, folder: Path) -> str:
    if find_spec("transformers") is None:
        return "not compared with transformers, which is not installed"
    difference = compare_with_transformers(bundle, folder)
    return f"as transformers computes it (largest difference of logits {difference:.2g})"


def run(command: str, args: list[str]) -> None:
    """The command line's way in."""
    run_tool(command, export, args, positional=False)
