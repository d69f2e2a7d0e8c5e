"""The families we read and write, and which of them a model belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ptft_lightning.backbones.transformer import Transformer
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.errors import UserError
from ptft_lightning.interop.decoders import Gpt2, Llama, Qwen2, Qwen3
from ptft_lightning.interop.electra import Electra
from ptft_lightning.interop.encoders import Bert, Roberta
from ptft_lightning.interop.family import Family
from ptft_lightning.interop.modernbert import ModernBert
from ptft_lightning.interop.settings import Settings
from ptft_lightning.objectives.base import Objective
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.objectives.replaced import ALONE, ReplacedTokens, build_detector
from ptft_lightning.objectives.sentence_pairs import NextSentence, SentenceOrder
from ptft_lightning.objectives.span_corruption import SpanCorruption
from ptft_lightning.tasks.base import Task
from ptft_lightning.tasks.classification import Classification
from ptft_lightning.tasks.question_answering import ExtractiveQA
from ptft_lightning.tasks.tagging import Tagging

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (ModernBert(), Bert(), Roberta(), Electra(), Gpt2(), Llama(), Qwen2(), Qwen3())
}
OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind for kind in (CausalLM, MaskedLM, NextSentence, SentenceOrder, SpanCorruption)
}
TASKS: dict[str, type[Task]] = {t.name: t for t in (Classification, Tagging, ExtractiveQA)}

# Settings of a task that config.json has no place for: a folder that is read leaves them open.
UNTOLD = {
    Tagging.name: ("pooling", "presplit"),
    ExtractiveQA.name: ("unanswerable", "threshold"),
}


def build_parts(config: Mapping[str, Any]) -> nn.ModuleDict:
    """`backbone` and, if there is one, `head` of a bundle's config; tensor names are its keys."""
    shape, head = config["backbone"], config["head"]
    transformer = TransformerConfig(**shape["config"])
    backbone = Transformer(transformer, shape["vocab_size"])
    parts = nn.ModuleDict({"backbone": backbone})
    if head["name"] in OBJECTIVES:
        parts["head"] = _objective(head).build_head(backbone, transformer.tie_embeddings)
    elif (task := TASKS.get(head["name"])) is not None:
        parts["head"] = task.of(head["config"]).build_head(backbone, head["labels"])
    elif head["name"] == ALONE:
        parts["head"] = build_detector(backbone, transformer.tie_embeddings)
    return parts


def read_task(name: str, family: Family, theirs: Settings, labels: list[str]) -> dict[str, Any]:
    """A task's head, as a bundle's config has it; what is untold is left to the user."""
    config = family.read_classification(theirs)
    if name == Tagging.name:
        config = Tagging(dropout=config["dropout"]).config()
    if name == ExtractiveQA.name:
        config, labels = ExtractiveQA().config(), []
    told = {key: value for key, value in config.items() if key not in UNTOLD.get(name, ())}
    return {"name": name, "config": told, "labels": labels}


def origin_of(lineage: Mapping[str, Any]) -> str | None:
    """The family that a model, or the first of those it was made from, was read from."""
    if read := lineage.get("huggingface"):
        return str(read["model_type"])
    return next(filter(None, map(origin_of, lineage.get("parents", []))), None)


def _objective(head: Mapping[str, Any]) -> Objective:
    return OBJECTIVES[head["name"]](**head["config"])


def find_family(
    config: Mapping[str, Any], pad: int, asked: str | None, origin: str | None = None
) -> Family:
    """The family that computes what a bundle's config computes.

    Args:
        config: a bundle's config.json.
        pad: the tokenizer's padding id.
        asked: a family's name, None to take the first that fits.
        origin: the family that the model was read from, which goes before the others.

    Raises:
        UserError: none does; names the settings that stand in the way of the nearest one.
    """
    if asked is not None and asked not in FAMILIES:
        raise UserError(f"--family is '{asked}': choose from {', '.join(FAMILIES)}")
    if config["backbone"]["kind"] != "transformer":
        raise UserError(
            f"a {config['backbone']['kind']} has no counterpart in Hugging Face's library: only "
            "a transformer can be exported"
        )
    ordered = sorted(FAMILIES.values(), key=lambda family: family.name != origin)
    candidates = [FAMILIES[asked]] if asked is not None else ordered
    found = {family.name: _obstacles(family, config, pad) for family in candidates}
    best = min(found, key=lambda name: len(found[name]))  # the first of equals
    if found[best]:
        nearest = "" if asked is not None else "no family is the same; the nearest is "
        raise UserError(f"{nearest}{best}, but {'; '.join(found[best])}")
    return FAMILIES[best]


def _obstacles(family: Family, config: Mapping[str, Any], pad: int) -> list[str]:
    """What the family cannot express, each with the value that would do."""
    shape, head = config["backbone"], config["head"]
    transformer = TransformerConfig(**shape["config"])
    lost = family.obstacles(transformer)
    lines = [
        f"backbone.{name} is {mine!r} and would have to be {theirs!r}"
        for name, (mine, theirs) in lost.items()
    ]
    kinds = dict.fromkeys(map(_kind, family.heads.values()))
    if _kind(head["name"]) not in kinds:
        choices = " or ".join(kind for kind in kinds if kind)
        lines.append(f"the head is '{head['name']}' and would have to be {choices}")
    elif head["name"] in OBJECTIVES and _objective(head).token_term is None:
        lines.append("objective.rate is null and would have to be a share of tokens to predict")
    elif head["name"] == Classification.name:
        lines += _task_obstacles(family, task_settings(config))
    elif head["name"] == Tagging.name:
        lines += _tagging_obstacles(head["config"], transformer.causal)
    if config.get("reads"):
        lines.append(f"it reads {config['reads']} and would have to read plainly")
    if family.name == "roberta" and transformer.position_start != pad + 1:
        lines.append(
            f"backbone.position_start is {transformer.position_start} and would have to be "
            f"{pad + 1}, behind the tokenizer's padding id"
        )
    return lines


def _tagging_obstacles(task: Mapping[str, Any], causal: bool) -> list[str]:
    lines = ["task.crf is True and would have to be False"] if task["crf"] else []
    usual, pooling = "last" if causal else "first", task.get("pooling", "auto")
    if pooling not in ("auto", usual):
        lines.append(f"task.pooling is '{pooling}' and would have to be '{usual}'")
    return lines


def _kind(head: str | None) -> str | None:
    """A head's name to its user, to whom one without its generator is no other."""
    return ReplacedTokens.name if head == ALONE else head


def task_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a classification, its pooling the one that `auto` came to."""
    with torch.device("meta"):
        head: Any = build_parts(config)["head"]
    return {**Classification(**config["head"]["config"]).config(), "pooling": head.pooling}


def _task_obstacles(family: Family, task: Mapping[str, Any]) -> list[str]:
    content = family.write_classification(task)
    back = family.read_classification(Settings("config.json", content, family.defaults))
    # Dropout has no part in what a trained model computes.
    return [
        f"task.{key} is {task[key]!r} and would have to be {value!r}"
        for key, value in back.items()
        if key != "dropout" and task[key] != value
    ]
