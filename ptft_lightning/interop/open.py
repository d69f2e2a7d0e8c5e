"""A folder in Hugging Face's layout as a bundle: read in place, nothing is converted beforehand."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import FORMAT, Bundle, open_bundle
from ptft_lightning.interop.adapters import AdapterBundle
from ptft_lightning.interop.families import FAMILIES, OBJECTIVES, TASKS, build_parts, read_task
from ptft_lightning.interop.family import BUFFERS, Family
from ptft_lightning.interop.settings import PLAIN, Settings
from ptft_lightning.interop.tensor_files import TensorFiles, read_json
from ptft_lightning.interop.tokenizer_files import framed_otherwise
from ptft_lightning.objectives.replaced import ALONE
from ptft_lightning.tasks.question_answering import ExtractiveQA
from ptft_lightning.tasks.tagging import Tagging
from ptft_lightning.tasks.tags import scheme_of

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
RUNS = "runs"  # where the shipped configs look for what was trained here, never on the hub
FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt"]


def open_model(path: str | Path, base: str | None = None) -> Bundle:
    """What `--model.init_from` names: a Hugging Face folder or hub id, or one of our bundles, also
    as an artifact of W&B's (`wandb://[entity/]project/name[:alias]`).

    Args:
        path: Where it is.
        base: Where the base is of a bundle that holds only what was trained, if it was moved.

    Raises:
        UserError: it is none of these, not whole, or holds a model that is not one of ours.
    """
    if str(path).startswith("wandb://"):
        from ptft_lightning.tracking.artifacts import open_artifact

        return _completed(open_artifact(str(path)), base)
    folder = Path(path)
    if not folder.exists() and folder.parts[:1] == (RUNS,):
        raise UserError(f"bundle not found: '{path}': train it first, or name another model")
    if not folder.exists() and HUB_ID.fullmatch(str(path)) and not folder.parent.exists():
        folder = _fetch(str(path))
    if (folder / "adapter_config.json").is_file():
        from ptft_lightning.interop.peft_folder import open_peft

        return open_peft(folder, base)
    if not is_huggingface(folder):
        return _completed(open_bundle(path), base)
    bundle = HuggingFaceBundle(folder)
    bundle.path = str(path)
    others = framed_otherwise(bundle.tokenizer) if bundle.config["phase"] == "finetune" else []
    if others:
        frame = bundle.tokenizer.frame([])
        print(
            f"'{folder}' was tuned on {others[0]} framed otherwise than ours ({frame} around "
            f"them): its first scores differ from transformers'",
            file=sys.stderr,
        )
    return bundle


def _completed(own: Bundle, base: str | None) -> Bundle:
    return AdapterBundle(own, base) if "base" in own.config else own


def is_huggingface(folder: Path) -> bool:
    """Whether a folder is laid out as Hugging Face's library does."""
    if (folder / "config.json").is_file():
        return "format" not in read_json(folder / "config.json")
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return bool(weights) and not (folder / "bundle").is_dir()


