"""Warnings of libraries that a user can do nothing about."""

from __future__ import annotations

import logging
import re
import warnings


def quieten() -> None:
    """Leave out what a user can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        "LightningCLI's args parameter",  # main(args) is called on purpose
        "`isinstance(treespec, LeafSpec)`",  # Lightning 2.6.6 under torch 2.13
        "does not have many workers",  # batches are made in microseconds
        "`weights_only` was not set",
        "when logging on epoch level in distributed setting",  # ours are reduced already
        "You defined a `validation_step`",  # no document was held out
        "but have no logger configured",  # test and validate print what they log
        "module(s) in eval mode at the start of training",  # a frozen backbone
        "LSTM with projections is not supported with oneDNN",  # torch's own way then
        "Precision bf16-mixed is not supported by the model summary",
    ):
        warnings.filterwarnings("ignore", message=f".*{re.escape(text)}")
