"""Phase one: a backbone under an objective."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, cast

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ptft_lightning.backbones.config import BackboneConfig
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.data.module import PhaseData, say
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.preflight import Preflight
from ptft_lightning.modules.nets import PretrainNet, build_backbone, refused
from ptft_lightning.modules.optimizers import OptimizerConfig
from ptft_lightning.modules.phase import PhaseModule
from ptft_lightning.objectives.base import Objective, perplexity


class PretrainModule(PhaseModule):
    """Train a backbone on text.

    Args:
        objective: What is predicted, such as CausalLM or MaskedLM.
        backbone: Shape of a Transformer, or class_path and init_args of another kind; not with
            init_from, which brings its own.
        optimizer: Optimizer and schedule.
        vocab_size: Rows of the embedding; default: as many as the tokenizer has ids.
        init_from: A bundle, run or checkpoint of either phase, a Hugging Face folder, or
            wandb://[entity/]project/name[:alias], to go on from with a new schedule; a tokenizer
            that extends its own brings new tokens.
        compile_layers: Compile each layer with torch.compile.
        activation_checkpointing: Recompute each layer in the backward pass to save memory.
        seed: Decides the initial values and dropout.
    """

    phase = "pretrain"

    def __init__(
        self,
        objective: Objective,
        backbone: TransformerConfig | BackboneConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),
        vocab_size: int | None = None,
        init_from: str | None = None,
        compile_layers: bool = False,
        activation_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, init_from, compile_layers, activation_checkpointing, seed)
        self.objective, self.vocab_size = objective, vocab_size
        if self.bundle is not None and backbone is not None:
            raise UserError(
                "model.backbone and model.init_from: give one, the bundle brings its own"
            )
        default = TransformerConfig(causal=objective.causal)
        self.backbone_config: BackboneConfig = backbone or default

    def preflight(self, data: PhaseData) -> None:
        """Check tokenizer, vocabulary, length and direction."""
        check = Preflight()
        self.objective.check(data.tokenizer)
        if self.bundle is not None:
            from ptft_lightning.handoff.continuing import going_on

            check.phase(self.bundle, ("pretrain", "finetune"), "PretrainModule")
            self._grow(data)
            check.tokenizer(self.bundle, data.tokenizer)
            check.backbone(self.bundle)
            check.inherited += going_on(self.bundle, self.objective, self.optimizer_config.lr)
        shape = self._shape(data)
        check.vocabulary(data.tokenizer, shape["vocab_size"])
        check.length(
            "data.length", cast(CorpusDataModule, data).length, shape["config"]["max_length"]
        )
        check.word_starts(self.objective.whole_words, cast(CorpusDataModule, data))
        from ptft_lightning.handoff.pair_checks import pair_problems  # a leaf

        types = shape["config"].get("token_types")
        check.problems += pair_problems(self.objective, cast(CorpusDataModule, data), types)
        causal = shape["config"]["causal"]
        given = self.bundle is not None
        check.problems += self.objective.problems(shape)
        check.problems += refused(self, shape, data.trainer)
        check.causality(self.objective.name, self.objective.causal, causal, given)
        for line in check.finish():
            say(f"inherited: {line}")

    def _grow(self, data: PhaseData) -> None:
        """Rows for the tokens of a tokenizer that extends the bundle's own."""
        if self.bundle is not None and data.tokenizer.extends is not None:
            from ptft_lightning.handoff.vocabulary import grow

            self.bundle = grow(self.bundle, data.tokenizer)

    def _shape(self, data: PhaseData) -> dict[str, Any]:
        """The backbone as plain values."""
        if self.bundle is not None:
            return cast(dict[str, Any], self.bundle.config["backbone"])
        return {
            "kind": self.backbone_config.kind,
            "config": asdict(cast(Any, self.backbone_config)),
            "vocab_size": self.vocab_size or data.tokenizer.size,
        }

    def build_net(self, data: PhaseData) -> PretrainNet:
        """Backbone and the objective's head."""
        self._grow(data)
        backbone = build_backbone(**self._shape(data), tokenizer=data.tokenizer)
        tied = self._shape(data)["config"]["tie_embeddings"]
        return PretrainNet(backbone, self.objective.build_head(backbone, tied))

    def configure_callbacks(self) -> list[Callback]:
        """Losses on other text, where there is any."""
        from ptft_lightning.modules.forgetting import Forgetting

        fitting = self.trainer.state.fn == TrainerFn.FITTING and self.trainer.limit_val_batches
        others = cast(CorpusDataModule, self.data).validation_stores
        return [Forgetting()] if fitting and others else []

    def stored(self, name: str) -> Tensor | None:
        """From the bundle, head included when it is of the same objective or of its kin."""
        if self.bundle is None:
            return None
        theirs = self.bundle.config["head"]["name"]
        kin = theirs in self.objective.goes_on_from
        wanted = name.startswith("backbone.") or theirs == self.objective.name or kin
        if name not in self.bundle.names():
            if wanted and (not kin or name.startswith("backbone.")):
                raise UserError(f"the bundle '{self.bundle.path}' has no tensor '{name}'")
            return None
        return self.bundle.tensor(name) if wanted else None

    def _head(self) -> dict[str, Any]:
        return {"name": self.objective.name, "config": self.objective.config()}

    def bundle_config(self) -> dict[str, Any]:
        """See `PhaseModule`."""
        return {"phase": self.phase, "backbone": self._shape(self.data), "head": self._head()}

    def summary(self, losses: dict[str, float], metrics: dict[str, float]) -> dict[str, float]:
        """Loss and accuracy, also of each term where there are several; perplexity of tokens and,
        where it means something, bits-per-byte."""
        values = super().summary(losses, metrics)
        if len(losses) > 1:
            values |= {f"{name}_loss": loss for name, loss in losses.items()}
        tokens = losses.get(self.objective.token_term or "")
        if tokens is not None:
            values["perplexity"] = perplexity(tokens)
        rate = cast(CorpusDataModule, self.data).predicted_per_byte
        if self.trainer.training and self.data.source_names:
            rate = None  # it is the first store's, whose held-out text is validated
        if self.objective.per_byte and rate is not None and tokens is not None:
            values["bits_per_byte"] = tokens / math.log(2) * rate
        return self.objective.summary(values)