def _fetch(name: str) -> Path:
    """The local copy of a model on the hub; HF_HUB_OFFLINE=1 takes only what is there already."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"'{name}' is not a folder here; to fetch it from the hub: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=FETCHED))
    except Exception as error:  # its own, those of the network, those of the disk
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"'{name}' is not a folder here and cannot be fetched from the hub: {reason}"
        ) from error


class HuggingFaceBundle(Bundle):
    """A Hugging Face folder seen as a bundle; tensors keep their dtype.

    Tensors that are no part of our models, such as BERT's pooler, keep their own names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings, self.family = _read_settings(folder / "config.json")
        self.architecture = _architecture(self.settings, self.family)
        head = self.family.heads[self.architecture]
        config = _bundle_config(self.settings, self.family, head)
        kind = {"model_type": self.family.name, "architecture": self.architecture}
        super().__init__(str(folder), config, "", {"huggingface": kind})
        self.tied = bool(self.settings["tie_word_embeddings"])
        self.files = TensorFiles(folder)
        self.places = {_newer(name): name for name in self.files.places if not _is_buffer(name)}
        some = self.places.keys()
        self.prefix = self.family.prefix if _has(some, self.family.prefix) else ""
        self.sources = self._find(head)
        self.rest = self._leftovers(head)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """See `Bundle`."""
        return Tokenizer.load(self.folder)

    @property
    def identity(self) -> dict[str, Any]:
        """See `Bundle`: not ours of it, which may get further settings."""
        return read_json(self.folder / "config.json")

    def _find(self, head: str | None) -> dict[str, tuple[str, ...]]:
        """Their names of each of our tensors; all are there and have the right shape."""
        with torch.device("meta"):
            ours = build_parts(self.config).state_dict()
        found = {}
        for name, tensor in ours.items():
            named = self.family.sources(name, head, self.tied, self.prefix)
            assert named, f"{self.family.name} has no name for {name}"
            spare = self.family.spare
            named = tuple(n if n in self.places else spare.get(n, n) for n in named)
            wanted = self.family.shapes(tensor.shape, named, self._transformer)
            for source, shape in wanted.items():
                self._check_shape(source, shape)
            found[name] = named
        return found

    def _check_shape(self, source: str, wanted: tuple[int, ...]) -> None:
        if source not in self.places:
            raise UserError(
                f"'{self.folder}' has no tensor '{source}', which a {self.architecture} needs"
            )
        if (shape := self.files.shape(self.places[source])) != wanted:
            raise UserError(
                f"tensor '{source}' in '{self.folder}' has shape {shape}, by config.json it would "
                f"have {wanted}"
            )

    @cached_property
    def _transformer(self) -> Any:
        return self.family.read(self.settings)

    def _leftovers(self, head: str | None) -> list[str]:
        """Names of tensors we have no place for, if they are known to be of no use to us."""
        used = {source for named in self.sources.values() for source in named}
        copies = self._copies(head)
        rest = [name for name in self.places if name not in used and name not in copies]
        if strange := [name for name in rest if not re.search(self.family.unused, name)]:
            raise UserError(
                f"'{self.folder}' has tensors that are no part of a {self.architecture}: "
                f"{', '.join(strange[:3])}{' and more' if len(strange) > 3 else ''}"
            )
        for name, of in copies.items():
            self._check_copy(name, of)
        return rest

    def _copies(self, head: str | None) -> dict[str, str]:
        """Tensors that older releases wrote twice: a tied projection and its bias."""
        if not self.tied or head not in OBJECTIVES:
            return {}
        pairs = {}
        for ours in ("backbone.embedding.weight", "head.projection.bias"):
            apart = f"head.projection.{ours.rpartition('.')[2]}"
            named = self.family.sources(apart, head, False, self.prefix)
            if named and named[0] in self.places and ours in self.sources:
                pairs[named[0]] = self.sources[ours][0]
        return {name: of for name, of in pairs.items() if name != of}

    def _check_copy(self, name: str, of: str) -> None:
        if not torch.equal(self._read(name), self._read(of)):
            raise UserError(
                f"'{self.folder}' says tie_word_embeddings true, but its '{name}' is not its "
                f"'{of}': set tie_word_embeddings to false in config.json"
            )

    def _read(self, name: str) -> Tensor:
        return self.files.read(self.places[name])

    def names(self) -> list[str]:
        """See `Bundle`."""
        return [*self.sources, *self.rest]

    def known_as(self, name: str) -> str | None:
        """See `Bundle`; also among what is no part of a model of ours."""
        lent, prefix = self.family.lent.get(name), self.family.prefix
        found = (n for n in self.rest if n.removeprefix(prefix) == lent)
        return next(found, super().known_as(name))

    def tensor(self, name: str) -> Tensor:
        """See `Bundle`."""
        if name not in self.sources:
            return self._read(name)
        return self.family.merge({source: self._read(source) for source in self.sources[name]})


def _read_settings(file: Path) -> tuple[Settings, Family]:
    content = read_json(file)
    kind = content.get("model_type")
    if kind not in FAMILIES:
        said = f"model_type {kind!r}" if kind else "no model_type"
        raise UserError(f"'{file}' has {said}: this program reads {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    settings = Settings(str(file), content, family.defaults)
    settings.require({**PLAIN, **family.only})
    return settings, family


def _architecture(settings: Settings, family: Family) -> str:
    named = settings.get("architectures") or [None]
    if named[0] not in family.heads:
        said = f"architecture {named[0]!r}" if named[0] else "no architectures"
        raise UserError(
            f"'{settings.place}' has {said}: of {family.name} this program reads "
            f"{', '.join(family.heads)}"
        )
    return str(named[0])


def _bundle_config(settings: Settings, family: Family, head: str | None) -> dict[str, Any]:
    """The content of a bundle's config.json."""
    try:
        shape = asdict(family.read(settings))
        vocab_size = int(settings["vocab_size"])
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"'{settings.place}' has a value of the wrong kind: {error}") from error
    backbone = {"kind": "transformer", "config": shape, "vocab_size": vocab_size}
    phase = "finetune" if head in TASKS else "pretrain"
    described = _head(settings, family, head)
    return {"format": FORMAT, "phase": phase, "backbone": backbone, "head": described}


def _head(settings: Settings, family: Family, head: str | None) -> dict[str, Any]:
    if head in OBJECTIVES:
        return {"name": head, "config": OBJECTIVES[head]().config()}
    if head in (None, ALONE):
        return {"name": head, "config": {}}
    if head == ExtractiveQA.name:
        return read_task(head, family, settings, [])
    problem = settings.get("problem_type")
    labels = _labels(settings)
    if problem not in (None, "single_label_classification") or len(labels) < 2:
        raise UserError(
            f"'{settings.place}' is of a {problem or 'regression'} with {len(labels)} labels: "
            "only models that choose one of several labels are read"
        )
    if twice := [label for label in dict.fromkeys(labels) if labels.count(label) > 1]:
        raise UserError(f"'{settings.place}' names a label twice in id2label: {', '.join(twice)}")
    if head == Tagging.name:
        try:
            scheme_of(labels)
        except ValueError as error:
            raise UserError(f"'{settings.place}', id2label: {error}") from error
    return read_task(head, family, settings, labels)


def _labels(settings: Settings) -> list[str]:
    named: Mapping[str, str] = settings.get("id2label") or {}
    if named:
        return [named[key] for key in sorted(named, key=int)]
    return [f"LABEL_{i}" for i in range(settings.get("num_labels") or 2)]


def _newer(name: str) -> str:
    """The name that today's releases use; BERT's first had TensorFlow's for its norms."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def _is_buffer(name: str) -> bool:
    return BUFFERS.search(name) is not None


def _has(names: Any, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
