"""Before anything is computed: compare everything that crosses between model, data and bundle.

Each inherited value is printed, each mismatch refused with its fix, all of them at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ptft_lightning.data.corpus import CorpusDataModule
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import Bundle
from ptft_lightning.tasks.base import Task
from ptft_lightning.tuning.base import Tuning


@dataclass
class Preflight:
    """Findings so far."""

    inherited: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def tokenizer(self, bundle: Bundle, tokenizer: Tokenizer) -> None:
        """The data must be encoded as the bundle's model learnt it."""
        own = bundle.tokenizer
        if own.fingerprint != tokenizer.fingerprint:
            fix = "leave data.tokenizer out"
            if tokenizer.extends == own.fingerprint:
                fix = "it extends that one: train its new tokens in phase one first"
            elif tokenizer.extends is not None:
                fix = f"it extends another one ({tokenizer.extends}): extend the bundle's own"
            self.problems.append(
                f"data.tokenizer has fingerprint {tokenizer.fingerprint}, the bundle "
                f"'{bundle.path}' was trained with {own.fingerprint}: {fix}"
            )
            return
        parts = ", ".join(f"{p} {getattr(own, p)}" for p in ("pad", "mask", "begin", "end"))
        self.inherited.append(f"tokenizer {own.fingerprint} ({own.size} ids; {parts})")

    def vocabulary(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Every id needs a row of the embedding."""
        if tokenizer.size > vocab_size:
            self.problems.append(
                f"the tokenizer has ids up to {tokenizer.size - 1}, the model's embedding "
                f"{vocab_size} rows: use the tokenizer the model was made with, or a larger "
                "model.vocab_size"
            )

    def length(self, name: str, length: int, max_length: int) -> None:
        """No row may be longer than the backbone reads."""
        if length > max_length:
            self.problems.append(
                f"{name} is {length}, the backbone reads at most {max_length} tokens: lower "
                f"{name}, or pretrain with a larger model.backbone.max_length"
            )

    def backbone(self, bundle: Bundle) -> None:
        """What the bundle decides."""
        shape = bundle.config["backbone"]
        values = ", ".join(f"{name} {value}" for name, value in shape["config"].items())
        kind = f"{shape['kind']}, vocabulary {shape['vocab_size']}"
        self.inherited.append(f"backbone {kind}, {values}")

    def causality(self, objective: str, needed: bool, causal: bool, given: bool = False) -> None:
        """Objective and backbone, perhaps `given` by a bundle, must look the same way."""
        if needed != causal:
            # A bundle's direction cannot be changed, so another objective is the only way.
            seen = (
                "no token to come: take CausalLM" if causal else "what it predicts: take MaskedLM"
            )
            fix = f" in the bundle, which sees {seen}" if given else ""
            self.problems.append(
                f"objective '{objective}' needs model.backbone.causal {str(needed).lower()}, "
                f"it is {str(causal).lower()}{fix}"
            )

    def word_starts(self, needed: bool, data: CorpusDataModule) -> None:
        """Whole words can be hidden only where the store says where they start."""
        if needed and not data.has_word_starts:
            self.problems.append(
                f"model.objective.whole_words needs word starts, and the token store "
                f"'{data.store}' has none: prepare the text with word_starts true into another one"
            )

    def phase(self, bundle: Bundle, allowed: tuple[str, ...], module: str) -> None:
        """A bundle must be of a phase this module starts from."""
        found = bundle.config["phase"]
        if found not in allowed:
            self.problems.append(
                f"init_from '{bundle.path}' is a {found} bundle, {module} starts from "
                f"{' or '.join(allowed)} bundles"
            )

    def labels(self, bundle: Bundle, task: Task) -> None:
        """A tuned bundle goes on only with its own task."""
        head = bundle.config["head"]
        if head["name"] != task.name:
            self.problems.append(
                f"the bundle '{bundle.path}' was tuned for '{head['name']}', model.task is "
                f"'{task.name}': start from the phase-one bundle it was made from"
            )
            return
        for name in task.shaping:
            now = task.config()[name]
            was = head["config"].get(name, now)  # older bundles know fewer
            if was != now:
                self.problems.append(
                    f"the bundle '{bundle.path}' was tuned with model.task.{name} {was!r}, yours "
                    f"is {now!r}: give the same"
                )
        if head["labels"]:
            self.inherited.append(f"labels {', '.join(head['labels'])}")

    def reads(self, bundle: Bundle, tuning: Tuning) -> None:
        """A tuned head goes on only with the hidden states it was trained on."""
        was, now = bundle.config.get("reads", ""), tuning.reads
        if was != now:
            self.problems.append(
                f"the bundle '{bundle.path}' was tuned to read {was or 'plainly'}, model.tuning "
                f"reads {now or 'plainly'}: give the same model.tuning"
            )

    def untrained(self, bundle: Bundle, task: Task) -> None:
        """Few tasks say anything before they are trained."""
        if not task.zero_shot:
            self.problems.append(
                f"the bundle '{bundle.path}' is not tuned for '{task.name}': fit first, and give "
                "the --run_dir of that run"
            )
            return
        self.inherited.append(f"nothing is trained for '{task.name}': zero-shot")

    def finish(self) -> list[str]:
        """The inherited values.

        Raises:
            UserError: listing every problem.
        """
        if self.problems:
            raise UserError("; ".join(self.problems))
        return self.inherited


DECIDING = (
    "backbone",
    "head",
    "tuning",
    "seed",
    "optimizer",
)  # of a model, what a resume must not change


def check_resume(saved: dict[str, Any] | None, mine: dict[str, Any]) -> None:
    """Compare the bundle part of a checkpoint that a run wants to go on from with the run's own.

    Raises:
        UserError: it is of another program, another phase or another model, or its run started
            from another bundle.
    """
    if saved is None:
        raise UserError("ckpt_path: this checkpoint was not written by ptft_lightning")
    theirs = saved["config"]
    if theirs["phase"] != mine["phase"]:
        raise UserError(
            f"ckpt_path names a {theirs['phase']} checkpoint, this is a {mine['phase']} run: to "
            "start from its weights give --model.init_from instead"
        )
    facts = saved["lineage"]
    theirs = theirs | {"seed": facts["seed"], "optimizer": facts.get("optimizer", "adamw")}
    pairs = [(key, theirs[key], mine[key]) for key in DECIDING if key in mine]
    if changed := [line for pair in pairs for line in _differences(*pair)]:
        raise UserError(f"ckpt_path: the checkpoint's model is another one ({'; '.join(changed)})")
    was, now = (", ".join(p["hash"] for p in x["parents"]) or "scratch" for x in (facts, mine))
    if was != now:
        raise UserError(
            f"ckpt_path: the checkpoint's run started from {was}, and this one would from {now}: "
            "give the same model.init_from and model.from_scratch again, or a new run_dir"
        )


def _differences(name: str, was: Any, now: Any) -> list[str]:
    """`name was x, is y` for each value that changed, inside dictionaries, too."""
    if isinstance(was, dict) and isinstance(now, dict):
        inside = [_differences(f"{name}.{k}", was.get(k), now.get(k)) for k in {**was, **now}]
        return [line for lines in inside for line in lines]
    return [] if was == now else [f"{name} was {was!r}, is {now!r}"]
