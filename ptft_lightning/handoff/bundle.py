"""The bundle: a trained model complete in itself, written and read; no pickle on this path.

A directory with `model.safetensors` (plain parameter names), `config.json` (what to build),
`tokenizer.json`, `lineage.json` (where it comes from) and `README.md` (a model card). Knows
dictionaries of tensors and plain values; building the model from them is the modules' part.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.files import sync_directory, write_atomically

FORMAT = 1
CHECKPOINT_KEY = "bundle"  # where a Lightning checkpoint keeps config and tokenizer
NET_PREFIX = "net."


class Bundle:
    """An opened bundle: config and tokenizer at once, tensors one at a time when asked for.

    Attributes:
        path: where it was found.
        config: the content of config.json.
        lineage: the content of lineage.json.
    """

    def __init__(
        self, path: str, config: dict[str, Any], tokenizer_text: str, lineage: dict[str, Any]
    ) -> None:
        if config.get("format") != FORMAT:
            raise UserError(
                f"'{path}' has bundle format {config.get('format')}, this version reads {FORMAT}"
            )
        if missing := [key for key in ("phase", "backbone", "head") if key not in config]:
            raise UserError(f"the config of the bundle '{path}' has no {', '.join(missing)}")
        self.path, self.config, self.lineage = path, config, lineage
        self._tokenizer_text = tokenizer_text

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer the model was trained with."""
        try:
            return Tokenizer(self._tokenizer_text)
        except ValueError as error:
            raise UserError(f"'{self.path}' has a broken tokenizer: {error}") from error

    def names(self) -> list[str]:
        """Names of all tensors."""
        raise NotImplementedError

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        raise NotImplementedError

    def known_as(self, name: str) -> str | None:
        """The name here of a tensor that a new head begins with; None where there is none."""
        return name if name in self.names() else None

    @property
    def identity(self) -> dict[str, Any]:
        """What it says of itself on disk."""
        return self.config

    @cached_property
    def hash(self) -> str:
        """Names this bundle in the lineage of those made from it."""
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode())
        for name in sorted(self.names()):
            tensor = self.tensor(name).contiguous()
            digest.update(name.encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


class _DirectoryBundle(Bundle):
    def __init__(self, directory: Path) -> None:
        self.file = directory / "model.safetensors"
        lineage = directory / "lineage.json"
        super().__init__(
            str(directory),
            _json(directory / "config.json"),
            _text(directory / "tokenizer.json"),
            _json(lineage) if lineage.is_file() else {},
        )

    @cached_property
    def _open(self) -> Any:
        try:
            return safe_open(str(self.file), framework="pt", device="cpu")
        except Exception as error:  # safetensors has its own exception class for a broken file
            raise UserError(f"'{self.file}' cannot be read: {error}") from error

    def names(self) -> list[str]:
        """See `Bundle`."""
        return list(self._open.keys())

    def tensor(self, name: str) -> Tensor:
        """See `Bundle`."""
        tensor: Tensor = self._open.get_tensor(name)
        return tensor


class _CheckpointBundle(Bundle):
    def __init__(self, file: Path) -> None:
        checkpoint = load_checkpoint(file)
        if CHECKPOINT_KEY not in checkpoint:
            raise UserError(
                f"'{file}' is a checkpoint of another program: it holds no bundle to start from"
            )
        inside = checkpoint[CHECKPOINT_KEY]
        self.tensors: dict[str, Tensor] = {
            name.removeprefix(NET_PREFIX): tensor
            for name, tensor in checkpoint["state_dict"].items()
            if name.startswith(NET_PREFIX)
        }
        super().__init__(str(file), inside["config"], inside["tokenizer"], inside["lineage"])

    def names(self) -> list[str]:
        """See `Bundle`."""
        return list(self.tensors)

    def tensor(self, name: str) -> Tensor:
        """See `Bundle`."""
        return self.tensors[name]


def load_checkpoint(file: Path) -> dict[str, Any]:
    """A Lightning checkpoint file, without executing anything in it.

    Raises:
        UserError: torn, or not a checkpoint.
    """
    if not zipfile.is_zipfile(file):
        raise UserError(f"'{file}' is torn or not a checkpoint: choose another one")
    try:
        loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and torch each have their own
        raise UserError(f"'{file}' cannot be loaded: {error}".splitlines()[0]) from error
    return loaded


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle directory, a run directory, or a checkpoint (file, or sharded directory).

    Raises:
        UserError: nothing of the kind is there.
    """
    place = Path(path)
    beside = place.with_name(place.name + ".bundle")
    for directory in (place, place / "bundle", beside):
        if (directory / "config.json").is_file() and (directory / "model.safetensors").is_file():
            return _DirectoryBundle(directory)
    if place.is_file() and place.suffix == ".ckpt":
        return _CheckpointBundle(place)
    if not place.exists():
        raise UserError(f"bundle not found: '{path}'")
    raise UserError(
        f"'{path}' is not a bundle: expected a run directory, a bundle or Hugging Face directory "
        "(config.json and model.safetensors) or a .ckpt file"
    )


def _text(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"'{file}' is missing: the bundle is not whole")
    return file.read_text(encoding="utf-8")


def _json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"'{file}' is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{file}' holds no names and values: the bundle was changed")
    return content


def write_bundle(
    directory: str | Path,
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    tensors: dict[str, Tensor],
    lineage: Mapping[str, Any],
    card: str,
) -> None:
    """Write a bundle under a temporary name and put it in place of an earlier one."""
    target = Path(directory)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    contents = {"config.json": {"format": FORMAT, **config}, "lineage.json": lineage}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, str(temporary / "model.safetensors"), metadata={"format": "pt"})
        tokenizer.save(temporary)
        for name, content in contents.items():
            text = json.dumps(content, indent=1, ensure_ascii=False)
            write_atomically(temporary / name, text.encode())
        write_atomically(temporary / "README.md", card.encode())
        replace_directory(temporary, target)
    finally:  # a full disk is not filled further
        shutil.rmtree(temporary, ignore_errors=True)


def recover_directories(parent: Path) -> None:
    """Put back what `replace_directory` had moved aside when it was killed between its renames."""
    for old in parent.glob(".*.old"):
        target = old.with_name(old.name[1:].rsplit(".", 2)[0])
        if target.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, target)


def replace_directory(temporary: Path, target: Path) -> None:
    """Sync a finished directory and rename it to its place; what stood there is removed after."""
    for file in temporary.rglob("*"):
        if file.is_file():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        os.rename(target, old)
    os.rename(temporary, target)
    sync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)
