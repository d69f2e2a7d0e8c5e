"""samples.jsonl of a run: what the model writes at each validation of phase one."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.modules.nets import PretrainNet
from ptft_lightning.modules.phase import PhaseModule
from ptft_lightning.modules.pretrain import PretrainModule

PROMPT_TOKENS = 16


class Samples(Callback):
    """Append what the model makes of a few fixed prompts; rank 0 only, nothing random.

    Causal models go on with prompts, masked models fill the masks of held-out rows.

    Args:
        count: How many; 0 turns it off.
        prompts: For causal models; default: the beginnings of held-out documents.
        new_tokens: Tokens of a continuation.
    """

    def __init__(
        self, count: int = 3, prompts: list[str] | None = None, new_tokens: int = 32
    ) -> None:
        if new_tokens < 1:
            raise UserError(f"samples.new_tokens is {new_tokens}: give 1 or more")
        self.count, self.prompts, self.new_tokens = count, prompts, new_tokens
        self.run_dir = Path("runs/default")  # set by the command line

    @property
    def file(self) -> Path:
        """Where the lines go."""
        return self.run_dir / "samples.jsonl"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the lines of validations that a resume does again, and a torn last one."""
        if not trainer.is_global_zero or not self._wanted(trainer, pl_module):
            return
        if isinstance(trainer.strategy, ModelParallelStrategy):
            say("samples: none, the model is sharded over the ranks")
        if self.file.is_file():
            lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["step"] <= trainer.global_step]
            self.file.write_text("".join(kept), encoding="utf-8")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Append this step's lines; its time does not count in tokens/s."""
        sharded = isinstance(trainer.strategy, ModelParallelStrategy)
        if not trainer.is_global_zero or sharded or not self._wanted(trainer, pl_module):
            return
        module, began = cast(PretrainModule, pl_module), time.perf_counter()
        training = module.net.training
        module.net.eval()
        # Compiled layers would be compiled again for every new shape.
        compiled = module.compile_layers
        eager = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
        with torch.inference_mode(), eager:
            lines = self._continued(module) if module.objective.causal else self._filled(module)
        module.net.train(training)
        with open(self.file, "a", encoding="utf-8") as stream:
            for line in lines:
                record = {"step": trainer.global_step, **line}
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        module.clock += time.perf_counter() - began

    def _wanted(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        quick = cast(Any, trainer).fast_dev_run
        return fitting and not quick and self.count > 0 and isinstance(module, PretrainModule)

    def _continued(self, module: PretrainModule) -> list[dict[str, str]]:
        from ptft_lightning.generation.continuing import continue_prompts, encode_prompt
        from ptft_lightning.generation.growth import Limits
        from ptft_lightning.generation.sampling import Sampling

        model, data = _model(module), cast(CorpusDataModule, module.data)
        if self.prompts is not None:
            prompts = [encode_prompt(model, text) for text in self.prompts[: self.count]]
        else:
            prompts = _beginnings(data, self.count, model.max_length)
        if not prompts:
            return []
        found = continue_prompts(model, prompts, Sampling(), Limits(self.new_tokens))
        return [
            {"kind": "continuation", "prompt": data.tokenizer.decode(prompt), "text": one.text}
            for prompt, one in zip(prompts, found, strict=True)
        ]

    def _filled(self, module: PretrainModule) -> list[dict[str, str]]:
        from ptft_lightning.generation.filling import fill_masks, show_masked

        data = cast(CorpusDataModule, module.data)
        numbers = np.arange(min(self.count, len(data.validation_rows)), dtype=np.int64)
        rows, documents = data.validation_rows.read(numbers)
        tokens, _ = module.objective.make(rows, documents, numbers, data.seed, data.tokenizer)
        # A row may pack several documents: its first one is shown.
        prompts = [
            row[own == 1].tolist() for row, own in zip(tokens, documents[:, :-1], strict=True)
        ]
        if not prompts:
            return []
        return [
            {"kind": "filled", "prompt": show_masked(data.tokenizer, prompt), "text": one.text}
            for prompt, one in zip(prompts, fill_masks(_model(module), prompts, 1), strict=True)
        ]


def _model(module: PhaseModule) -> Any:
    """The net as generation knows it."""
    from ptft_lightning.generation.model import LanguageModel

    net = cast(PretrainNet, module.net)
    return LanguageModel(net.backbone, net.head, module.data.tokenizer)


def _beginnings(data: CorpusDataModule, count: int, max_length: int) -> list[list[int]]:
    """The first tokens of held-out documents, not more than half of a document."""
    store = data.validation_rows.store
    prompts: list[list[int]] = []
    for shard in range(len(store.shards)):
        tokens, ends = store.tokens(shard), np.asarray(store.ends(shard))
        for start, stop in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            if len(prompts) == count:
                return prompts
            length = min(PROMPT_TOKENS, max(1, (stop - start) // 2), max_length - 1)
            prompts.append(tokens[start : start + length].tolist())
    return prompts
