"""Made files for the shipped configs of tasks that read formats of their own.

By the task's class: what writes train, validation and test files into a directory and gives the
options that name them, and whether the task needs a causal bundle.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.files_events import write_events
from faults.files_qa import write_qa
from faults.files_relations import write_relations

OWN_FILES: dict[str, tuple[Callable[[Path], dict[str, Any]], bool]] = {
    "EventTriggers": (write_events, False),
    "ExtractiveQA": (write_qa, False),
    "RelationExtraction": (write_relations, False),
}
