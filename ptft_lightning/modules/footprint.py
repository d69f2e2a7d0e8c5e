"""What a fit costs beside the model: optimizer memory, the size of its bundle; one line each."""

from __future__ import annotations

from pathlib import Path

from ptft_lightning.data.module import say
from ptft_lightning.handoff.bundle import open_bundle
from ptft_lightning.interop.adapters import leave_to_base
from ptft_lightning.modules.muon import hidden_matrices
from ptft_lightning.modules.phase import PhaseModule


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def describe(module: PhaseModule) -> None:
    """Say, before the first step, what the optimizer will hold and what the bundle will take."""
    kind = module.optimizer_config.kind
    say(f"optimizer: about {size(optimizer_bytes(module))} of {kind} state")
    left, _ = leave_to_base(module.bundle, module.untouched, Path())
    kept = [p for name, p in module.net.named_parameters() if name not in left]
    whole = " (what is trained; the rest stays in its base)" if left else ""
    say(f"bundle: about {size(sum(p.nbytes for p in kept))}{whole}")


def optimizer_bytes(module: PhaseModule) -> int:
    """Bytes of optimizer state over all ranks: two running means of each trained parameter, one of
    those that Muon moves."""
    trained = [p for p in module.net.parameters() if p.requires_grad]
    muon = hidden_matrices(module.net) if module.optimizer_config.kind == "muon" else {}
    return sum(p.nbytes * (1 if p in muon else 2) for p in trained)


def saved(run_dir: Path) -> str:
    """What a finished run's bundle takes on disk, and what it needs beside itself."""
    bundle = open_bundle(run_dir / "bundle")
    used = sum(file.stat().st_size for file in Path(bundle.path).iterdir())
    base = bundle.config.get("base")
    needs = f", needs its base {base['hash']} at '{base['path']}'" if base else ""
    return f"bundle: {size(used)} on disk{needs}"
