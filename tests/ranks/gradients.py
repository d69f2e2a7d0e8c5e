"""The gradient of one optimizer step under a given split of its work; also a script for ranks.

`torchrun -m ranks.gradients SETUP.json OUT.pt` takes one step per case and strategy on all its
ranks and writes what rank 0 saw.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import ModelParallelStrategy
from ranks import tiny
from torch import Tensor, nn

from ptft_lightning.backbones.base import Backbone
from ptft_lightning.backbones.config import BackboneConfig
from ptft_lightning.backbones.linformer_config import LinformerConfig
from ptft_lightning.backbones.lstm_config import LSTMConfig
from ptft_lightning.backbones.reformer_config import ReformerConfig
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.examples import Columns
from ptft_lightning.data.packing import Ids
from ptft_lightning.data.sample_order import Numbers
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.modules.checkpoints import Checkpoints
from ptft_lightning.objectives.base import PretrainHead
from ptft_lightning.objectives.bidirectional import BidirectionalLM
from ptft_lightning.objectives.causal import CausalLM
from ptft_lightning.objectives.masked import MaskedHead, MaskedLM
from ptft_lightning.objectives.replaced import ReplacedTokens
from ptft_lightning.tasks.classification import Classification
from ptft_lightning.tasks.decoding import Decoding
from ptft_lightning.tasks.generation import Generation
from ptft_lightning.tasks.multilabel import MultiLabel
from ptft_lightning.tasks.regression import Regression
from ptft_lightning.terms import IGNORE, Output, Term
from ptft_lightning.tuning.base import Tuning
from ptft_lightning.tuning.frozen import Frozen
from ptft_lightning.tuning.lora import LoRA, LoraLinear
from ptft_lightning.tuning.prefix import PrefixTuning
from ptft_lightning.tuning.prompt import PromptTuning

GLOBAL = 7  # no number of ranks or micro-batches divides it
CASES = (
    *("causal", "masked", "per_example", "two_terms", "replaced", "classification", "frozen"),
    *("weighted", "multilabel", "regression", "lora", "generation"),
    *("prompt", "prefix", "mix"),
    *("linformer", "reformer", "bidirectional", "recurrent"),
)
# Characters are read by convolution, and cells project.
LSTM = LSTMConfig(
    *(tiny.SHAPE["dim"], 2, "lstm", 24, tiny.LENGTH), input="characters", filters=[[1, 8], [2, 8]]
)
TASKS = {
    "classification": Classification(dropout=0.0),
    "frozen": Classification(dropout=0.0),
    "lora": Classification(dropout=0.0),
    "weighted": Classification(
        dropout=0.0, class_weights={"left": 3.0, "up": 0.25}, label_smoothing=0.1
    ),
    "multilabel": MultiLabel(dropout=0.0),
    "regression": Regression(dropout=0.0, center=4.0, scale=3.0),
    "prompt": Classification(dropout=0.0, pooling="attention"),
    "prefix": Classification(dropout=0.0),
    "mix": Classification(dropout=0.0),
    "recurrent": Classification(dropout=0.0),
    # Of labels, which have different numbers of tokens.
    "generation": Generation(decoding=Decoding(max_new_tokens=2)),
}


class Begun(LoRA):
    """Adapters whose B is not zero, so that their A has a gradient."""

    def settle(self, backbone: Backbone) -> None:
        for layer in backbone.modules():
            if isinstance(layer, LoraLinear):
                nn.init.constant_(layer.lora_b, 0.05)


SIZE = {"dim": 32, "depth": 2, "heads": 4, "max_length": tiny.LENGTH}
BACKBONES = {
    "linformer": LinformerConfig(**SIZE, projected_length=8),
    "reformer": ReformerConfig(**SIZE, causal=True, chunk_length=4, hash_rounds=2),
    "bidirectional": LSTM,
}
TUNINGS: dict[str, Tuning] = {
    "frozen": Frozen(),
    "lora": Begun(rank=3, targets=["query", "up"]),
    "prompt": PromptTuning(3),
    "prefix": PrefixTuning(3),
    "mix": Frozen(mix=True),
}


class MaskedAndLong(MaskedLM):
    """Masked tokens, and at each document's begin whether it is long: as many as documents."""

    name = "masked_and_long"

    def make(
        self,
        tokens: Ids,
        documents: Ids,
        samples: Numbers,
        seed: int,
        tokenizer: Tokenizer,
        words: Ids | None = None,
    ) -> tuple[Ids, dict[str, Ids]]:
        hidden, targets = super().make(tokens, documents, samples, seed, tokenizer, words)
        numbers = documents[:, :-1]
        sizes = (numbers[:, :, None] == numbers[:, None, :]).sum(-1)
        begins = np.diff(numbers, axis=1, prepend=0) > 0
        targets["long"] = np.where(begins, sizes > 12, IGNORE)
        return hidden, targets

    def build_head(self, backbone: Backbone, tied: bool) -> PretrainHead:
        return MaskedAndLongHead(backbone, tied)


