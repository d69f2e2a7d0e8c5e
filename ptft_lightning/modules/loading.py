"""A model of phase one ready for use, without a trainer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import Bundle
from ptft_lightning.interop.adapters import plain
from ptft_lightning.interop.open import open_model
from ptft_lightning.modules.nets import PretrainNet, build_backbone, fill
from ptft_lightning.objectives.base import Objective
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.objectives.sentence_pairs import NextSentence, SentenceOrder
from ptft_lightning.objectives.span_corruption import SpanCorruption

Precision = Literal["32-true", "bf16-true", "16-true"]
DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16}
OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind for kind in (CausalLM, MaskedLM, NextSentence, SentenceOrder, SpanCorruption)
}


def load_pretrained(
    init_from: str, device: str = "auto", precision: Precision = "32-true"
) -> tuple[PretrainNet, Bundle]:
    """The net of a bundle, run, checkpoint or Hugging Face folder on a device, in evaluation mode.

    Raises:
        UserError: of phase two, no such device, or tensors that do not fit.
    """
    place, bundle = _device(device), plain(open_model(init_from))
    head = bundle.config["head"]
    if bundle.config["phase"] == "pretrain" and head["name"] not in (None, *OBJECTIVES):
        raise UserError(
            f"the bundle '{bundle.path}' learnt '{head['name']}', which predicts no tokens one "
            f"after another or at masks: give one of {' or '.join(OBJECTIVES)}"
        )
    if bundle.config["phase"] != "pretrain" or head["name"] not in OBJECTIVES:
        raise UserError(
            f"init_from '{bundle.path}' is a {bundle.config['phase']} bundle ('{head['name']}'): "
            f"give one of phase one ({' or '.join(OBJECTIVES)}), which knows the vocabulary"
        )
    shape, names = bundle.config["backbone"], set(bundle.names())

    def stored(name: str) -> Tensor:
        if name not in names:
            raise UserError(f"the bundle '{bundle.path}' has no tensor '{name}'")
        names.remove(name)
        return bundle.tensor(name)

    with torch.device("meta"):
        backbone = build_backbone(**shape, tokenizer=bundle.tokenizer)
        objective = OBJECTIVES[head["name"]](**head["config"])
        if objective.token_term is None:
            raise UserError(
                f"the bundle '{bundle.path}' learnt '{head['name']}' alone and predicts no tokens: "
                "give one of an objective with a rate"
            )
        built = objective.build_head(backbone, shape["config"]["tie_embeddings"])
        net = PretrainNet(backbone, built).to(DTYPES[precision])
    fill(net, place, stored, seed=0)
    if names:
        raise UserError(
            f"the bundle '{bundle.path}' has tensors its config has no place for: "
            f"{', '.join(sorted(names))}"
        )
    net.eval().requires_grad_(False)
    return net, bundle


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, not there, or not built in
        reason = str(error).splitlines()[0]
        raise UserError(f"--device is '{name}': {reason}; try auto or cpu") from error
    return device
