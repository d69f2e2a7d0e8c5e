"""Phase two's data: labelled examples, packed into rows per micro-batch; knows no model.

A sample is an example. Each micro-batch is packed anew, so that neighbours change every epoch.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ptft_lightning.data.example_rows import ExampleDataset, TaskEncoder
from ptft_lightning.data.examples import Columns, Example
from ptft_lightning.data.findings import (
    BadExamples,
    UnknownLabels,
    known_only,
    report_cut,
    report_empty,
)
from ptft_lightning.data.module import BatchLoader, PhaseData
from ptft_lightning.data.plan import check_share, held_out
from ptft_lightning.data.sample_order import Numbers, Segments, keyed_permutation
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError


class TaskDataModule(PhaseData):
    """Labelled examples for phase two.

    Args:
        train: Training file (.jsonl, .csv, .tsv, also .gz or .zst), path or URL.
        validation: Validation file; without one a share of the training file is held out.
        test: Test file.
        predict: File to predict; needs no labels.
        text: Texts to predict instead of a file.
        columns: Which columns hold text, pair and label.
        label_names: Names of labels that are ids: a mapping, or a file whose line n (from 0) names
            the id n.
        unknown_labels: What to do with validation and test examples whose label the training file
            does not have: stop, or leave them out and count them in the metrics.
        bad_examples: What to do with examples that cannot be used, as one whose labels do not line
            up: stop, or leave them out and count them.
        tokenizer: A tokenizer.json or its directory; with init_from the bundle's own is used.
        max_length: Tokens of an example, the rest is cut off; also the length of a row.
        global_batch_size: Examples per optimizer step, over all ranks.
        micro_batch_size: Examples computed at once on one rank.
        validation_share: Share of the training file held out when there is no validation file.
        train_examples: Train on so many examples only, chosen by the seed.
        seed: Decides the order of the examples.
        workers: Processes that pack examples beside the training process, per rank.
        audit: A file that gets, per optimizer step, the samples used and a hash of each.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        text: list[str] | None = None,
        columns: Columns = Columns(),
        label_names: str | dict[str, str] | None = None,
        unknown_labels: UnknownLabels = "stop",
        bad_examples: UnknownLabels = "stop",
        tokenizer: str | None = None,
        max_length: int = 128,
        global_batch_size: int = 32,
        micro_batch_size: int = 32,
        validation_share: float = 0.1,
        train_examples: int | None = None,
        seed: int = 0,
        workers: int = 0,
        audit: str | None = None,
    ) -> None:
        super().__init__(seed, global_batch_size, micro_batch_size, workers, audit)
        check_share(validation_share)
        self.files = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.text, self.columns = text, columns
        self.label_names, self.unknown_labels = label_names, unknown_labels
        self.bad_examples = bad_examples
        self.tokenizer_path, self.max_length = tokenizer, max_length
        self.validation_share, self.train_examples = validation_share, train_examples
        if train_examples is not None and train_examples < 1:
            raise UserError(f"data.train_examples is {train_examples}: give 1 or more")
        self.labels: list[str] = []
        self.datasets: dict[str, ExampleDataset] = {}
        self.examples: dict[str, list[Example]] = {}  # of the splits that are not shuffled
        self.skipped: dict[str, int] = {}
        self.reserved = 0  # places in front of an example, for the tuning
        if max_length < 4:
            raise UserError(f"data.max_length is {max_length}: an example needs at least 4 tokens")

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return self.max_length

    def prepare_data(self) -> None:
        """Check everything that crosses to the model before anything large is built."""
        self._load_tokenizer()
        module: Any = self._trainer().lightning_module
        module.preflight(self)

    def _load_tokenizer(self) -> None:
        module: Any = self._trainer().lightning_module
        bundle = getattr(module, "bundle", None)
        if self.tokenizer_path is not None:
            self.tokenizer = Tokenizer.load(self.tokenizer_path)
        elif bundle is not None:
            self.tokenizer = bundle.tokenizer
        else:
            raise UserError(
                "where does the model come from? give model.init_from a bundle, or "
                "data.tokenizer to train from scratch"
            )

    def setup(self, stage: str) -> None:
        """Read and encode the files of a stage."""
        self._load_tokenizer()
        module: Any = self._trainer().lightning_module
        self.task: TaskEncoder = module.task
        self.reserved = module.tuning.reserved
        if self.max_length - self.reserved < 4:
            raise UserError(
                f"model.tuning.length is {self.reserved}, data.max_length {self.max_length}: an "
                "example needs at least 4 tokens beside its prompt"
            )
        self.labels = list(module.known_labels)
        if stage == "fit":
            self._setup_fit()
            self.place_in_trainer()
        elif stage == "predict":
            self._setup_predict()
        elif stage == "validate" and self.files["validation"] is None:
            self._setup_fit()
        else:
            split = "validation" if stage == "validate" else "test"
            self.datasets[split] = self._dataset(split, self._read(split), shuffle=False)

    def _setup_fit(self) -> None:
        train = self._read("train")
        self.labels = self.labels or self.task.schema(train)
        if self.files["validation"] is not None:
            validation = self._read("validation")
        else:
            share = self.validation_share
            validation = [e for e in train if held_out(e.group, share)]
            train = [e for e in train if not held_out(e.group, share)]
            if not train:
                raise UserError(
                    f"data.validation_share {share} leaves no example of '{self.files['train']}' "
                    "to train on: name a data.validation file"
                )
        self.datasets["train"] = self._dataset("train", self._fewer(train), shuffle=True)
        self.task.weigh(self.datasets["train"].examples, self.labels)
        if validation:
            self.datasets["validation"] = self._dataset("validation", validation, shuffle=False)
        self.segments = Segments(self.segments.table, period=self.train_samples)

    def _fewer(self, train: list[Example]) -> list[Example]:
        """The first of the seed's order: a larger choice holds the smaller ones."""
        if (count := self.train_examples) is None:
            return train
        if count > len(train):
            raise UserError(f"data.train_examples is {count}, there are {len(train)}: give fewer")
        order = keyed_permutation(np.arange(count), len(train), (self.seed, "train_examples"))
        return [train[i] for i in order.tolist()]

    def _setup_predict(self) -> None:
        if self.text is None and self.files["predict"] is None:
            raise UserError("nothing to predict: give --text TEXT or --data.predict FILE")
        if self.text is not None:
            typed = enumerate(self.text, start=1)
            examples = [self.task.typed(t, self.columns, f"--text {i}") for i, t in typed]
        else:
            examples = self._read("predict", labelled=False)
        self.datasets["predict"] = self._dataset("predict", examples, shuffle=False)

    def _read(self, split: str, labelled: bool = True) -> list[Example]:
        path = self.files[split]
        if path is None:
            raise UserError(f"data.{split} is missing: name the file")
        bad = BadExamples(self.bad_examples)
        examples = self.task.read(path, self.columns, labelled, bad)
        if names := self._label_names():
            from ptft_lightning.data.label_names import name_labels

            examples = self.task.renamed(path, name_labels(examples, names), bad)
        bad.settle(path, len(examples))
        self.skipped[split] = len(bad.found)
        return examples

    def _label_names(self) -> dict[str, str] | None:
        if self.label_names is None:
            return None
        from ptft_lightning.data.label_names import read_label_names

        return read_label_names(self.label_names)

    def reading(self) -> dict[str, Any]:
        """How files become examples: plain values for the bundle."""
        columns, names = asdict(self.columns), self._label_names()
        return {"max_length": self.max_length, "columns": columns, "label_names": names}

    def _dataset(self, split: str, examples: list[Example], shuffle: bool) -> ExampleDataset:
        from ptft_lightning.data.unusable import leave_out  # leaves

        report_empty(split, examples)
        known = known_only(split, examples, self.labels, self.task.labels_of, self.unknown_labels)
        length = self.max_length - self.reserved
        encoded = self.task.encode(known, self.labels, self.tokenizer, length)
        file = self.files[split] or split
        known, encoded = leave_out(file, known, encoded, self.bad_examples)
        self.skipped[split] = self.skipped.get(split, 0) + len(examples) - len(known)
        report_cut(split, encoded, length)
        if not shuffle:
            self.examples[split] = known
        audit = self.audit is not None and split == "train"
        return ExampleDataset(
            *(encoded, self.task, self.max_length, self.tokenizer, self.seed, shuffle, audit),
            reserved=self.reserved,
        )

    @property
    def train_samples(self) -> int:
        """Training examples."""
        return len(self.datasets["train"])

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the examples; the last one may be short."""
        return -(-self.train_samples // self.global_batch_size)

    def step_numbers(self, step: int) -> Numbers:
        """The examples of a step, none of them from the next epoch."""
        return np.arange(*self.segments.span(step), dtype=np.int64)

    def identity(self) -> dict[str, Any]:
        """What decides the content and order of the examples."""
        return {
            "examples": self.datasets["train"].fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "max_length": self.max_length,
            "seed": self.seed,
        }

    def train_dataloader(self) -> BatchLoader:
        """Endless training micro-batches."""
        return self.train_loader(self.datasets["train"])

    def _pass(self, split: str) -> BatchLoader | list[BatchLoader]:
        if split not in self.datasets:
            return []
        return self.pass_loader(self.datasets[split], len(self.datasets[split]))

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The validation examples, once."""
        return self._pass("validation")

    def test_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The test examples, once."""
        return self._pass("test")

    def predict_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The examples to predict, once."""
        return self._pass("predict")
