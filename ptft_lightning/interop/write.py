"""A bundle as a folder in Hugging Face's layout; needs nothing of theirs to write it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import Bundle
from ptft_lightning.interop.families import build_parts, task_settings
from ptft_lightning.interop.family import Family
from ptft_lightning.interop.tensor_files import INDEX, SINGLE
from ptft_lightning.interop.tokenizer_files import special_ids, tokenizer_files
from ptft_lightning.progress import ByteProgress
from ptft_lightning.tasks.classification import Classification
from ptft_lightning.tasks.question_answering import ExtractiveQA

IDS = ("pad", "bos", "eos", "cls", "sep")  # of special tokens, those a config.json names


def write_folder(bundle: Bundle, family: Family, folder: Path, shard_bytes: int) -> None:
    """Write config.json, tensors, tokenizer files and, for a generator, generation_config.json.

    Raises:
        UserError: the tokenizer and the model do not go together.
    """
    folder.mkdir(parents=True)
    causal = bool(bundle.config["backbone"]["config"]["causal"])
    dtype = _write_tensors(bundle, family, folder, shard_bytes)
    config = _config(bundle, family) | {"dtype": dtype}
    files = {"config.json": _json(config)}
    if bundle.config["head"]["name"] == "causal":
        ids = ("pad_token_id", "bos_token_id", "eos_token_id")
        files["generation_config.json"] = _json({k: config[k] for k in ids if k in config})
    shape = TransformerConfig(**bundle.config["backbone"]["config"])
    tuned, types = bundle.config["phase"] == "finetune", shape.token_types > 1
    theirs = "huggingface" in bundle.lineage
    given = causal, tuned, theirs, shape.max_length, types
    files |= tokenizer_files(bundle.tokenizer, *given)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _config(bundle: Bundle, family: Family) -> dict[str, Any]:
    shape, head = bundle.config["backbone"], bundle.config["head"]
    tokenizer, transformer = bundle.tokenizer, TransformerConfig(**shape["config"])
    if tokenizer.size > shape["vocab_size"]:
        raise UserError(
            f"the tokenizer of '{bundle.path}' has ids up to {tokenizer.size - 1}, its embedding "
            f"{shape['vocab_size']} rows: one of them is of another model"
        )
    if head["name"] == ExtractiveQA.name and tokenizer.end is None:
        raise UserError(
            f"the tokenizer of '{bundle.path}' has no end token to stand between question and "
            "context, which others' programs put there: train with a tokenizer that has one"
        )
    ids = special_ids(tokenizer, transformer.causal)
    config = {
        "architectures": [family.architecture(head["name"])],
        "model_type": family.name,
        "vocab_size": shape["vocab_size"],
        **{f"{part}_token_id": i for part, i in ids.items() if part in IDS},
        **family.write(transformer),
    }
    if not head.get("labels"):
        return config
    classifies = head["name"] == Classification.name
    if classifies and transformer.causal and tokenizer.pad == tokenizer.end:
        raise UserError(
            f"the padding token of '{bundle.path}' is also its end token, and {family.name} "
            "classifies by the last token that is no padding: train with a tokenizer that has both"
        )
    labels = dict(enumerate(head["labels"]))
    task = task_settings(bundle.config) if classifies else head["config"]
    return {
        **config,
        **family.write_classification(task),
        "id2label": {str(i): label for i, label in labels.items()},
        "label2id": {label: i for i, label in labels.items()},
        **({"problem_type": "single_label_classification"} if classifies else {}),
    }


def their_tensors(bundle: Bundle, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Their tensors, one of ours at a time; what we had no use for passes through."""
    shape, head = bundle.config["backbone"], bundle.config["head"]["name"]
    transformer = TransformerConfig(**shape["config"])
    prefix = "" if head is None else family.prefix
    with torch.device("meta"):
        ours = build_parts(bundle.config).state_dict()
    for name in bundle.names():
        if name in ours:
            named = family.sources(name, head, transformer.tie_embeddings, prefix)
            yield from family.split(bundle.tensor(name), named, transformer).items()
        else:
            yield name, bundle.tensor(name)


def _write_tensors(bundle: Bundle, family: Family, folder: Path, shard_bytes: int) -> str:
    """Write shards of at most `shard_bytes`, an index if they are several; the dtype of most."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    sizes: dict[torch.dtype, int] = {}
    names = bundle.names()
    with torch.device("meta"):
        numbers = sum(t.numel() for t in build_parts(bundle.config).state_dict().values())

    def flush() -> None:
        save_file(held, str(folder / _part(len(shards))), metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    with ByteProgress("export", numbers * bundle.tensor(names[0]).element_size()) as progress:
        for name, tensor in their_tensors(bundle, family):
            if held and sum(map(_bytes, held.values())) + _bytes(tensor) > shard_bytes:
                flush()
            held[name] = tensor
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + _bytes(tensor)
            progress.advance(_bytes(tensor))
        flush()
    _name_shards(folder, shards, sum(sizes.values()))
    return str(max(sizes, key=sizes.__getitem__)).removeprefix("torch.")


def _name_shards(folder: Path, shards: list[list[str]], total: int) -> None:
    """Their number is known at the end."""
    if len(shards) == 1:
        (folder / _part(0)).rename(folder / SINGLE)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / _part(number)).rename(folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(_json(index), encoding="utf-8")


def _part(number: int) -> str:
    return f"part-{number}.safetensors"


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