class MaskedAndLongHead(MaskedHead):
    def __init__(self, backbone: Backbone, tied: bool) -> None:
        super().__init__(backbone, tied)
        self.long = nn.Linear(backbone.dim, 2)

    def forward(self, hidden: Tensor, batch: Batch, embedding: Tensor) -> Output:
        output = super().forward(hidden, batch, embedding)
        labels = batch.targets["long"].flatten()
        logits = self.long(hidden).flatten(0, 1)
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        output.terms["long"] = Term(total, (labels != IGNORE).sum(), nominal=4.0, weight=0.5)
        return output


def one_step(
    case: str, micro: int, setup: dict[str, str], row: int = tiny.LENGTH, **trainer: Any
) -> dict[str, Any]:
    """Gradient, reported loss and gradient norm of the first step; examples in rows of `row`."""
    sizes = {"global_batch_size": GLOBAL, "micro_batch_size": micro}
    if case in TASKS:
        full: BackboneConfig = TransformerConfig(**tiny.SHAPE, causal=case == "generation")
        full = LSTM if case == "recurrent" else full
        tuning = TUNINGS.get(case)
        module: Any = tiny.finetune(task=TASKS[case], tuning=tuning, backbone=full)
        sizes["max_length"] = row
        columns = Columns(label="number" if case == "regression" else "label")
        places = (Path(setup["examples"]), Path(setup["tokenizer"]))
        data: Any = tiny.examples(*places, columns=columns, **sizes)
    else:
        objective = {
            "causal": CausalLM(),
            "masked": MaskedLM(0.3),
            "per_example": CausalLM(loss_mean="example"),
            "two_terms": MaskedAndLong(0.3),
            "replaced": ReplacedTokens(0.3, generator_width=0.5, generator_depth=0.5),
            "linformer": MaskedLM(0.3),
            "reformer": CausalLM(),
            "bidirectional": BidirectionalLM(),
        }
        shape = {"backbone": BACKBONES[case]} if case in BACKBONES else {}
        module = tiny.pretrain(objective[case], **shape)
        data = tiny.corpus(Path(setup["store"]), Path(setup["tokenizer"]), **sizes)
    seen = tiny.Gradients()
    callbacks = [seen, *trainer.pop("callbacks", [])]
    tiny.fit(module, data, steps=1, callbacks=callbacks, **trainer)
    return {
        "initial": seen.initial,
        "gradient": seen.steps[0],
        "loss": module.train_values["train_loss"],
        "grad_norm": module.train_values["grad_norm"],
        "parameters": tiny.parameters(module),
    }


def every_case(setup: dict[str, str], devices: int) -> dict[str, Any]:
    """Every case with both strategies."""
    results: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp2"):
        for case in CASES:
            # Of two ranks 3: one's second micro-batch is empty; of four 1, so is the last one's.
            for micro in (4, 3) if devices == 2 else (2, 1):
                key = f"{strategy}-{case}-{micro}"
                results[key] = one_step(case, micro, setup, strategy=strategy, devices=devices)
    return results


def on_two_ranks(setup: dict[str, str]) -> dict[str, Any]:
    """Every case, and more of FSDP2 where it needs several ranks."""
    results = every_case(setup, 2)
    checkpoints = Checkpoints()
    checkpoints.run_dir = Path(setup["run_dir"])
    options: dict[str, Any] = {"devices": 2, "strategy": "fsdp2", "callbacks": [checkpoints]}
    results["sharded"] = one_step("masked", 4, setup, **options)

    for strategy in ("ddp", "fsdp2"):
        mixed = {"precision": "bf16-mixed", "gradient_clip_val": 0.01, "devices": 2}
        results[f"{strategy}-mixed"] = one_step("causal", 4, setup, strategy=strategy, **mixed)

    try:
        # Lightning's own choice for one node: no data parallelism at all.
        one_step("masked", 4, setup, strategy=ModelParallelStrategy(), devices=2)
        results["refusal"] = "none"
    except UserError as refusal:
        results["refusal"] = str(refusal)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(Path(sys.argv[1]).read_text())
    ranks = int(os.environ["WORLD_SIZE"])
    outcome = on_two_ranks(given) if ranks == 2 else every_case(given, ranks)
    if torch.distributed.get_rank() == 0:
        torch.save(outcome, sys.argv[2])
