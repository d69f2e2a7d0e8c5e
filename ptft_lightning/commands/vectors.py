"""Vectors of texts as files: predictions as a numpy array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError


def write_vectors(output: Path, records: dict[int, dict[str, Any]]) -> None:
    """The embedding of each example, (N, dim) float32 in the order of the file.

    Raises:
        UserError: something else was predicted.
    """
    lines = [record for _, record in sorted(records.items())]
    if other := next((line for line in lines if "embedding" not in line), None):
        raise UserError(
            f"--output '{output}' takes vectors, what is predicted here is {', '.join(other)}: "
            "give texts without a pair (--data.columns.pair null) to a Matching, or a .jsonl file"
        )
    np.save(output, np.array([line["embedding"] for line in lines], np.float32))
    say(f"{len(lines)} vectors: {output}")
