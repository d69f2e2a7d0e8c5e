"""Where a model comes from: plain facts for lineage.json and a model card that tells them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ptft_lightning import __version__
from ptft_lightning.handoff.bundle import Bundle

PACKAGES = ("torch", "lightning", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Versions that computed the model."""
    own = {"ptft_lightning": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in PACKAGES}


def parent_of(bundle: Bundle) -> dict[str, Any]:
    """A parent's entry: its hash, its phase and its own lineage."""
    return {"hash": bundle.hash, "phase": bundle.config["phase"], **bundle.lineage}


def model_card(config: Mapping[str, Any], lineage: Mapping[str, Any]) -> str:
    """README.md of a bundle."""
    backbone = config["backbone"]
    shape = backbone["config"]
    head = config["head"]
    lines = [
        f"# {head['name']} model ({config['phase']})",
        "",
        f"A {backbone['kind']} with {lineage['parameters'] / 1e6:.2f} M parameters "
        f"(width {shape['dim']}, depth {shape['depth']}, vocabulary {backbone['vocab_size']}).",
        "",
        f"- trained for {lineage['steps']} steps on {lineage['samples']} samples "
        f"({lineage['tokens']} tokens)",
        *(f"- {name}: {value:.4g}" for name, value in lineage["metrics"].items()),
    ]
    if head.get("labels"):
        lines.append(f"- labels: {', '.join(head['labels'])}")
    if base := config.get("base"):
        lines.append(f"- holds what was trained; the rest is in {base['hash']} ({base['path']})")
    for parent in lineage["parents"]:
        lines.append(f"- made from the bundle {parent['hash']} ({parent['phase']})")
    lines += ["", "Data, seeds and versions: lineage.json."]
    return "\n".join(lines) + "\n"
