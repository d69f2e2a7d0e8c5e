"""Phase two: a loaded backbone, a way of tuning it, and a task."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ptft_lightning.backbones.config import BackboneConfig
from ptft_lightning.backbones.transformer_config import TransformerConfig
from ptft_lightning.data.batch import Batch
from ptft_lightning.data.module import PhaseData, say
from ptft_lightning.data.task_data import TaskDataModule
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import Bundle
from ptft_lightning.handoff.preflight import Preflight
from ptft_lightning.modules.nets import TaskNet, build_backbone, refused
from ptft_lightning.modules.optimizers import OptimizerConfig
from ptft_lightning.modules.phase import PhaseModule
from ptft_lightning.modules.predictions import Parts, Predictions, gather, of_batch
from ptft_lightning.objectives.base import perplexity
from ptft_lightning.tasks.base import Scored, Task
from ptft_lightning.terms import Output
from ptft_lightning.tuning.base import Tuning


class FinetuneModule(PhaseModule):
    """Tune a pretrained backbone for a task.

    Args:
        task: What is predicted, such as Classification.
        init_from: A bundle, run directory or checkpoint of phase one (or of phase two, to go on
            with its task), a Hugging Face folder, or wandb://[entity/]project/name[:alias].
        tuning: Which parameters train, such as Full or Frozen.
        optimizer: Optimizer and schedule.
        from_scratch: Keep the bundle's tokenizer and shape but not its weights: the baseline that
            tells what pretraining was worth.
        backbone: Shape of a Transformer, or class_path and init_args of another kind, when there
            is no init_from.
        base: Where the base of init_from is, if that holds only what was trained and its base was
            moved.
        compile_layers: Compile each layer with torch.compile.
        activation_checkpointing: Recompute each layer in the backward pass to save memory.
        seed: Decides the initial values of the head and dropout.
    """

    phase = "finetune"

    def __init__(
        self,
        task: Task,
        init_from: str | None = None,
        tuning: Tuning | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(
            lr=3e-4, weight_decay=0.01, warmup=0.1, schedule="linear", final=0.0
        ),
        from_scratch: bool = False,
        backbone: TransformerConfig | BackboneConfig | None = None,
        compile_layers: bool = False,
        activation_checkpointing: bool = False,
        seed: int = 0,
        base: str | None = None,
    ) -> None:
        given = (optimizer, init_from, compile_layers, activation_checkpointing, seed)
        super().__init__(*given, base, tuning)
        self.task, self.from_scratch, self.base = task, from_scratch, base
        if self._tuned_bundle:
            task.found = dict(self._tuned_bundle.config.get("found", {}))
        if self.bundle is not None and backbone is not None:
            raise UserError(
                "model.backbone and model.init_from: give one, the bundle brings its own"
            )
        self.backbone_config: BackboneConfig = backbone or TransformerConfig()
        self.metrics: Any = None
        self.predictions = Predictions()
        self.lines: dict[int, dict[str, Any]] | None = None  # those that were judged
        self.measured: dict[str, Any] = {}  # how the last validation of a fit was computed

    @property
    def _tuned_bundle(self) -> Bundle | None:
        """The bundle, if it is one of phase two."""
        tuned = self.bundle is not None and self.bundle.config["phase"] == "finetune"
        return self.bundle if tuned else None

    @property
    def known_labels(self) -> list[str]:
        """The label schema of a phase-two bundle, else what the task knows beforehand."""
        tuned = self._tuned_bundle
        return list(tuned.config["head"]["labels"]) if tuned else self.task.known_labels()

    def preflight(self, data: PhaseData) -> None:
        """Check tokenizer, vocabulary, length and labels."""
        check = Preflight()
        if self.bundle is not None:
            check.phase(self.bundle, ("pretrain", "finetune"), "FinetuneModule")
            check.tokenizer(self.bundle, data.tokenizer)
            check.backbone(self.bundle)
            if self._tuned_bundle:
                check.labels(self.bundle, self.task)
                check.reads(self.bundle, self.tuning)
            elif data.trainer is not None and data.trainer.state.fn != TrainerFn.FITTING:
                check.untrained(self.bundle, self.task)
        shape = self._shape(data)
        check.vocabulary(data.tokenizer, shape["vocab_size"])
        self.task.check(data.tokenizer, shape["config"]["causal"])
        check.problems += refused(self, shape, data.trainer)
        length = cast(TaskDataModule, data).max_length
        check.length("data.max_length", length, shape["config"]["max_length"])
        for line in check.finish():
            say(f"inherited: {line}")

    def _shape(self, data: PhaseData) -> dict[str, Any]:
        if self.bundle is not None:
            return cast(dict[str, Any], self.bundle.config["backbone"])
        return {
            "kind": self.backbone_config.kind,
            "config": asdict(cast(Any, self.backbone_config)),
            "vocab_size": data.tokenizer.size,
        }

    @property
    def labels(self) -> list[str]:
        """The label schema in use."""
        return cast(TaskDataModule, self.data).labels

    def build_net(self, data: PhaseData) -> TaskNet:
        """Backbone, tuning and the task's head."""
        backbone = build_backbone(**self._shape(data), tokenizer=data.tokenizer)
        if backbone.prefix_lm and not self.task.likelihood:
            backbone.read_whole()
        self.tuning.apply(backbone)
        head = self.task.build_head(backbone, cast(TaskDataModule, data).labels)
        return TaskNet(backbone, head, self.tuning.build_reader(backbone))

    def stored(self, name: str) -> Tensor | None:
        """Backbone from the bundle; the head too when the bundle is of phase two."""
        if self.bundle is None or self.from_scratch:
            return None
        if not (name.startswith("backbone.") or self._keeps_head(self.bundle)):
            known = self._inherited(name)
            return None if known is None else self.bundle.tensor(known)
        if name not in self.bundle.names():
            if self.tuning.adds(name):
                return None
            needed = "" if self._tuned_bundle else f", which model.task '{self.task.name}' needs"
            raise UserError(f"the bundle '{self.bundle.path}' has no tensor '{name}'{needed}")
        return self.bundle.tensor(name)

    def _keeps_head(self, bundle: Bundle) -> bool:
        own = bundle.config["head"]["name"] in self.task.goes_on_from
        return bundle is self._tuned_bundle or self.task.zero_shot or own

    def _inherited(self, name: str) -> str | None:
        """The bundle's name of what a tensor of a new head begins with, if it has that."""
        if self.bundle is None or self.from_scratch or self._keeps_head(self.bundle):
            return None
        return self.bundle.known_as(self.task.inherited(name))

    def _unused(self, new: list[str]) -> list[str]:
        taken = {self._inherited(name) for name, _ in self.net.named_parameters()}
        return [name for name in super()._unused(new) if name not in taken]

    def bundle_config(self) -> dict[str, Any]:
        """See `PhaseModule`."""
        head = {"name": self.task.name, "config": self.task.config(), "labels": self.labels}
        data = cast(TaskDataModule, self.data)
        return {
            "phase": self.phase,
            "backbone": self._shape(data),
            "head": head,
            "tuning": self.tuning.described,
            "reads": self.tuning.reads,
            "data": data.reading(),
            "found": dict(self.task.found),
        }

    def configure_model(self) -> None:
        """Also make the metrics, which hold no parameters."""
        super().configure_model()
        if self.metrics is None:
            self.metrics = self.task.metrics(self.labels).to(self.trainer.strategy.root_device)

    def on_fit_start(self) -> None:
        """Let the tuning prepare."""
        self.tuning.before_fit(self)
        super().on_fit_start()

    def on_validation_epoch_start(self) -> None:
        """Predictions are those of the last pass."""
        super().on_validation_epoch_start()
        self._begin_predictions("validation")

    def on_test_epoch_start(self) -> None:
        """See `on_validation_epoch_start`."""
        self._begin_predictions("test")

    def _begin_predictions(self, split: str) -> None:
        data = cast(TaskDataModule, self.data)
        windows = data.datasets[split].examples
        self.task.begin(split, len(windows))
        self.lines = None
        self.predictions.begin(data.examples[split], windows, self.task.judged)

    def records(self, split: str, parts: Parts) -> dict[int, dict[str, Any]]:
        """Example number -> its line of predictions, from the scores of all ranks; every rank must
        call it."""
        data = cast(TaskDataModule, self.data)
        scores = gather(parts, self.trainer.world_size)
        examples, windows = data.examples[split], data.datasets[split].examples
        return self.task.records(Scored(examples, windows, scores, self.labels, data.tokenizer))

    def keep_predictions(self, run_dir: Path, split: str) -> None:
        """Write those of the last pass to `SPLIT_predictions.jsonl`; every rank must call it."""
        records = self.records(split, self.predictions.parts) if self.lines is None else self.lines
        if self.trainer.is_global_zero:
            self.predictions.write(run_dir / f"{split}_predictions.jsonl", records)

    def evaluate(self, batch: Batch) -> Output:
        """Also feed the task's metrics and keep the predictions."""
        output = super().evaluate(batch)
        self.predictions.add(batch, self._scores(batch, output))
        if len(self.metrics):
            self.metrics.update(output.scores, batch.targets["label"])
        return output

    def _scores(self, batch: Batch, output: Output) -> Tensor | None:
        net, given = cast(TaskNet, self.net), (batch, output, self.data.tokenizer)
        if not self.task.decodes:
            return self.task.predict(net.backbone, net.head, *given)
        from ptft_lightning.modules.decoding import ready_to_decode  # a leaf

        with ready_to_decode(net, self.compile_layers) as backbone:
            return self.task.predict(backbone, net.head, *given)

    def summary(self, losses: dict[str, float], metrics: dict[str, float]) -> dict[str, float]:
        """Also perplexity, where the loss is a likelihood."""
        values = super().summary(losses, metrics)
        if self.task.likelihood:
            values["perplexity"] = perplexity(values["loss"])
        return values

    def eval_values(self) -> dict[str, float]:
        """Loss and the task's metrics; also how many examples were left out, where they may be."""
        values = super().eval_values()
        data = cast(TaskDataModule, self.data)
        split = "test" if self.trainer.testing else "validation"
        if "skip" in (data.unknown_labels, data.bad_examples):
            values["skipped"] = data.skipped[split]
        if len(self.metrics):
            values |= {name: float(value) for name, value in self.metrics.compute().items()}
            self.metrics.reset()
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting:
            self.measured = {"step": self.global_step, **self.circumstances()}
        if self.task.judged:
            values |= self._judged(split, fitting)
        return values

    def _judged(self, split: str, fitting: bool) -> dict[str, float]:
        """Metrics of whole predictions, which are kept for their file."""
        examples, found = cast(TaskDataModule, self.data).examples[split], self.task.found
        self.lines = self.records(split, self.predictions.parts)
        if fitting:
            self.task.settle(examples, self.lines)
            if self.task.found != found:
                self.lines = self.records(split, self.predictions.parts)
        return self.task.judge(examples, self.lines)

    def circumstances(self) -> dict[str, Any]:
        """What decides the last bits of a validation's metrics."""
        data = cast(TaskDataModule, self.data)
        return {
            "examples": data.datasets["validation"].fingerprint,
            "limit": self.trainer.limit_val_batches,
            "micro_batch_size": data.micro_batch_size,
            "ranks": self.trainer.world_size,
            "compiled": self.compile_layers,
        }

    def lineage(self) -> dict[str, Any]:
        """See `PhaseModule`."""
        return super().lineage() | {"measured": self.measured}

    def parents(self) -> list[dict[str, Any]]:
        """See `PhaseModule`; from scratch nothing but the shape is inherited."""
        return [] if self.from_scratch else super().parents()

    def on_predict_epoch_start(self) -> None:
        """See `on_validation_epoch_start`."""
        self.task.begin("predict", 0)

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Sample numbers and scores of a micro-batch, its empty slots left out."""
        scores = self._scores(batch, self.net(batch))
        assert scores is not None, "a task says something of every sample"
        return of_batch(batch, scores)
