"""Low-rank adapters in the layout of Hugging Face's peft, written; peft_folder.py reads them.

peft has a pair of matrices for each of a model's layers. Ours has one for each part of a fused
layer, so that queries, keys and values kept apart (BERT, Llama) are the same in both. Where a
family fuses them (GPT-2, ModernBERT), the parts are one pair of as many times the rank, block by
block.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import Bundle
from ptft_lightning.interop.adapters import AdapterBundle, MergedBundle
from ptft_lightning.interop.family import Family
from ptft_lightning.tuning.lora import ADDED, LoRA, Parts

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."
SIDES = (".lora_A.weight", ".lora_B.weight")
KINDS = {
    **{"classification": "SEQ_CLS", "tagging": "TOKEN_CLS", "question_answering": "QUESTION_ANS"},
    "causal": "CAUSAL_LM",
}
Pair = tuple[Tensor, Tensor]  # (rank, inputs), (outputs, rank)


def write_peft(bundle: Bundle, family: Family, folder: Path) -> None:
    """Write a bundle's adapters and head; `folder` must not exist.

    Raises:
        UserError: it has no low-rank adapters.
    """
    if bundle.config.get("tuning", {}).get("name") != LoRA.name:
        raise UserError(
            f"'{bundle.path}' has no low-rank adapters, which alone are written for peft: tune "
            "with LoRA, or give --format huggingface"
        )
    shape, head = bundle.config["backbone"], bundle.config["head"]["name"]
    tied = bool(shape["config"]["tie_embeddings"])
    merged = MergedBundle(bundle)
    tensors: dict[str, Tensor] = {}
    wide: dict[str, int] = {}
    for name, parts in merged.parts.items():
        named = family.sources(f"{name}.weight", head, tied, family.prefix)
        a, b = (bundle.tensor(name + added) for added in ADDED)
        for theirs, pair in _their_pairs(a, b, parts, merged.lora.rank, named):
            module = theirs.removesuffix(".weight")
            tensors |= {ROOT + module + side: t for side, t in zip(SIDES, pair, strict=True)}
            if (rank := len(pair[0])) != merged.lora.rank:
                wide[module] = rank
    modules = [n.removeprefix(ROOT).removesuffix(SIDES[0]) for n in tensors if n.endswith(SIDES[0])]
    heads = {
        theirs: bundle.tensor(name)
        for name in bundle.names()
        if name.startswith("head.")
        for theirs in family.sources(name, head, tied, family.prefix)
    }
    tensors |= {ROOT + name: tensor for name, tensor in heads.items()}
    folder.mkdir(parents=True)
    owned = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(owned, str(folder / TENSORS), metadata={"format": "pt"})
    saved = dict.fromkeys(n.removeprefix(family.prefix).partition(".")[0] for n in heads)
    config = _peft_config(merged.lora, modules, wide) | {
        "task_type": KINDS.get(head),
        "base_model_name_or_path": _base_place(bundle),
        "fan_in_fan_out": bool(family.turned),
        "modules_to_save": list(saved) or None,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _their_pairs(
    a: Tensor, b: Tensor, parts: Parts, rank: int, names: tuple[str, ...]
) -> Iterator[tuple[str, Pair]]:
    """Their pairs of a layer of ours: one for each part, or the parts block by block in one."""
    above = iter(torch.split(a, rank))
    below = iter(torch.split(b, [rows for rows, chosen in parts if chosen]))
    if len(names) == len(parts):
        for theirs, (_, chosen) in zip(names, parts, strict=True):
            if chosen:
                yield theirs, (next(above), next(below))
        return
    whole, row, column = b.new_zeros(sum(rows for rows, _ in parts), len(a)), 0, 0
    for rows, chosen in parts:
        if chosen:
            whole[row : row + rows, column : column + rank] = next(below)
            column += rank
        row += rows
    yield names[0], (a, whole)


def _peft_config(lora: LoRA, modules: list[str], wide: Mapping[str, int]) -> dict[str, Any]:
    """Their scale is alpha / rank for each module."""
    return {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.scale * lora.rank,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "target_modules": modules,
        "rank_pattern": {re.escape(module): rank for module, rank in wide.items()},
        "alpha_pattern": {re.escape(module): lora.scale * rank for module, rank in wide.items()},
        "inference_mode": True,
    }


def base_of(bundle: Bundle) -> Bundle:
    """What lies under all adapters."""
    while isinstance(bundle, AdapterBundle):
        bundle = bundle.base
    return bundle


def _base_place(bundle: Bundle) -> str | None:
    """The folder or hub id of the model below, if it is in their layout."""
    from ptft_lightning.interop.open import HuggingFaceBundle

    base = base_of(bundle)
    if not isinstance(base, HuggingFaceBundle):
        return None
    return str(Path(base.path).resolve()) if Path(base.path).exists() else base.path
