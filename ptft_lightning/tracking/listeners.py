"""Tables and alerts, for each kind of logger that can show them.

W&B has both. TensorBoard and SwanLab get them as text: a table as JSON lines, which lose nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

Rows = Sequence[dict[str, Any]]
Level = Literal["INFO", "WARN", "ERROR"]


class Listener:
    """A logger that is told more than metrics."""

    name: str

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def table(self, name: str, rows: Rows, step: int) -> None:
        """Show rows, whose columns are the names of all their values."""
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        self.text(name, "\n".join(f"    {line}" for line in lines), step)  # code, in Markdown

    def alert(self, title: str, text: str, level: Level, step: int) -> None:
        """Tell a person what happened; a title is at most 64 characters long."""
        self.text(f"alert/{title}", f"{level}: {text}", step)

    def text(self, name: str, text: str, step: int) -> None:
        """Show a text."""
        raise NotImplementedError


class WandbListener(Listener):
    """W&B's tables; its alerts reach people by mail or Slack."""

    name = "W&B"

    def table(self, name: str, rows: Rows, step: int) -> None:
        """See `Listener`."""
        import wandb

        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[_cell(row.get(column)) for column in columns] for row in rows]
        table = wandb.Table(columns=[*columns], data=cells, allow_mixed_types=True)
        self.logger.log_metrics({name: table}, step=step)

    def alert(self, title: str, text: str, level: Level, step: int) -> None:
        """See `Listener`."""
        self.logger.experiment.alert(title=title, text=f"step {step}: {text}", level=level)


class TensorBoardListener(Listener):
    """Text beside the scalars."""

    name = "TensorBoard"

    def text(self, name: str, text: str, step: int) -> None:
        """See `Listener`."""
        self.logger.experiment.add_text(name, text, step)


class SwanLabListener(Listener):
    """Text beside the scalars."""

    name = "SwanLab"

    def text(self, name: str, text: str, step: int) -> None:
        """See `Listener`."""
        self.logger.log_text(name, [text], step=step)


def listeners_of(loggers: Sequence[Logger]) -> list[Listener]:
    """Those among a trainer's loggers; others hear of metrics and the config alone."""
    found: list[Listener] = []
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            found.append(WandbListener(logger))
        elif isinstance(logger, TensorBoardLogger):
            found.append(TensorBoardListener(logger))
        elif type(logger).__module__.startswith("swanlab."):  # it need not be installed
            found.append(SwanLabListener(logger))
    return found


def _cell(value: Any) -> Any:
    plain = value is None or isinstance(value, (str, int, float, bool))
    return value if plain else json.dumps(value, ensure_ascii=False)
