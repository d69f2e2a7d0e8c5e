"""The nets: backbone, tuning and head behind one `forward(batch)`; the only sharding roots."""

from __future__ import annotations

from collections.abc import Callable, Container
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ptft_lightning.backbones.base import Backbone, initial_value
from ptft_lightning.backbones.config import BackboneConfig
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.objectives.base import PretrainHead
from ptft_lightning.tasks.base import TaskHead
from ptft_lightning.terms import Output
from ptft_lightning.tuning.base import Reader

# Kind -> file and class in `backbones/`; all but the Transformer are leaves.
BACKBONES = {
    "transformer": ("transformer", "Transformer"),
    "linformer": ("linformer", "Linformer"),
    "lstm": ("lstm", "LSTM"),
    "reformer": ("reformer", "Reformer"),
}


def as_number(value: Tensor | None) -> float:
    """A scalar, perhaps spread over ranks, which must all ask; 0 for none."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return 0.0 if whole is None else float(whole)


class Net(nn.Module):
    """A backbone and a head. No parameter of a phase lives outside its net."""

    backbone: Backbone

    def train(self, mode: bool = True) -> Net:
        """A frozen backbone gives the same features in training: no dropout."""
        super().train(mode)
        if not any(p.requires_grad for p in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def lend(self, use: Callable[[Backbone], Tensor]) -> Tensor:
        """Use the backbone outside a step; a sharded one is gathered for it, on all ranks."""
        return use(self.backbone)

    def hidden(self, batch: Batch) -> Tensor:
        """(B, T, dim) hidden states of a batch."""
        out: Tensor = self.backbone(batch.tokens, batch.documents, batch.positions, batch.segments)
        return out


class PretrainNet(Net):
    """Phase one: a backbone under an objective's head."""

    def __init__(self, backbone: Backbone, head: PretrainHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, batch: Batch) -> Output:
        """Batch -> loss terms."""
        batch = self.head.reads(batch, self.backbone)
        out: Output = self.head(self.hidden(batch), batch, self.backbone.embedding.weight)
        return out


class TaskNet(Net):
    """Phase two: a backbone, as a tuning reads with it, under a task's head."""

    def __init__(self, backbone: Backbone, head: TaskHead, reader: Reader | None = None) -> None:
        super().__init__()
        self.backbone, self.reader, self.head = backbone, reader, head

    def hidden(self, batch: Batch) -> Tensor:
        """(B, T, dim) hidden states of a batch, as head and tuning read it."""
        batch = self.head.reads(batch, self.backbone)
        if self.reader is None:
            return super().hidden(batch)
        out: Tensor = self.reader(self.backbone, batch)
        return out

    def forward(self, batch: Batch) -> Output:
        """Batch -> loss terms and scores."""
        out: Output = self.head(self.hidden(batch), batch)
        return out


def build_backbone(
    kind: str, config: dict[str, Any], vocab_size: int, tokenizer: Tokenizer | None = None
) -> Backbone:
    """A backbone from the plain values of a bundle; see `find_backbone`. One that is to read tokens
    needs the tokenizer."""
    model, shape = find_backbone(kind, config)
    backbone: Backbone = model(shape, vocab_size)
    if tokenizer is not None:
        backbone.spell(tokenizer)
    return backbone


def find_backbone(kind: str, config: dict[str, Any]) -> tuple[Any, BackboneConfig]:
    """A backbone's class and shape from the plain values of a bundle; kinds are our own classes.

    Raises:
        UserError: an unknown kind or setting, as in a bundle of a later version.
    """
    if kind not in BACKBONES:
        raise UserError(f"backbone kind '{kind}' is unknown: choose from {', '.join(BACKBONES)}")
    file, name = BACKBONES[kind]
    model: Any = getattr(import_module(f"ptft_lightning.backbones.{file}"), name)
    try:
        return model, model.config_class(**config)
    except TypeError as error:
        raise UserError(f"the bundle's backbone cannot be built: {error}") from error


def refused(module: Any, shape: dict[str, Any], trainer: Any) -> list[str]:
    """What a phase's module asks of a backbone of this shape that it cannot do, with reasons."""
    _, config = find_backbone(shape["kind"], shape["config"])
    options = ("compile_layers", "activation_checkpointing")
    asked = [f"model.{name}" for name in options if getattr(module, name)]
    asked += [f"model.tuning {module.tuning.name}"]
    asked += [] if trainer is None else [f"trainer.precision {trainer.precision}"]
    return [f"{word}: {why}" for word, why in config.refusals().items() if word in asked]


def fill(
    net: Net, device: torch.device, stored: Callable[[str], Tensor | None], seed: int
) -> list[str]:
    """Give every parameter of a net built on the meta device its value, one tensor at a time.

    `stored(name)` is the value from a bundle, or None for a new one. Sharded parameters keep
    their own part, so that no rank ever holds the whole model.

    Returns:
        The names of the parameters that are new.

    Raises:
        UserError: a stored value has another shape.
    """
    net.to_empty(device=device)
    new, shapes = [], {name: parameter.shape for name, parameter in net.named_parameters()}
    reader: Reader | None = getattr(net, "reader", None)

    def value_of(name: str) -> Tensor:
        found = stored(name)
        if found is not None:
            return found
        return initial_value(name, shapes[name], len(net.backbone.layers), seed)

    with torch.no_grad():
        for name, parameter in net.named_parameters():
            value = stored(name)
            if value is None:
                new.append(name)
                value = reader.initial(name, value_of, seed) if reader else value_of(name)
            if value.shape != parameter.shape:
                raise UserError(
                    f"tensor '{name}' has shape {tuple(value.shape)} in the bundle, the model "
                    f"needs {tuple(parameter.shape)}"
                )
            value = value.to(device=device, dtype=parameter.dtype)
            if isinstance(parameter, DTensor):
                # Every rank has the same value: no communication is needed.
                value = distribute_tensor(
                    value, parameter.device_mesh, parameter.placements, src_data_rank=None
                )
            parameter.copy_(value)
    return new


def shard(net: Net, mesh: Any) -> None:
    """FSDP2: one wrap per layer, the net as the root (Zhao et al. 2023)."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for layer in net.backbone.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    register_fsdp_forward_method(net, "lend")


def whole_state(net: Net, but: Container[str] = ()) -> dict[str, Tensor]:
    """Every tensor of the net under its plain name, on the CPU; all ranks must call it. Those that
    `but` names are left out.

    Sharded tensors are gathered one at a time; only rank 0's result is meant to be used.
    """
    state = {}
    for name, tensor in net.state_dict().items():
        if name in but:
            continue
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        state[name] = whole.detach().cpu()
    return state
