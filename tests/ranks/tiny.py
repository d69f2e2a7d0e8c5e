"""A run small enough for tests: data, module and trainer, for one process or several ranks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.distributed.tensor import DTensor

from ptft_lightning.backbones.transformer import Transformer, TransformerConfig
from ptft_lightning.commands.quiet import quieten
from ptft_lightning.commands.trainer_options import TRAINER_DEFAULTS
from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.data.task_data import TaskDataModule
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.handoff.bundle import write_bundle
from ptft_lightning.modules.finetune import FinetuneModule
from ptft_lightning.modules.nets import Net, PretrainNet, TaskNet
from ptft_lightning.modules.phase import PhaseModule
from ptft_lightning.modules.pretrain import PretrainModule
from ptft_lightning.objectives.base import Objective
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedLM
from ptft_lightning.tasks.classification import Classification

LENGTH = 32
SHAPE = {"dim": 32, "depth": 2, "heads": 4, "max_length": LENGTH, "positions": "learned"}
LABELS = ("left", "right", "up")
WORDS = (
    *("river", "stone", "bread", "letter", "house"),
    *("north", "winter", "music", "paper", "window"),
)


def write_examples(path: Path, count: int = 23) -> Path:
    """Labelled examples of various lengths; the first word tells the label, the length the
    number."""
    texts = [" ".join([LABELS[i % 3], *WORDS[: i % 7], WORDS[i % 10]]) for i in range(count)]
    lines = [
        {"text": text, "label": LABELS[i % 3], "number": len(text.split())}
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def corpus(store: Path, tokenizer: Path | None, **changes: Any) -> CorpusDataModule:
    path = None if tokenizer is None else str(tokenizer)
    given = {"layout": "documents", "length": LENGTH, "seed": 5, **changes}
    return CorpusDataModule(str(store), tokenizer=path, **given)


def examples(file: Path, tokenizer: Path | None, **changes: Any) -> TaskDataModule:
    path = None if tokenizer is None else str(tokenizer)
    given = {"validation_share": 0.0, "max_length": LENGTH, "seed": 5, **changes}
    return TaskDataModule(str(file), tokenizer=path, **given)


def pretrain(objective: Objective, **changes: Any) -> PretrainModule:
    shape = TransformerConfig(**SHAPE, causal=objective.causal, **changes.pop("shape", {}))
    given = {"backbone": shape, "seed": 3, **changes}
    return PretrainModule(objective, **given)


def finetune(**changes: Any) -> FinetuneModule:
    scratch = {"backbone": TransformerConfig(**SHAPE)} if "init_from" not in changes else {}
    given = {"task": Classification(dropout=0.0), "seed": 3, **scratch, **changes}
    return FinetuneModule(**given)


def bundle(directory: Path, tokenizer: Tokenizer, head: str = "masked", **shape: Any) -> Path:
    """A bundle with random weights: of phase one under a `head`, or tuned for "classification"."""
    config = TransformerConfig(**{**SHAPE, "causal": head == "causal", **shape})
    body = Transformer(config, tokenizer.size)
    net: Net
    if head == "classification":
        task = Classification(dropout=0.0)
        net = TaskNet(body, task.build_head(body, list(LABELS)))
        about = {"phase": "finetune", "head": {"name": head, "labels": list(LABELS)}}
        about["tuning"] = {"name": "full", "config": {}}
        about["head"]["config"] = task.config()
    else:
        objective: Objective = MaskedLM(0.3) if head == "masked" else CausalLM()
        net = PretrainNet(body, objective.build_head(body, config.tie_embeddings))
        about = {"phase": "pretrain", "head": {"name": head, "config": objective.config()}}
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(p.shape, generator=generator) * 0.1 for name, p in net.named_parameters()
    }
    backbone = {"kind": "transformer", "config": asdict(config), "vocab_size": tokenizer.size}
    write_bundle(directory, {**about, "backbone": backbone}, tokenizer, tensors, {}, "# A card\n")
    return directory


def fit(
    module: PhaseModule,
    data: L.LightningDataModule,
    steps: int,
    ckpt_path: str | Path | None = None,
    **changes: Any,
) -> L.Trainer:
    """Train for `steps` optimizer steps, counted from the beginning of the run."""
    quieten()
    trainer = L.Trainer(
        **{
            **TRAINER_DEFAULTS,
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": steps,
            "logger": False,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
            "gradient_clip_val": None,
            **changes,
        }
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered (all ranks must call), others as they are; a copy."""
    plain = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return plain.detach().clone()


def parameters(module: PhaseModule) -> dict[str, torch.Tensor]:
    return {name: whole(p) for name, p in module.net.named_parameters()}


class Gradients(L.Callback):
    """Keeps the gradient of each step, before clipping, and the values before the first."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.initial: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PhaseModule)
        self.initial = parameters(pl_module)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(pl_module, PhaseModule)
        named = pl_module.net.named_parameters()
        self.steps.append({name: whole(p.grad) for name, p in named if p.grad is not None})
