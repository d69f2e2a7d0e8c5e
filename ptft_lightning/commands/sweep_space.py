"""The settings a sweep may choose from, and where they stand in a config; knows no trials."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ptft_lightning.errors import UserError

KINDS = ("log_uniform", "uniform", "int", "categorical")


def read_space(file: str, config: dict[str, Any]) -> dict[str, BaseDistribution]:
    """A file such as `model.optimizer.lr: {log_uniform: [1.0e-4, 1.0e-2]}`, a line per setting.

    Raises:
        UserError: the file is missing or empty, a key is not one of `config`, a range is none.
    """
    if not Path(file).is_file():
        raise UserError(f"--space not found: '{file}'")
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(
            f"--space '{file}': not YAML ({getattr(error, 'problem', error)})"
        ) from error
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"--space '{file}' holds no settings: write lines such as "
            "model.optimizer.lr: {log_uniform: [1.0e-4, 1.0e-2]}"
        )
    for key in content:
        if key == "run_dir":
            raise UserError(f"{file}: run_dir cannot vary, each trial has its own: leave it out")
        place_of(str(key), config, file)
    return {str(key): _distribution(f"{file}: {key}", value) for key, value in content.items()}


def place_of(key: str, config: dict[str, Any], file: str) -> list[str]:
    """The names on the way to a dotted key in a whole config, `init_args` filled in.

    Raises:
        UserError: the config has no such key.
    """
    node: Any = config
    path: list[str] = []
    for name in key.split("."):
        if (
            isinstance(node, dict)
            and "init_args" in node
            and name not in ("class_path", "init_args")
        ):
            node = node["init_args"]
            path.append("init_args")
        if not isinstance(node, dict) or name not in node:
            known = list(node) if isinstance(node, dict) else []
            close = get_close_matches(name, known, n=1)
            before = ".".join(part for part in path if part != "init_args")
            inside = f"'{before}'" if before else "the config"
            hint = (
                f": did you mean '{close[0]}'?" if close else f" has: {', '.join(known) or 'none'}"
            )
            raise UserError(f"{file}: unknown key '{key}', {inside}{hint}")
        node = node[name]
        path.append(name)
    return path


def overlay(params: dict[str, Any], config: dict[str, Any], file: str) -> dict[str, Any]:
    """The chosen values as a config to put over `config`."""
    whole: dict[str, Any] = {}
    for key, value in params.items():
        *way, last = place_of(key, config, file)
        node = whole
        for name in way:
            node = node.setdefault(name, {})
        node[last] = value
    return whole


def _distribution(place: str, given: Any) -> BaseDistribution:
    kind, values = next(iter(given.items())) if isinstance(given, dict) and given else ("", None)
    if kind not in KINDS or len(given) != 1 or not isinstance(values, list) or not values:
        raise UserError(f"{place} is {given!r}: give one of {', '.join(KINDS)} and a list")
    if kind == "categorical":
        if not all(value is None or isinstance(value, (str, int, float)) for value in values):
            raise UserError(f"{place} is {values}: categorical takes plain values")
        return CategoricalDistribution(values)
    low, high = _range(f"{place}.{kind}", values)
    if kind == "int":
        if low != int(low) or high != int(high):
            raise UserError(f"{place}.int is {values}: give whole numbers")
        return IntDistribution(int(low), int(high))
    if kind == "log_uniform" and low <= 0:
        raise UserError(f"{place}.log_uniform is {values}: its ends must be above 0")
    return FloatDistribution(low, high, log=kind == "log_uniform")


def _range(place: str, values: list[Any]) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in values)  # YAML 1.1 takes 1e-4 for a word
    except (TypeError, ValueError) as error:
        raise UserError(f"{place} is {values}: give two numbers [low, high]") from error
    if not low < high:
        raise UserError(f"{place} is {values}: the first number must be below the second")
    return low, high
