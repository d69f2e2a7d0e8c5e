"""samples.jsonl of a run: what the model writes at each validation of phase one."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError
from ptft_lightning.files import write_atomically
from ptft_lightning.modules.nets import PretrainNet
from ptft_lightning.modules.pretrain import PretrainModule

if TYPE_CHECKING:
    from ptft_lightning.generation.model import LanguageModel


class Samples(Callback):
    """Append what the model makes of a few fixed prompts; rank 0 only, nothing random.

    Causal models go on with prompts, masked models fill the masks of held-out rows.

    Args:
        count: How many without prompts; 0 turns samples off.
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

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse prompts that could not be used at the first validation."""
        if self.prompts is None or not self._wanted(trainer, pl_module):
            return
        from ptft_lightning.generation.continuing import encode_prompt

        if not cast(PretrainModule, pl_module).objective.causal:
            raise UserError("samples.prompts are for causal models, this one is masked: leave out")
        for text in self.prompts:
            encode_prompt(self._model(cast(PretrainModule, pl_module)), text)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the lines of validations that a resume does again, and a torn last one."""
        if not trainer.is_global_zero or not self._wanted(trainer, pl_module):
            return
        if isinstance(trainer.strategy, ModelParallelStrategy):
            say("samples: none, the model is sharded over the ranks")
        if self.file.is_file():
            # Not splitlines: text may hold separators that end no line of a file.
            whole = self.file.read_bytes().split(b"\n")[:-1]
            kept = [
                line + b"\n" for line in whole if json.loads(line)["step"] <= trainer.global_step
            ]
            write_atomically(self.file, b"".join(kept))

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
            lines = self._lines(module)
        module.net.train(training)
        with open(self.file, "a", encoding="utf-8") as stream:
            for line in lines:
                record = {"step": trainer.global_step, **line}
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        module.clock += time.perf_counter() - began

    def _wanted(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        quick = cast(Any, trainer).fast_dev_run
        if not fitting or quick or not self.count or not isinstance(module, PretrainModule):
            return False
        return module.objective.shows_samples

    def _lines(self, module: PretrainModule) -> list[dict[str, str]]:
        from ptft_lightning.generation.samples import continued, filled

        data, model = cast(CorpusDataModule, module.data), self._model(module)
        rows = data.validation_rows
        if module.objective.causal:
            return continued(model, rows, self.count, self.prompts, self.new_tokens)
        return filled(model, rows, self.count, module.objective, data.seed)

    def _model(self, module: PretrainModule) -> LanguageModel:
        from ptft_lightning.generation.model import LanguageModel

        net = cast(PretrainNet, module.net)
        return LanguageModel(net.backbone, net.head, module.data.tokenizer)
