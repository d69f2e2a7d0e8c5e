"""The safetensors of a folder, one file or many with an index; knows no models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ptft_lightning.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: missing, or not one.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"'{file}' is missing: the folder is not whole") from None
    except (ValueError, OSError) as error:
        raise UserError(f"'{file}' is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{file}' is not a JSON object")
    return content


class TensorFiles:
    """Tensors by name, read one at a time.

    Raises:
        UserError: no safetensors, a missing or broken file, or an index that is wrong.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, Any] = {}
        if (folder / INDEX).is_file():
            self._open_shards(folder / INDEX)
        elif (folder / SINGLE).is_file():
            opened = _open(folder / SINGLE)
            self.places = dict.fromkeys(opened.keys(), opened)
        else:
            raise UserError(_nothing_to_read(folder))

    def _open_shards(self, index: Path) -> None:
        wanted = read_json(index).get("weight_map")
        if not isinstance(wanted, dict) or not wanted:
            raise UserError(f"'{index}' has no weight_map: fetch the file again")
        shards = sorted(set(wanted.values()))
        if missing := [name for name in shards if not (self.folder / name).is_file()]:
            raise UserError(
                f"'{self.folder}' lacks {', '.join(missing)}, of {len(shards)} files that "
                f"{INDEX} names: fetch the rest"
            )
        for shard in shards:
            opened = _open(self.folder / shard)
            self.places |= dict.fromkeys(opened.keys(), opened)
            listed = {name for name, file in wanted.items() if file == shard}
            if listed != (held := set(opened.keys())):
                raise UserError(
                    f"'{index}' and '{shard}' disagree about '{min(listed ^ held)}': they are of "
                    "different models, fetch both again"
                )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self.places[name].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        tensor: Tensor = self.places[name].get_tensor(name)
        return tensor


def _open(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except Exception as error:  # safetensors has its own exception class for a broken file
        raise UserError(f"'{file}' cannot be read: {error}") from error


def _nothing_to_read(folder: Path) -> str:
    pickled = sorted(p.name for p in folder.glob("pytorch_model*.bin"))
    if not pickled:
        return f"'{folder}' has no {SINGLE}: fetch the weights, too"
    return (
        f"'{folder}' has its weights as pickle ({pickled[0]}), which may run any code: convert "
        "them to safetensors where you trust them, with transformers' from_pretrained and "
        "save_pretrained"
    )
